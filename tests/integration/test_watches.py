"""What a watch must survive, and how it may end: heads at once, each event by itself, and no fake end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable

import pytest
import trio
from support.scripted_callers import CutOff
from support.scripted_cluster import Visit
from support.scripted_stack import VERSIONS, Stack, Version

PODS = b"/api/v1/pods"
WATCH = PODS + b"?watch=1&resourceVersion=7"

JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
PROTOBUF_HEAD = JSON_HEAD.replace(b"application/json", b"application/vnd.kubernetes.protobuf;stream=watch")
CBOR_HEAD = JSON_HEAD.replace(b"application/json", b"application/cbor-seq")
GZIP_HEAD = JSON_HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n")


def json_event(kind: str = "ADDED", version: int = 8, padding: int = 0) -> bytes:
    document = {"type": kind, "object": {"metadata": {"resourceVersion": str(version)}, "data": "x" * padding}}
    return json.dumps(document).encode() + b"\n"


def protobuf_event(size: int = 60) -> bytes:
    return size.to_bytes(4, "big") + bytes(range(256)) * (size // 256) + bytes(size % 256)


CUT_JSON = json_event(version=9, padding=200)[:-40]
CUT_PROTOBUF = protobuf_event()[:-10]


def watch_of(head: bytes, *pieces: bytes) -> Callable[[Visit], Awaitable[None]]:
    """A watch that delivers these pieces, each in a chunk, and then stays quiet."""

    async def play(visit: Visit) -> None:
        await visit.send(head)
        for piece in pieces:
            await visit.chunk(piece)
        await visit.wait_gone()

    return play


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (JSON_HEAD, [json_event(), json_event("MODIFIED", 9)]),
        (JSON_HEAD, [json_event(), json_event("BOOKMARK", 12)]),
        (JSON_HEAD, []),
        (PROTOBUF_HEAD, [protobuf_event(), protobuf_event(1000)]),
        (PROTOBUF_HEAD, []),
    ],
    ids=["json", "json-bookmark", "json-quiet", "protobuf", "protobuf-quiet"],
)
async def test_a_watch_that_loses_its_tunnel_between_two_events_ends_cleanly(
    stack: Stack, version: Version, head: bytes, pieces: list[bytes]
) -> None:
    stack.cluster.on(PODS, watch_of(head, *pieces))
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        assert answer.status == 200
        whole = b"".join(pieces)
        assert await answer.read(len(whole)) == whole
        await stack.kill_agent()
        assert await answer.piece() == b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("head", "pieces"),
    [
        (JSON_HEAD, [json_event(), CUT_JSON]),
        (JSON_HEAD, [json_event()[:-1]]),
        (JSON_HEAD, [b'{"type":"ADDED",\n']),
        (PROTOBUF_HEAD, [protobuf_event(), CUT_PROTOBUF]),
        (PROTOBUF_HEAD, [protobuf_event(), b"\x00\x00"]),
        (CBOR_HEAD, [b"\xa2\x64type\x65ADDED"]),
        (CBOR_HEAD, []),
        (GZIP_HEAD, [b"\x1f\x8b\x08\x00"]),
        (GZIP_HEAD, []),
    ],
    ids=[
        "json",
        "json-without-newline",
        "json-pretty",
        "protobuf",
        "protobuf-in-prefix",
        "cbor",
        "cbor-quiet",
        "gzip",
        "gzip-quiet",
    ],
)
async def test_a_watch_that_loses_its_tunnel_inside_an_event_or_unseen_is_reset(
    stack: Stack, version: Version, head: bytes, pieces: list[bytes]
) -> None:
    stack.cluster.on(PODS, watch_of(head, *pieces))
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        whole = b"".join(pieces)
        assert await answer.read(len(whole)) == whole
        await stack.kill_agent()
        with pytest.raises(CutOff):
            await answer.piece()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("is_whole", [True, False], ids=["between", "inside"])
async def test_an_api_server_that_dies_is_told_like_a_tunnel_that_is_lost(
    stack: Stack, version: Version, is_whole: bool
) -> None:
    pieces = [json_event(), json_event() if is_whole else CUT_JSON]

    async def play(visit: Visit) -> None:
        await visit.send(JSON_HEAD)
        for piece in pieces:
            await visit.chunk(piece)
        await trio.sleep(0.02)
        visit.kill()

    stack.cluster.on(PODS, play)
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        if is_whole:
            assert await answer.content() == b"".join(pieces)
        else:
            assert await answer.until_cut() == b"".join(pieces)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("target", [PODS, PODS + b"?watch=0", PODS + b"/a/log?follow=1"])
async def test_what_is_no_watch_is_reset_even_where_a_line_ends(stack: Stack, version: Version, target: bytes) -> None:
    path = target.partition(b"?")[0]
    stack.cluster.on(path, watch_of(JSON_HEAD, json_event()))
    async with stack.caller(version) as caller:
        answer = await caller.get(target)
        await answer.read(len(json_event()))
        await stack.kill_agent()
        with pytest.raises(CutOff):
            await answer.piece()


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_watch_that_is_refused_is_reset_when_its_body_is_cut(stack: Stack, version: Version) -> None:
    stack.cluster.on(PODS, watch_of(JSON_HEAD.replace(b"200 OK", b"410 Gone"), json_event()))
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        assert answer.status == 410
        await answer.read(len(json_event()))
        await stack.kill_agent()
        with pytest.raises(CutOff):
            await answer.piece()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "target", [WATCH, PODS, PODS + b"/a/log?follow=true", b"/apis/example.com/v1/things?watch=true"]
)
async def test_the_head_arrives_before_the_first_byte_of_a_body(stack: Stack, version: Version, target: bytes) -> None:
    seen = trio.Event()

    async def play(visit: Visit) -> None:
        await visit.send(JSON_HEAD)
        await seen.wait()  # for as long as the caller has not seen the head, there is nothing else
        await visit.chunk(json_event())
        await visit.chunk(b"")

    stack.cluster.default = play
    async with stack.caller(version) as caller:
        answer = await caller.get(target)
        assert answer.status == 200
        seen.set()
        assert await answer.content() == json_event()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("head", [JSON_HEAD, PROTOBUF_HEAD, GZIP_HEAD, CBOR_HEAD])
@pytest.mark.parametrize("size", [1, 200, 100_000])
async def test_each_event_arrives_before_the_next_is_sent(
    stack: Stack, version: Version, head: bytes, size: int
) -> None:
    send, receive = trio.open_memory_channel[None](0)

    async def play(visit: Visit) -> None:
        await visit.send(head)
        async for _ in receive:
            await visit.chunk(b"e" * size)
        await visit.chunk(b"")

    stack.cluster.on(PODS, play)
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        for _ in range(20):
            await send.send(None)
            assert await answer.read(size) == b"e" * size
        send.close()
        assert await answer.piece() == b""


@pytest.mark.parametrize("version", VERSIONS)
async def test_no_byte_is_missing_from_a_burst_and_no_bookmark_is_dropped(stack: Stack, version: Version) -> None:
    events = [json_event("BOOKMARK" if number % 7 == 0 else "ADDED", number, number % 900) for number in range(3000)]
    end = b'{"type":"BOOKMARK","object":{"metadata":{"annotations":{"k8s.io/initial-events-end":"true"}}}}\n'

    async def play(visit: Visit) -> None:
        await visit.send(JSON_HEAD)
        for first in range(0, len(events), 50):
            await visit.chunk(b"".join(events[first : first + 50]))
        await visit.chunk(end)
        await visit.chunk(b"")

    stack.cluster.on(PODS, play)
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH + b"&sendInitialEvents=true&allowWatchBookmarks=true")
        assert await answer.content() == b"".join(events) + end


@pytest.mark.parametrize(
    ("target", "sent", "arrives"),
    [
        (WATCH, [b"gzip"], [b"identity"]),
        (WATCH, [b"gzip, deflate, br"], [b"deflate, br"]),
        (WATCH, [b"br", b"GZIP;q=0.8"], [b"br", b"identity"]),
        (PODS, [b"gzip, deflate"], [b"gzip, deflate"]),
        (PODS + b"?watch=false", [b"gzip"], [b"gzip"]),
        (PODS + b"/a/log?follow=true", [b"gzip"], [b"gzip"]),
        (b"/api/v1/watch/pods", [b"gzip"], [b"identity"]),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
async def test_gzip_is_taken_from_what_a_watch_accepts_and_from_nothing_else(
    stack: Stack, version: Version, target: bytes, sent: list[bytes], arrives: list[bytes]
) -> None:
    async with stack.caller(version) as caller:
        answer = await caller.get(target, [(b"accept-encoding", value) for value in sent])
        await answer.content()
    (request,) = stack.cluster.requests
    assert request.values(b"accept-encoding") == arrives


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_watch_that_the_caller_leaves_is_closed_at_the_api_server(stack: Stack, version: Version) -> None:
    gone = trio.Event()

    async def play(visit: Visit) -> None:
        await visit.send(JSON_HEAD)
        await visit.wait_gone()
        gone.set()

    stack.cluster.on(PODS, play)
    async with stack.caller(version) as caller:
        answer = await caller.get(WATCH)
        await answer.cancel()
        with trio.fail_after(2):
            await gone.wait()
        await stack.settle()
