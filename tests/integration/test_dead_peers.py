"""Peers that fall silent, come back, or are shut out: who notices, how soon, and what becomes of what ran."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import trio
from support.scripted_callers import CutOff
from support.scripted_cluster import Visit
from support.scripted_stack import VERSIONS, Stack, Version, open_stack, until

from tunnel.errors import PeerUnresponsive

PODS = b"/api/v1/pods"
EXEC = b"/api/v1/namespaces/default/pods/one/exec"
EVENT = b'{"type":"ADDED","object":{}}\n'
QUICK = {"ping_interval": 0.2, "ping": 0.4}
DEADLINE_SECONDS = 2.0
"""Two periods and a deadline of PINGs, and room for a busy machine."""


async def _watch(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    await visit.chunk(EVENT)
    await visit.wait_gone()


async def _hold(visit: Visit) -> None:
    await visit.read_body()
    await visit.wait_gone()


async def _exec(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n")
    while data := await visit.receive():
        await visit.send(data)
    await visit.close()


def exec_request(stack: Stack, user: str = "alice") -> bytes:
    return stack.head(b"POST", EXEC, b"Connection: Upgrade", b"Upgrade: SPDY/3.1", b"Content-Length: 0", user=user)


# --- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("scheme", ["https", "wss"])
async def test_a_frozen_agent_is_noticed_in_time_and_comes_back(tmp_path: Path, version: Version, scheme: Any) -> None:
    async with open_stack(
        tmp_path, kas={"timeouts": QUICK}, agent_timeouts=QUICK, with_line=True, scheme=scheme
    ) as stack:
        line = stack.line
        assert line is not None
        stack.cluster.on(PODS, _watch)
        stack.cluster.on(b"/api/v1/slow", _hold)
        stack.cluster.on(EXEC, _exec)
        async with stack.caller(version) as watcher, stack.caller(version) as caller, stack.raw() as raw:
            watch = await watcher.get(PODS + b"?watch=1")
            assert await watch.read(len(EVENT)) == EVENT
            slow = await caller.request(b"POST", b"/api/v1/slow", body=b"x")
            await stack.cluster.wait_for(b"/api/v1/slow")
            await raw.send(exec_request(stack))
            assert (await raw.read_head()).startswith(b"HTTP/1.1 101")

            line.freeze()
            with trio.fail_after(DEADLINE_SECONDS):
                assert await slow.head() == 502
                assert "tunnel was lost" in json.loads(await slow.content())["message"]
                assert await watch.piece() == b""  # between two events
                with pytest.raises(CutOff):
                    await raw.receive()
            async with stack.caller(version) as another:
                answer = await another.get(b"/api/v1/new")
                assert answer.status == 503
                assert "not connected" in json.loads(await answer.content())["message"]

            line.let_new_ones_through()
            await stack.wait_connected()
            async with stack.caller(version) as another:
                assert (await another.get(b"/api/v1/new")).status == 200
        assert stack.cluster.count(b"/api/v1/slow") == 1
        assert stack.cluster.count(EXEC) == 1


async def test_a_request_into_a_frozen_tunnel_fails_within_the_deadline(tmp_path: Path) -> None:
    async with open_stack(tmp_path, kas={"timeouts": QUICK}, with_line=True) as stack:
        assert stack.line is not None
        stack.line.freeze()
        async with stack.caller() as caller:
            with trio.fail_after(DEADLINE_SECONDS):
                answer = await caller.request(b"POST", PODS, body=b"x" * 100_000)
                assert await answer.head() == 502
                assert answer.values(b"retry-after") == []
        assert stack.cluster.count(PODS) == 0


async def test_a_frozen_kas_is_noticed_by_the_agent_which_ends_what_ran(tmp_path: Path) -> None:
    async with open_stack(tmp_path, agent_timeouts=QUICK, with_line=True) as stack:
        line = stack.line
        assert line is not None
        gone = trio.Event()

        async def hold(visit: Visit) -> None:
            await visit.wait_gone()
            gone.set()

        stack.cluster.on(PODS, hold)
        async with stack.caller("http2") as caller:
            await caller.request(b"GET", PODS + b"?watch=1")
            await stack.cluster.wait_for(PODS)
            line.freeze()
            with trio.fail_after(DEADLINE_SECONDS):
                await gone.wait()
            assert isinstance(stack.agent._supervisor.last_failure, str)
            # kas still believes in the old tunnel, whose deadline is 15 s: the new one replaces it at once.
            line.let_new_ones_through()
            await until(lambda: line.accepted == 2)
            await until(lambda: stack.agent._supervisor.current is not None)
            with trio.fail_after(DEADLINE_SECONDS):
                while await _status_for(stack, "alice") != 200:
                    await trio.sleep(0.02)


async def test_quiet_streams_on_a_living_tunnel_are_left_alone(tmp_path: Path) -> None:
    async with open_stack(tmp_path, kas={"timeouts": QUICK}, agent_timeouts=QUICK) as stack:
        stack.cluster.on(PODS, _watch)
        async with stack.caller("http2") as caller:
            watch = await caller.get(PODS + b"?watch=1")
            await watch.read(len(EVENT))
            tunnel = stack.tunnel
            await trio.sleep(1.5)  # several deadlines
            assert stack.tunnel is tunnel
            assert tunnel.round_trip_seconds is not None
            with trio.move_on_after(0.05) as still_open:
                await watch.piece()
            assert still_open.cancelled_caught


async def test_the_death_of_a_tunnel_says_that_a_ping_went_unanswered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with open_stack(tmp_path, kas={"timeouts": QUICK}, with_line=True) as stack:
        assert stack.line is not None
        tunnel = stack.tunnel
        stack.line.freeze()
        with trio.fail_after(DEADLINE_SECONDS):
            await tunnel.wait_ended()
        assert isinstance(tunnel._failure, PeerUnresponsive)
        await until(lambda: any("PING went unanswered" in str(vars(record)) for record in caplog.records))


# --- coming again ----------------------------------------------------------------------------------


async def test_a_new_login_replaces_the_frozen_one_without_waiting_for_it(tmp_path: Path) -> None:
    """frp #5391: the old connection is dead, and nobody has noticed; the deadlines are those of production."""
    async with open_stack(tmp_path, with_line=True) as stack:
        line = stack.line
        assert line is not None
        old = stack.tunnel
        line.freeze()
        await stack.kill_agent()  # of which kas hears nothing
        assert stack.kas.registry.find("edge") is not None
        line.let_new_ones_through()
        with trio.fail_after(DEADLINE_SECONDS):
            await stack.start_agent()
            while stack.tunnel is old:
                await trio.sleep(0.005)
            async with stack.caller() as caller:
                assert (await caller.get(PODS)).status == 200
            await old.wait_ended()


