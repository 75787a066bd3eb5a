"""A requester and a responder connection over a loopback transport."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Awaitable, Callable

import trio
from support.transport_pairs import tcp_pair

from tunnel.connection import Connection
from tunnel.errors import ConnectionEnded
from tunnel.h2.config import TUNNEL_REQUESTER, TUNNEL_RESPONDER, EngineConfig
from tunnel.h2.engine import Role
from tunnel.liveness import DEFAULT_TIMES, ConnectionTimes
from tunnel.messages import RequestHead
from tunnel.streams import ServedStream
from tunnel.transports.base import Transport
from tunnel.workers import Begin

Handler = Callable[[ServedStream], Awaitable[None]]


@dataclasses.dataclass
class TunnelPair:
    requester: Connection
    responder: Connection
    requester_transport: Transport
    responder_transport: Transport
    requester_end: list[BaseException]
    responder_end: list[BaseException]


def get(target: bytes = b"/", **changes: object) -> RequestHead:
    values: dict[str, object] = {"ended": True, **changes}
    return RequestHead(b"GET", target, b"kubernetes", [], **values)  # type: ignore[arg-type]


def post(target: bytes = b"/", length: int | None = None) -> RequestHead:
    fields = [] if length is None else [(b"content-length", b"%d" % length)]
    return RequestHead(b"POST", target, b"kubernetes", fields, content_length=length)


@contextlib.asynccontextmanager
async def open_tunnel(
    handler: Handler,
    *,
    requester_config: EngineConfig = TUNNEL_REQUESTER,
    responder_config: EngineConfig = TUNNEL_RESPONDER,
    requester_times: ConnectionTimes = DEFAULT_TIMES,
    responder_times: ConnectionTimes = DEFAULT_TIMES,
    on_going_away: Callable[[str], None] | None = None,
    begin: Begin | None = None,
) -> AsyncIterator[TunnelPair]:
    """Both ends run until the block ends; how each one ended is kept."""
    near, far = await tcp_pair()
    requester = Connection(
        near,
        role=Role.REQUESTER,
        config=requester_config,
        times=requester_times,
        name="kas",
        on_going_away=on_going_away,
    )
    responder = Connection(
        far,
        role=Role.RESPONDER,
        config=responder_config,
        handler=handler,
        begin=begin,
        times=responder_times,
        name="agentk",
        on_going_away=on_going_away,
    )
    pair = TunnelPair(requester, responder, near, far, [], [])
    ready = [trio.Event(), trio.Event()]

    async def run(connection: Connection, ends: list[BaseException], started: trio.Event) -> None:
        class Started(trio.TaskStatus[None]):
            def started(self, value: None = None) -> None:
                started.set()

        try:
            await connection.run(task_status=Started())
        except ConnectionEnded as exc:
            ends.append(exc)
        finally:
            started.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, requester, pair.requester_end, ready[0])
        nursery.start_soon(run, responder, pair.responder_end, ready[1])
        for event in ready:
            await event.wait()
        yield pair
        nursery.cancel_scope.cancel()
