"""What is sent twice, and what never is: counted at the kube-apiserver."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from support.scripted_callers import Answer, Caller, CutOff
from support.scripted_cluster import Visit, say_ok
from support.scripted_stack import VERSIONS, Stack, Version, open_stack, until

MAPS = b"/api/v1/namespaces/default/configmaps"
BODY = b'{"kind":"ConfigMap","metadata":{"name":"one"}}'
SHORT = {"upstream_head": 1.0}

Failure = Callable[[Visit], Awaitable[None]]


async def reset_before_head(visit: Visit) -> None:
    await visit.read_body()
    visit.kill()


async def close_before_head(visit: Visit) -> None:
    await visit.read_body()
    await visit.close()


async def reset_before_body_was_read(visit: Visit) -> None:
    visit.kill()


async def close_inside_head(visit: Visit) -> None:
    await visit.read_body()
    await visit.send(b"HTTP/1.1 201 Created\r\nContent-Ty")
    await visit.close()


async def reset_after_head(visit: Visit) -> None:
    await visit.read_body()
    await visit.send(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n")
    await trio.sleep(0.02)
    visit.kill()


async def close_inside_body(visit: Visit) -> None:
    await visit.read_body()
    await visit.send(b"HTTP/1.1 201 Created\r\nContent-Length: 100\r\n\r\n{")
    await visit.close()


async def close_inside_chunk(visit: Visit) -> None:
    await visit.read_body()
    await visit.send(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nabc")
    await visit.close()


async def answer_nonsense(visit: Visit) -> None:
    await visit.read_body()
    await visit.send(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
    await visit.wait_gone()


async def say_nothing(visit: Visit) -> None:
    await visit.read_body()
    await visit.wait_gone()


def answer_with(status: bytes, fields: bytes = b"") -> Failure:
    async def play(visit: Visit) -> None:
        await visit.read_body()
        await visit.answer(b"no", status, fields)

    return play


async def outcome(answer: Answer) -> int | str:
    """The status of a whole answer, or what became of it."""
    try:
        status = await answer.head()
        await answer.content()
    except CutOff:
        return "cut" if answer.status else "closed"
    return status


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (reset_before_head, 502),
        (close_before_head, 502),
        (reset_before_body_was_read, 502),
        (close_inside_head, 502),
        (reset_after_head, "cut"),
        (close_inside_body, "cut"),
        (close_inside_chunk, "cut"),
        (answer_nonsense, 502),
        (say_nothing, 504),
        (answer_with(b"500 Internal Server Error"), 500),
        (answer_with(b"503 Service Unavailable"), 503),
        (answer_with(b"408 Request Timeout"), 408),
        (answer_with(b"421 Misdirected Request"), 421),
    ],
)
async def test_one_create_makes_exactly_one_post_whatever_fails(
    tmp_path: Path, version: Version, failure: Failure, expected: int | str
) -> None:
    async with open_stack(tmp_path, agent_timeouts=SHORT) as stack:
        stack.cluster.on(MAPS, failure)
        async with stack.caller(version) as caller:
            # A connection that was used before, so that there is one to be tempted by.
            await (await caller.get(b"/api")).content()
            answer = await caller.request(b"POST", MAPS, [(b"content-type", b"application/json")], BODY)
            assert await outcome(answer) == expected
            assert answer.values(b"retry-after") == []
        await trio.sleep(0.05)  # for a second one that must not come
        assert stack.cluster.count(MAPS) == 1


@pytest.mark.parametrize("method", [b"POST", b"PUT", b"PATCH", b"DELETE", b"FROBNICATE"])
@pytest.mark.parametrize("body", [b"", BODY])
async def test_no_changing_method_is_repeated_on_a_stale_connection(stack: Stack, method: bytes, body: bytes) -> None:
    stack.cluster.on(MAPS, close_before_head)
    async with stack.caller() as caller:
        await (await caller.get(b"/api")).content()
        answer = await caller.request(method, MAPS, body=body)
        assert await outcome(answer) == 502
    assert stack.cluster.count(MAPS) == 1


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"OPTIONS"])
async def test_a_reading_method_is_repeated_exactly_once_when_a_reused_connection_ended(
    stack: Stack, method: bytes
) -> None:
    seen: list[int] = []

    async def play(visit: Visit) -> None:
        seen.append(visit.number)
        if len(seen) == 1:
            await visit.close()
        else:
            await visit.answer(b"")

    stack.cluster.on(MAPS, play)
    async with stack.caller() as caller:
        await (await caller.get(b"/api")).content()
        answer = await caller.request(method, MAPS)
        assert await outcome(answer) == 200
    first, second = seen
    assert second != first


async def test_a_read_is_not_repeated_a_second_time(stack: Stack) -> None:
    stack.cluster.on(MAPS, close_before_head)
    async with stack.caller() as caller:
        await (await caller.get(b"/api")).content()
        answer = await caller.request(b"GET", MAPS)
        assert await outcome(answer) == 502
    assert stack.cluster.count(MAPS) == 2


async def test_a_read_on_a_fresh_connection_is_not_repeated(stack: Stack) -> None:
    stack.cluster.on(MAPS, close_before_head)

    async def hold(visit: Visit) -> None:
        await visit.wait_gone()

    stack.cluster.on(b"/busy", hold)
    async with stack.caller("http2") as caller:
        await caller.request(b"GET", b"/busy")  # takes the connection that the agent's own question left
        await stack.cluster.wait_for(b"/busy")
        answer = await caller.request(b"GET", MAPS)
        assert await outcome(answer) == 502
    assert stack.cluster.count(MAPS) == 1


async def test_a_read_is_not_repeated_once_a_byte_of_its_answer_came(stack: Stack) -> None:
    stack.cluster.on(MAPS, close_inside_head)
    async with stack.caller() as caller:
        await (await caller.get(b"/api")).content()
        answer = await caller.request(b"GET", MAPS)
        assert await outcome(answer) == 502
    assert stack.cluster.count(MAPS) == 1


async def test_a_read_with_a_body_is_not_repeated(stack: Stack) -> None:
    stack.cluster.on(MAPS, close_before_head)
    async with stack.caller() as caller:
        await (await caller.get(b"/api")).content()
        answer = await caller.request(b"GET", MAPS, body=b"a body")
        assert await outcome(answer) == 502
    assert stack.cluster.count(MAPS) == 1


async def test_an_idle_connection_that_the_server_closed_costs_no_request(stack: Stack) -> None:
    async def answer_and_close(visit: Visit) -> None:
        await visit.answer()
        await visit.close()

    stack.cluster.on(b"/last", answer_and_close)
    async with stack.caller() as caller:
        await (await caller.get(b"/last")).content()
        await stack.cluster.wait_connections(0)
        answer = await caller.request(b"POST", MAPS, body=BODY)
        assert await outcome(answer) == 200
    assert stack.cluster.count(MAPS) == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("moment", ["before-body", "inside-body", "before-head"])
async def test_a_tunnel_that_is_lost_leaves_one_post_and_no_invitation_to_repeat(
    stack: Stack, version: Version, moment: str
) -> None:
    arrived = trio.Event()

    async def play(visit: Visit) -> None:
        if moment == "inside-body":
            await visit.read(5)
        elif moment == "before-head":
            await visit.read(len(BODY))
        arrived.set()
        await visit.wait_gone()

    stack.cluster.on(MAPS, play)
    async with stack.caller(version) as caller:
        fields = [(b"content-length", b"%d" % len(BODY))]
        answer = await caller.request(b"POST", MAPS, fields, None)
        if moment == "inside-body":
            await answer.send(BODY[:10])
        elif moment == "before-head":
            await answer.send(BODY)
            await answer.finish()
        await arrived.wait()
        await stack.kill_agent()
        assert await answer.head() == 502
        assert answer.values(b"retry-after") == []
        status = json.loads(await answer.content())
        assert status["reason"] == "BadGateway"
        assert "tunnel was lost" in status["message"]
    # A new tunnel does not bring it back.
    await stack.start_agent()
    await trio.sleep(0.05)
    assert stack.cluster.count(MAPS) == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("status", [b"503 Service Unavailable", b"429 Too Many Requests"])
async def test_the_api_servers_own_retry_after_is_passed_on(stack: Stack, version: Version, status: bytes) -> None:
    stack.cluster.on(MAPS, answer_with(status, b"Retry-After: 3\r\n"))
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", MAPS, body=BODY)
        assert await outcome(answer) == int(status[:3])
        assert answer.values(b"retry-after") == [b"3"]
    assert stack.cluster.count(MAPS) == 1


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_post_that_finds_no_agent_is_sent_nowhere_and_nobody_is_told_to_retry(
    stack: Stack, version: Version
) -> None:
    await stack.kill_agent()
    await until(lambda: stack.kas.registry.find("edge") is None)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", MAPS, body=BODY)
        assert await outcome(answer) == 503
        assert answer.values(b"retry-after") == []
    assert stack.cluster.count(MAPS) == 0


async def test_requests_that_an_agent_at_its_limit_refuses_are_never_half_done(tmp_path: Path) -> None:
    gate = trio.Event()

    async def hold(visit: Visit) -> None:
        await visit.read_body()
        await gate.wait()
        await visit.answer()

    async with open_stack(tmp_path, agent_limits={"concurrent_requests": 16}) as stack:
        stack.cluster.on(MAPS, hold)
        statuses: list[int | str] = []
        async with stack.caller("http2") as caller, trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(_post, caller, statuses)
            await stack.cluster.wait_for(MAPS, 16)
            await until(lambda: len(statuses) == 24)
            gate.set()
        assert statuses.count(503) == 24
        assert statuses.count(200) == 16
        assert stack.cluster.count(MAPS) == 16


async def _post(caller: Caller, statuses: list[int | str]) -> None:
    answer = await caller.request(b"POST", MAPS, body=BODY)
    statuses.append(await outcome(answer))


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_caller_that_leaves_while_waiting_leaves_one_post(stack: Stack, version: Version) -> None:
    gone = trio.Event()

    async def hold(visit: Visit) -> None:
        await visit.read_body()
        await visit.wait_gone()
        gone.set()

    stack.cluster.on(MAPS, hold)
    async with stack.caller(version) as caller:
        answer = await caller.request(b"POST", MAPS, body=BODY)
        await stack.cluster.wait_for(MAPS)
        await answer.cancel()
        with trio.fail_after(2):
            await gone.wait()
    stack.cluster.on(MAPS, say_ok)
    await stack.settle()
    assert stack.cluster.count(MAPS) == 1