async def test_requests_to_the_old_tunnel_fail_when_it_is_replaced(tmp_path: Path) -> None:
    async with open_stack(tmp_path, with_line=True) as stack:
        line = stack.line
        assert line is not None
        stack.cluster.on(PODS, _watch)
        async with stack.caller("http2") as caller:
            watch = await caller.get(PODS + b"?watch=1")
            await watch.read(len(EVENT))
            line.freeze()
            await stack.kill_agent()
            line.let_new_ones_through()
            with trio.fail_after(DEADLINE_SECONDS):
                await stack.start_agent()
                assert await watch.piece() == b""


async def test_an_agent_can_be_restarted_under_load(stack: Stack) -> None:
    statuses: list[int] = []
    stop = trio.Event()

    async def ask() -> None:
        while not stop.is_set():
            async with stack.caller() as caller:
                answer = await caller.request(b"GET", b"/api")
                statuses.append(await answer.head())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
        for _ in range(3):
            await trio.sleep(0.1)
            await stack.kill_agent()
            await trio.sleep(0.05)
            await stack.start_agent()
        await trio.sleep(0.1)
        stop.set()
    assert set(statuses) <= {200, 502, 503}
    assert statuses.count(200) > 20
    async with stack.caller() as caller:
        assert (await caller.get(b"/api")).status == 200


