"""Which tunnel takes a request, and who replaces whom."""

from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from server.registry import MAX_TAKEOVERS, MAX_TUNNELS_PER_AGENT, TAKEOVER_WINDOW_SECONDS, Registry, Tunnel
from server.revocations import Revocations
from tunnel.errors import HandshakeError
from tunnel.handshake import Hello

_numbers = itertools.count(1)


class FakeConnection:
    """Stands for a tunnel's connection where only its place in the registry matters."""

    def __init__(self) -> None:
        self.open_streams = 0
        self.is_usable = True
        self.drained_with: bytes | None = None
        self.aborted = False

    def drain(self, debug: bytes = b"drain") -> None:
        self.drained_with = debug
        self.is_usable = False

    def abort(self) -> None:
        self.aborted = True
        self.is_usable = False


def hello(process: str = "p1", replica: str = "r1", holds: tuple[str, ...] = (), replaces: str = "") -> Hello:
    return Hello(
        token="mla_x",
        versions=(1,),
        agent_version="0",
        replica=replica,
        process=process,
        cluster="",
        origins=("kubernetes",),
        holds=holds,
        replaces=replaces,
    )


def tunnel(agent_id: str = "edge", **about: object) -> Tunnel:
    return Tunnel(
        agent_id=agent_id,
        tunnel_id=f"t{next(_numbers)}",
        hello=hello(**about),  # type: ignore[arg-type]
        connection=FakeConnection(),  # type: ignore[arg-type]
        credential_id="c",
        registered_at=0,
    )


def fake(entry: Tunnel) -> FakeConnection:
    assert isinstance(entry.connection, FakeConnection)
    return entry.connection


async def test_a_request_goes_to_the_tunnel_with_the_fewest_streams() -> None:
    registry = Registry("kas-1")
    busy, free = tunnel(replica="r1", process="p1"), tunnel(replica="r2", process="p2")
    for entry in (busy, free):
        registry.register(entry)
    fake(busy).open_streams = 3

    assert registry.find("edge") is free
    assert registry.find("edge", excluding=[free]) is busy
    assert registry.find("other") is None


async def test_a_tunnel_that_drains_takes_no_requests() -> None:
    registry = Registry("kas-1")
    entry = tunnel()
    registry.register(entry)
    entry.connection.drain()

    assert registry.find("edge") is None


async def test_removing_one_replica_leaves_the_other() -> None:
    registry = Registry("kas-1")
    first, second = tunnel(replica="r1", process="p1"), tunnel(replica="r2", process="p2")
    registry.register(first)
    registry.register(second)

    registry.remove(first)
    registry.remove(first)

    assert registry.find("edge") is second


async def test_a_second_tunnel_of_one_process_is_refused_unless_it_replaces() -> None:
    registry = Registry("kas-1")
    old = tunnel()
    registry.register(old)

    with pytest.raises(HandshakeError) as refused:
        registry.check("edge", hello(holds=("kas-1",)))
    registry.check("edge", hello(holds=("kas-1",), replaces=old.tunnel_id))
    registry.check("edge", hello(holds=("kas-2",)))

    assert (refused.value.status, refused.value.reason) == (409, "already-connected")
    assert refused.value.retry_after is not None
    assert refused.value.retry_after >= 30


async def test_a_tunnel_replaced_by_its_own_process_drains() -> None:
    registry = Registry("kas-1")
    old = tunnel()
    registry.register(old)
    new = tunnel(holds=("kas-1",), replaces=old.tunnel_id)
    registry.register(new)

    assert fake(old).drained_with == b"replaced"
    assert not fake(old).aborted
    assert registry.find("edge") is new


async def test_a_new_process_of_the_same_replica_takes_over_without_waiting() -> None:
    registry = Registry("kas-1")
    old, new = tunnel(process="p1"), tunnel(process="p2")
    registry.register(old)
    registry.register(new)

    assert fake(old).aborted
    assert registry.tunnels_of("edge") == [new]


async def test_a_lost_tunnel_of_the_same_process_is_replaced_without_waiting() -> None:
    registry = Registry("kas-1")
    old, new = tunnel(process="p1"), tunnel(process="p1")
    registry.register(old)
    registry.check("edge", new.hello)
    registry.register(new)

    assert fake(old).aborted


async def test_processes_that_take_the_tunnel_from_each_other_are_stopped(
    mock_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Registry("kas-1")
    registry.register(tunnel(process="a"))
    for number in range(MAX_TAKEOVERS):
        challenger = tunnel(process="b" if number % 2 == 0 else "a")
        registry.check("edge", challenger.hello)
        registry.register(challenger)

    later = hello(process="a" if MAX_TAKEOVERS % 2 else "b")
    with pytest.raises(HandshakeError) as refused:
        registry.check("edge", later)

    assert refused.value.status == 409
    assert "two agents share" in caplog.text
    mock_clock.jump(TAKEOVER_WINDOW_SECONDS + 1)
    registry.check("edge", later)


async def test_an_agent_that_restarts_often_but_leaves_first_is_welcome() -> None:
    registry = Registry("kas-1")
    for number in range(10):
        entry = tunnel(process=f"p{number}")
        registry.check("edge", entry.hello)
        registry.register(entry)
        registry.remove(entry)

    assert registry.tunnels_of("edge") == []


async def test_tunnels_of_one_agent_are_bounded() -> None:
    registry = Registry("kas-1")
    for number in range(MAX_TUNNELS_PER_AGENT):
        registry.register(tunnel(replica=f"r{number}", process=f"p{number}"))

    with pytest.raises(HandshakeError) as refused:
        registry.check("edge", hello(replica="one more", process="one more"))
    registry.check("edge", hello(replica="r1", process="new"))

    assert refused.value.status == 503


async def test_waiting_for_an_agent_ends_when_it_connects(autojump_clock: MockClock) -> None:
    registry = Registry("kas-1")
    entry = tunnel()
    found: list[Tunnel | None] = []

    async def wait() -> None:
        found.append(await registry.wait_for_tunnel("edge", 20))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await trio.sleep(1)
        registry.register(entry)

    assert found == [entry]
    assert trio.current_time() < 2


async def test_waiting_ends_after_the_stated_time_and_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    registry = Registry("kas-1")

    assert await registry.wait_for_tunnel("edge", 20) is None
    assert await registry.wait_for_tunnel("edge", 0) is None
    assert not registry._agents


def test_revoking_a_credential_ends_what_runs_under_it_and_nothing_else() -> None:
    revocations = Revocations()
    ended: list[str] = []

    ends = {name: (lambda name=name: ended.append(name)) for name in ("a1", "a2", "b")}
    for name, end in ends.items():
        revocations.enter("alice" if name.startswith("a") else "bob", end)

    assert revocations.revoke(["alice", "nobody"]) == 2
    assert sorted(ended) == ["a1", "a2"]

    for name, end in ends.items():
        revocations.leave("alice" if name.startswith("a") else "bob", end)
        revocations.leave("nobody", end)
    assert len(revocations) == 0
    assert revocations.revoke(["alice", "bob"]) == 0
