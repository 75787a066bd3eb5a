"""The truth table of the probes, and the listener over real HTTP."""

from __future__ import annotations

import contextlib
import json

import httpx
import pytest
import trio
from support.agent import ScriptedApiServer, UpstreamConnection, pool_for, well_behaved

from agent.cluster_facts import REMEMBERED_SECONDS, ClusterFacts, Reachability
from agent.health import MAX_CONNECTIONS, Connectedness, HealthListener, liveness, readiness
from operations.values import Address

REACHABLE = Reachability(is_ready=True, reason="")
UNREACHABLE = Reachability(is_ready=False, reason="connection refused")


def state(*, connected: bool = True, seconds: float = 0.0, draining: bool = False, failure: str = "") -> Connectedness:
    return Connectedness(
        is_connected=connected, disconnected_seconds=seconds, is_draining=draining, last_failure=failure
    )


@pytest.mark.parametrize(
    ("now", "upstream", "status", "said"),
    [
        (state(), REACHABLE, 200, ["ok"]),
        (state(connected=False), REACHABLE, 503, ["no tunnel to kas: not connected yet"]),
        (state(connected=False, failure="401"), REACHABLE, 503, ["no tunnel to kas: 401"]),
        (state(), UNREACHABLE, 503, ["connection refused"]),
        (state(connected=False), UNREACHABLE, 503, ["no tunnel", "connection refused"]),
        (state(draining=True), REACHABLE, 503, ["draining"]),
        (state(draining=True, connected=False), UNREACHABLE, 503, ["draining", "connection refused"]),
    ],
)
def test_ready_means_that_a_request_would_be_served(now, upstream, status, said):
    verdict = readiness(now, upstream)

    assert verdict.status == status
    assert all(text in verdict.text for text in said)


@pytest.mark.parametrize(
    ("now", "status"),
    [
        (state(), 200),
        (state(connected=False, seconds=0), 200),
        (state(connected=False, seconds=899), 200),
        (state(connected=False, seconds=901, failure="refused"), 503),
        (state(connected=False, seconds=901, draining=True), 200),
    ],
)
def test_alive_means_that_a_restart_would_not_help(now, status):
    assert liveness(now, allowed_seconds=900).status == status


async def start(nursery: trio.Nursery, **changes: object) -> tuple[int, HealthListener]:
    async def reachable() -> Reachability:
        return REACHABLE

    listener = HealthListener(
        Address("127.0.0.1", 0),
        **{  # type: ignore[arg-type]
            "disconnected_seconds": 900.0,
            "connectedness": state,
            "reachability": reachable,
            "metrics": lambda: "moorline_agent_connected 1\n",
            **changes,
        },
    )
    return await nursery.start(listener.run), listener


async def test_the_listener_answers_probes(nursery):
    async def unreachable() -> Reachability:
        return UNREACHABLE

    port, _ = await start(nursery, reachability=unreachable)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        answers = {path: await client.get(path) for path in ("/livez", "/readyz?verbose", "/metrics", "/")}
        head = await client.head("/livez")
        post = await client.post("/livez", content=b"x")

    assert {path: answer.status_code for path, answer in answers.items()} == {
        "/livez": 200,
        "/readyz?verbose": 503,
        "/metrics": 200,
        "/": 404,
    }
    assert answers["/readyz?verbose"].text == "connection refused\n"
    assert answers["/metrics"].text == "moorline_agent_connected 1\n"
    assert (head.status_code, head.content) == (200, b"")
    assert post.status_code == 405
    nursery.cancel_scope.cancel()


async def test_connections_that_say_nothing_are_bounded(nursery):
    port, _ = await start(nursery)
    streams = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MAX_CONNECTIONS + 1)]
    with trio.fail_after(5):
        with contextlib.suppress(trio.BrokenResourceError):
            assert await streams[-1].receive_some(1) == b""
    for stream in streams:
        await stream.aclose()
    nursery.cancel_scope.cancel()


async def test_readiness_asks_the_kube_apiserver_once_for_many_probes():
    async def version(connection: UpstreamConnection) -> None:
        while await connection.read_request():
            await connection.answer(json.dumps({"gitVersion": "v1.36.0"}).encode())

    upstream = ScriptedApiServer(version)
    async with pool_for(upstream) as pool:
        facts = ClusterFacts(pool)
        async with trio.open_nursery() as probes:
            for _ in range(10):
                probes.start_soon(facts.reachability)
        assert await facts.reachability() == REACHABLE

    assert [request.target for request in upstream.requests] == [b"/version"]
    assert facts.kubernetes_version == "v1.36.0"


async def test_an_answer_is_remembered_for_a_while_only(autojump_clock):
    class Opener:
        asked = 0

        async def open(self, request: object) -> object:
            self.asked += 1
            await trio.sleep_forever()

    opener = Opener()
    facts = ClusterFacts(opener)  # type: ignore[arg-type]
    first = await facts.reachability()
    await facts.reachability()
    assert not first.is_ready
    assert "did not answer within 5 s" in first.reason
    assert opener.asked == 1
    await trio.sleep(REMEMBERED_SECONDS + 0.1)
    await facts.reachability()

    assert opener.asked == 2


@pytest.mark.parametrize(
    ("status", "ready"), [(b"200 OK", True), (b"403 Forbidden", True), (b"401 Unauthorized", False), (b"500 x", False)]
)
async def test_a_refused_agent_is_not_ready(status, ready):
    async def answers(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer(status=status)

    async with pool_for(ScriptedApiServer(answers)) as pool:
        assert (await ClusterFacts(pool).reachability()).is_ready is ready


@pytest.mark.parametrize(
    ("body", "uid"),
    [
        (b'{"metadata": {"uid": "5d3c0d6e"}}', "5d3c0d6e"),
        (b'{"metadata": {"uid": "a\\r\\nb"}}', ""),
        (b'{"metadata": {"uid": 7}}', ""),
        (b'{"metadata": []}', ""),
        (b"[]", ""),
        (b"x" * 300_000, ""),
    ],
)
async def test_the_uid_of_the_cluster_is_what_can_be_a_uid(body, uid):
    async def answers(connection: UpstreamConnection) -> None:
        while await connection.read_request():
            await connection.answer(body)

    async with pool_for(ScriptedApiServer(answers)) as pool:
        facts = ClusterFacts(pool)
        await facts.read_uid()

    assert facts.uid == uid


async def test_a_uid_that_may_not_be_read_is_empty_and_one_that_is_known_is_not_asked_for_again():
    async def answers(connection: UpstreamConnection) -> None:
        await connection.read_request()
        await connection.answer(status=b"403 Forbidden")
        await connection.read_request()
        await connection.answer(b'{"metadata": {"uid": "u"}}')

    upstream = ScriptedApiServer(answers, well_behaved)
    async with pool_for(upstream) as pool:
        facts = ClusterFacts(pool)
        await facts.read_uid()
        assert facts.uid == ""
        await facts.read_uid()
        await facts.read_uid()

    assert facts.uid == "u"
    assert len(upstream.requests) == 2
