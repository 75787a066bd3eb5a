"""Exchanges that begin without a task, through kas and agentk as they are: what may happen while one is under way."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from support.direct_exchanges import access_lines, nothing_left, outcome, warm
from support.scripted_callers import CutOff
from support.scripted_cluster import Visit
from support.scripted_stack import VERSIONS, Stack, Version, open_stack, until

from operations.logs import ConsoleFormatter, JsonFormatter
from operations.values import Seconds
from server.direct import DirectForwarding
from server.forwarding import Forwarder, Forwarding
from server.status import REQUEST_ID_FIELD
from tunnel.connection import Connection
from tunnel.errors import ErrorCode
from tunnel.streams import ServedStream

PODS = b"/api/v1/namespaces/default/pods"
POD = PODS + b"/web"


async def answer_hello(visit: Visit) -> None:
    await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")


def hello_in_pieces(go_on: trio.Event) -> Callable[[Visit], Awaitable[None]]:
    async def answer(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe")
        await go_on.wait()
        await visit.send(b"llo")

    return answer


def crash(*_: object) -> None:
    raise RuntimeError("a bug")


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> Version:
    return request.param


# Whole answers


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_an_answer_that_is_whole_passes_without_a_task(
    stack: Stack, version: Version, ways: Counter[str], method: bytes
) -> None:
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)

        async def script(visit: Visit) -> None:
            body = b"" if visit.request.method == b"HEAD" else b"hello"
            await visit.send(
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Kind: pod\r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n" + body
            )

        stack.cluster.on(POD, script)
        for _ in range(3):
            answer = await caller.request(method, POD)
            assert await outcome(answer) == (200, b"" if method == b"HEAD" else b"hello")
            assert answer.values(b"x-kind") == [b"pod"]
            assert answer.values(b"x-hop") == []
            assert len(answer.values(REQUEST_ID_FIELD)) == 1
        assert ways == {"kas begun": 3, "kas ended": 3, "agent begun": 3}
        assert {request.connection for request in stack.cluster.requests} == {1}
        await nothing_left(stack)


@pytest.mark.parametrize(
    ("wire", "expected", "trailers"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", (200, b"abcde"), []),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", (200, b""), []),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Sum: 7\r\n\r\n",
            (200, b"abc"),
            [(b"x-sum", b"7")],
        ),
        (b"HTTP/1.1 204 No Content\r\n\r\n", (204, b""), []),
        (b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n", (304, b""), []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", (200, b""), []),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", (404, b"no"), []),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", (200, b"ok"), []),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", (200, b"ok"), []),
        (
            b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            (200, b"ok"),
            [],
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000, (200, b"x" * 100_000), []),
    ],
)
async def test_every_kind_of_answer_arrives_as_it_was_sent(
    stack: Stack,
    version: Version,
    ways: Counter[str],
    wire: bytes,
    expected: tuple[int, bytes],
    trailers: list[tuple[bytes, bytes]],
) -> None:
    async def script(visit: Visit) -> None:
        await visit.send(wire)

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        for _ in range(2):
            answer = await caller.request(b"GET", POD)
            assert await outcome(answer) == expected
            assert answer.trailers == trailers
            assert answer.interim == ([103] if b"103" in wire else [])
        assert ways["kas begun"] == 2
        await (await caller.get(b"/api")).content()
        await nothing_left(stack)
        assert stack.cluster.count(POD) == 2


async def test_an_answer_that_ends_with_its_connection(stack: Stack, version: Version, ways: Counter[str]) -> None:
    async def script(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nuntil the end")
        await visit.close()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        assert await outcome(await caller.request(b"GET", POD)) == (200, b"until the end")
        assert ways == {"kas begun": 1, "kas ended": 1, "agent begun": 1}
        await nothing_left(stack)
        assert stack.agent._pool.statistics().idle == 0


@pytest.mark.parametrize("cut_at", [1, 9, 30, 47, 49])
async def test_an_answer_in_pieces_waits_for_nothing(
    stack: Stack, version: Version, ways: Counter[str], cut_at: int
) -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
    go_on = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.send(wire[:cut_at])
        await go_on.wait()
        await visit.send(wire[cut_at:])

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        answer = await caller.request(b"GET", POD)
        in_body = wire[wire.index(b"hello") : cut_at]
        if in_body:
            assert await answer.head() == 200
            assert await answer.read(len(in_body)) == in_body
        else:
            await until(lambda: ways["agent handed over"] == 1)
        assert ways["kas ended"] == 0
        go_on.set()
        assert await answer.head() == 200
        assert in_body + await answer.content() == b"hello"
        # A head in pieces is a task's, a body in pieces is not.
        agent = {"agent begun": 1} if in_body else {"agent begun": 1, "agent handed over": 1}
        assert ways == {"kas begun": 1, "kas ended": 1, **agent}
        # Its connection is as good as before.
        await (await caller.get(b"/api")).content()
        assert {request.connection for request in stack.cluster.requests} == {1}
        await nothing_left(stack)


# Answers that kas has something to say about


async def test_a_cluster_that_does_not_know_the_agent(stack: Stack, version: Version, ways: Counter[str]) -> None:
    async def script(visit: Visit) -> None:
        await visit.answer(b"no", b"401 Unauthorized")

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        status, body = await outcome(await caller.request(b"GET", POD))
        assert status == 502
        assert json.loads(body)["kind"] == "Status"
        assert ways["agent handed over"] == 1
        await nothing_left(stack)


@pytest.mark.parametrize(
    ("location", "status", "seen"),
    [
        (b"/api/v1/pods", 302, b"/agents/edge/k8s/api/v1/pods"),
        (b"pods", 302, b"pods"),
        (b"https://evil.example/", 502, None),
    ],
)
async def test_redirects_are_rewritten_or_refused(
    stack: Stack, version: Version, ways: Counter[str], location: bytes, status: int, seen: bytes | None
) -> None:
    async def script(visit: Visit) -> None:
        await visit.answer(b"", b"302 Found", b"Location: " + location + b"\r\n")

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        answer = await caller.request(b"GET", POD)
        assert (await outcome(answer))[0] == status
        assert answer.values(b"location") == ([] if seen is None else [seen])
        assert ways["kas begun"] == ways["kas handed over"] == 1
        await nothing_left(stack)


async def test_what_the_agent_reports_of_itself_is_explained(
    stack: Stack, version: Version, ways: Counter[str]
) -> None:
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        await stack.stop_cluster()
        status, body = await outcome(await caller.request(b"GET", POD))
        assert status == 502
        assert json.loads(body)["kind"] == "Status"
        assert ways["kas handed over"] == 1
        await nothing_left(stack)


# The cluster's connections


async def test_an_idle_connection_that_the_cluster_closed_is_not_used(
    stack: Stack, version: Version, ways: Counter[str]
) -> None:
    async def script(visit: Visit) -> None:
        await visit.answer()
        await visit.close()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        assert await outcome(await caller.request(b"GET", POD)) == (200, b"ok")
        await until(lambda: stack.agent._pool.statistics().idle == 0)
        assert await outcome(await caller.request(b"GET", POD)) == (200, b"ok")
        assert [request.connection for request in stack.cluster.requests] == [1, 2]
        assert stack.agent._pool.statistics().repeated == 0
        await nothing_left(stack)


@pytest.mark.parametrize("how", ["close", "kill"])
async def test_a_reused_connection_that_ends_without_an_answer_has_its_request_repeated_once(
    stack: Stack, version: Version, ways: Counter[str], how: str
) -> None:
    async def script(visit: Visit) -> None:
        if visit.number == 1:
            if how == "close":
                await visit.close()
            else:
                visit.kill()
        else:
            await visit.answer(b"second")

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        assert await outcome(await caller.request(b"GET", POD)) == (200, b"second")
        assert [request.connection for request in stack.cluster.requests] == [1, 2]
        assert ways["agent handed over"] == 1
        assert stack.agent._pool.statistics().repeated == 1
        await nothing_left(stack)


async def test_a_request_is_not_repeated_a_second_time(stack: Stack, version: Version, ways: Counter[str]) -> None:
    async def script(visit: Visit) -> None:
        visit.kill()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        assert (await outcome(await caller.request(b"GET", POD)))[0] == 502
        assert stack.cluster.count(POD) == 2
        await nothing_left(stack)


@pytest.mark.parametrize(
    "wire", [b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc", b"SSH-2.0-x\r\n\r\n"]
)
async def test_an_answer_that_breaks_off_is_not_asked_for_again(
    stack: Stack, version: Version, ways: Counter[str], wire: bytes
) -> None:
    async def script(visit: Visit) -> None:
        await visit.send(wire)
        await visit.close()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        status, _ = await outcome(await caller.request(b"GET", POD))
        assert status == ("cut" if b"200" in wire else 502)
        assert stack.cluster.count(POD) == 1
        await nothing_left(stack)


async def test_a_caller_that_goes_away_closes_the_connection_to_the_cluster(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    gone = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.wait_gone()
        gone.set()

    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        caplog.clear()
        answer = await caller.request(b"GET", POD)
        await stack.cluster.wait_for(POD)
        await answer.cancel()
        with trio.fail_after(5):
            await gone.wait()
        await nothing_left(stack)
    assert ways == {"kas begun": 1, "kas ended": 1, "agent begun": 1}
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"], line["ended_by"]) == (0, "cancelled", "caller")


# Deadlines, revocation, and the tunnel


@pytest.mark.parametrize("where", ["kas", "agent"])
async def test_a_slow_answer_is_given_up_at_the_deadline(
    tmp_path: Path, version: Version, ways: Counter[str], where: str
) -> None:
    gone = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.wait_gone()
        gone.set()

    kas = {"timeouts": {"upstream_head": Seconds(0.5 if where == "kas" else 30.0)}}
    async with (
        open_stack(tmp_path, kas=kas, agent_timeouts={"upstream_head": 30.0 if where == "kas" else 0.5}) as stack,
        stack.caller(version) as caller,
    ):
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        status, body = await outcome(await caller.request(b"GET", POD))
        assert status == 504
        assert json.loads(body)["kind"] == "Status"
        assert ways["kas begun"] == ways["kas handed over"] == ways["agent begun"] == 1
        with trio.fail_after(5):
            await gone.wait()
        assert await outcome(await caller.request(b"GET", b"/api")) == (200, b"ok")
        await nothing_left(stack)


async def test_a_tunnel_that_is_cut_ends_what_is_under_way(
    stack: Stack, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    gone = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.wait_gone()
        gone.set()

    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        caplog.clear()
        answer = await caller.request(b"GET", POD)
        await stack.cluster.wait_for(POD)
        lost = stack.tunnel
        lost.abort()
        status, body = await outcome(answer)
        assert status == 502
        assert json.loads(body)["kind"] == "Status"
        with trio.fail_after(5):
            await gone.wait()
        await stack.wait_redialled(lost)
        await nothing_left(stack)
    assert stack.cluster.count(POD) == 1  # it may have been carried out: nobody repeats it
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"], line["failed_hop"]) == (502, "refused", "tunnel")


async def test_a_request_that_the_agent_refuses_is_looked_for_another_tunnel(
    stack: Stack, version: Version, ways: Counter[str]
) -> None:
    def refuse(stream: ServedStream) -> bool:
        stream.reset(ErrorCode.REFUSED_STREAM)
        return False

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.agent_end._begin_directly = refuse
        status, body = await outcome(await caller.request(b"GET", POD))
        assert (status, json.loads(body)["kind"]) == (503, "Status")  # there is no other one
        assert ways == {"kas begun": 1, "kas handed over": 1}
        assert stack.cluster.count(POD) == 0
        await nothing_left(stack)


async def test_a_revoked_token_ends_what_is_under_way(
    tmp_path: Path, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    gone = trio.Event()

    async def script(visit: Visit) -> None:
        await visit.wait_gone()
        gone.set()

    caplog.set_level(logging.INFO, logger="kas.access")
    async with open_stack(tmp_path) as stack, stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, script)
        caplog.clear()
        answer = await caller.request(b"GET", POD)
        await stack.cluster.wait_for(POD)
        stack.access.remove_user("alice")
        stack.access.write()
        assert await outcome(answer) == ("closed", b"")
        with trio.fail_after(5):
            await gone.wait()
        await nothing_left(stack)
    assert ways == {"kas begun": 1, "kas ended": 1, "agent begun": 1}
    (line,) = access_lines(caplog)
    assert (line["status"], line["outcome"], line["ended_by"]) == (0, "reset", "revocation")


async def test_limits_of_a_credential_hold_as_before(tmp_path: Path, version: Version, ways: Counter[str]) -> None:
    release = trio.Event()

    async def script(visit: Visit) -> None:
        await release.wait()
        await visit.answer()

    async with (
        open_stack(tmp_path, kas={"access": {"exchanges_per_credential": 2}}) as stack,
        stack.caller(version) as one,
        stack.caller(version) as two,
        stack.caller(version) as three,
    ):
        await warm(stack, one, ways)
        stack.cluster.on(POD, script)
        waiting = [await one.request(b"GET", POD), await two.request(b"GET", POD)]
        await stack.cluster.wait_for(POD, 2)
        refused = await three.request(b"GET", POD)
        status, body = await outcome(refused)
        assert status == 429
        assert json.loads(body)["reason"] == "TooManyRequests"
        assert ways["kas begun"] == 2
        release.set()
        for answer in waiting:
            assert await outcome(answer) == (200, b"ok")
        await nothing_left(stack)


async def test_a_bug_in_one_exchange_ends_no_other(
    stack: Stack,
    version: Version,
    ways: Counter[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = trio.Event()

    async def script(visit: Visit) -> None:
        await release.wait()
        await visit.answer()

    caplog.set_level(logging.INFO, logger="kas.access")
    async with stack.caller(version) as one, stack.caller(version) as two:
        await warm(stack, one, ways)
        stack.cluster.on(POD, script)
        other = await (one if version == "http2" else two).request(b"GET", POD)
        await stack.cluster.wait_for(POD)
        caplog.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Connection, "open_nowait", crash)
            assert (await outcome(await one.request(b"GET", PODS)))[0] == 500
        release.set()
        assert await outcome(other) == (200, b"ok")
        await nothing_left(stack)
    line = access_lines(caplog)[0]
    assert (line["outcome"], line["ended_by"], line["failed_hop"]) == ("refused", "kas", "kas")
    assert stack.cluster.count(PODS) == 0


@pytest.mark.parametrize(
    ("owner", "name"), [(Forwarder, "begin"), (Forwarding, "passes_unseen"), (Forwarding, "filter_head")]
)
async def test_a_crash_before_the_answer_has_begun_is_answered(
    stack: Stack,
    version: Version,
    ways: Counter[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
) -> None:
    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, answer_hello)
        with monkeypatch.context() as broken:
            broken.setattr(owner, name, crash)
            answer = await caller.request(b"GET", POD)
            status, body = await outcome(answer)
            assert (status, json.loads(body)["reason"]) == (500, "InternalError")
            await nothing_left(stack)
        (record,) = [record for record in caplog.records if record.message == "an exchange crashed"]
        assert record.exc_info is not None
        assert await outcome(await caller.request(b"GET", POD)) == (200, b"hello")
        await nothing_left(stack)


async def test_a_crash_in_the_midst_of_an_answer_cuts_it_off(
    stack: Stack,
    version: Version,
    ways: Counter[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go_on = trio.Event()

    async with stack.caller(version) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, hello_in_pieces(go_on))
        answer = await caller.request(b"GET", POD)
        assert await answer.head() == 200
        assert await answer.read(2) == b"he"
        with monkeypatch.context() as broken:
            broken.setattr(DirectForwarding, "_pass_on", crash)
            go_on.set()
            with pytest.raises(CutOff):
                await answer.content()
            await nothing_left(stack)
        assert [record for record in caplog.records if record.message == "an exchange crashed"]


# The same account, whichever the way


def _comparable(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if key not in ("request_id", "peer", "head_seconds", "seconds")}


def _counts(stack: Stack) -> Counter[str]:
    """The samples of kas's metrics of exchanges that do not tell durations."""
    lines = [line for line in stack.kas.metrics.lines() if not line.startswith("#") and "_bucket" not in line]
    return Counter(
        {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines) if "_sum" not in name}
    )  # type: ignore[misc]