async def test_an_agent_that_drains_ends_what_runs_before_it_goes(tmp_path: Path) -> None:
    async with open_stack(tmp_path) as stack:
        release = trio.Event()

        async def slow(visit: Visit) -> None:
            await release.wait()
            await visit.answer(b"late")

        stack.cluster.on(PODS, slow)
        async with stack.caller("http2") as caller:
            answer = await caller.request(b"GET", PODS)
            await stack.cluster.wait_for(PODS)
            stack.agent.drain()
            await until(lambda: stack.kas.registry.find("edge") is None)
            refused = await caller.get(b"/api")
            assert refused.status == 503
            assert refused.values(b"retry-after") == []
            release.set()
            assert await answer.head() == 200
            assert await answer.content() == b"late"
        with trio.fail_after(DEADLINE_SECONDS):
            assert stack._agent_gone is not None
            await stack._agent_gone.wait()


# --- shut out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
async def test_revoking_a_users_token_ends_watch_and_exec_within_two_seconds(stack: Stack, version: Version) -> None:
    stack.cluster.on(PODS, _watch)
    stack.cluster.on(EXEC, _exec)
    async with (
        stack.caller(version) as caller,
        stack.caller(version, user="admin") as other,
        stack.raw() as raw,
    ):
        watch = await caller.get(PODS + b"?watch=1")
        kept = await other.get(PODS + b"?watch=1")
        for answer in (watch, kept):
            await answer.read(len(EVENT))
        await raw.send(exec_request(stack))
        assert (await raw.read_head()).startswith(b"HTTP/1.1 101")
        stack.access.remove_user("alice")
        stack.access.write()
        with trio.fail_after(2):
            with pytest.raises(CutOff):
                await watch.piece()
            with pytest.raises(CutOff):
                await raw.receive()
            await stack.cluster.wait_connections(2)  # the other's watch, and one that is idle
        async with stack.caller(version) as again:
            assert (await again.get(PODS)).status == 401
        with trio.move_on_after(0.05) as still_open:
            await kept.piece()
        assert still_open.cancelled_caught


async def test_revoking_an_agents_token_closes_its_tunnel(stack: Stack) -> None:
    stack.cluster.on(PODS, _watch)
    tunnel = stack.tunnel
    async with stack.caller("http2") as caller:
        watch = await caller.get(PODS + b"?watch=1")
        await watch.read(len(EVENT))
        stack.access.agents[0]["tokens"] = []
        stack.access.write()
        with trio.fail_after(2):
            await tunnel.wait_ended()
            assert await watch.piece() == b""
        await until(lambda: "401" in stack.agent._supervisor.last_failure)
        assert (await caller.get(b"/api")).status == 503


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_token_that_expires_ends_what_runs_under_it(stack: Stack, version: Version) -> None:
    stack.cluster.on(PODS, _watch)
    stack.cluster.on(b"/api/v1/slow", _hold)
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2.5)
    stack.access.add_user("guest", expires=end.isoformat())
    stack.access.write()
    await trio.sleep(1.2)  # kas looks at the file once a second
    async with stack.caller(version, user="guest") as caller, stack.caller(version, user="guest") as second:
        watch = await caller.get(PODS + b"?watch=1")
        await watch.read(len(EVENT))
        slow = await second.request(b"GET", b"/api/v1/slow")
        with trio.fail_after(4):
            with pytest.raises(CutOff):
                await watch.piece()
            with pytest.raises(CutOff):
                await slow.head()
    async with stack.caller(version, user="guest") as again:
        assert (await again.get(PODS)).status == 401


@pytest.mark.parametrize("broken", [b"", b"users: []\nagents: [", None])
async def test_an_access_file_that_cannot_be_read_changes_nothing(
    stack: Stack, broken: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    stack.cluster.on(PODS, _watch)
    async with stack.caller("http2") as caller:
        watch = await caller.get(PODS + b"?watch=1")
        await watch.read(len(EVENT))
        if broken is None:
            stack.access.path.unlink()
        else:
            stack.access.path.write_bytes(broken)
        await until(lambda: any("access file" in str(vars(record)) for record in caplog.records))
        assert (await caller.get(b"/api")).status == 200
        with trio.move_on_after(0.05) as still_open:
            await watch.piece()
        assert still_open.cancelled_caught
        stack.access.add_user("late")
        stack.access.write()
        with trio.fail_after(3):
            while await _status_for(stack, "late") != 200:
                await trio.sleep(0.05)


async def _status_for(stack: Stack, user: str) -> int:
    async with stack.caller(user=user) as caller:
        return (await caller.get(b"/api")).status