HOSTILE = POD + b"?a=%22\"\\%00{}'<b>&token=secret&x=%E2%80%A8"


@pytest.mark.parametrize("user", ["alice", 'O"Brien\\ \u00fc'])
async def test_the_access_log_and_the_metrics_say_the_same_of_each_way(
    tmp_path: Path, version: Version, ways: Counter[str], caplog: pytest.LogCaptureFixture, user: str
) -> None:
    async def in_a_task(visit: Visit) -> None:
        await visit.send(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")

    go_on = trio.Event()

    caplog.set_level(logging.INFO, logger="kas.access")
    target = HOSTILE.replace(b'"', b"%22").replace(b"\\", b"%5C") if version == "http2" else HOSTILE
    prepare = (lambda access: access.add_user(user, mode="agent")) if user != "alice" else None
    async with open_stack(tmp_path, prepare=prepare) as stack, stack.caller(version, user=user) as caller:
        await warm(stack, caller, ways)
        stack.cluster.on(POD, answer_hello)
        caplog.clear()
        before = _counts(stack)
        assert await outcome(await caller.request(b"GET", target)) == (200, b"hello")
        assert ways == {"kas begun": 1, "kas ended": 1, "agent begun": 1}
        await nothing_left(stack)
        counts = [before, _counts(stack)]
        stack.cluster.on(POD, hello_in_pieces(go_on))
        answer = await caller.request(b"GET", target)
        assert await answer.head() == 200
        assert await answer.read(2) == b"he"
        go_on.set()
        assert await answer.content() == b"llo"
        assert ways == {"kas begun": 2, "kas ended": 2, "agent begun": 2}
        await nothing_left(stack)
        counts.append(_counts(stack))
        stack.cluster.on(POD, in_a_task)
        assert await outcome(await caller.request(b"GET", target)) == (200, b"hello")
        assert ways["kas handed over"] == ways["agent handed over"] == 1
        await nothing_left(stack)
        counts.append(_counts(stack))
    assert counts[1] - counts[0] == counts[2] - counts[1] == counts[3] - counts[2]
    assert counts[1] != counts[0]
    lines = access_lines(caplog)
    assert len(lines) == 3
    assert _comparable(lines[0]) == _comparable(lines[1]) == _comparable(lines[2])
    assert lines[0]["user"] == user
    assert "secret" not in json.dumps(lines[0])
    for line in lines:
        assert 0 <= line["head_seconds"] <= line["seconds"]
    for record in caplog.records:
        assert json.loads(JsonFormatter().format(record))["user"] == user
        assert "\n" not in ConsoleFormatter().format(record)
