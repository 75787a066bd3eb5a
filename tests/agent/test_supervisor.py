"""Keeping the tunnel up against a scripted kas, in simulated time."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from agent.backoff import Backoff, BackoffTimes
from agent.supervisor import MAX_TUNNELS, Supervisor, Tunnel
from tunnel.errors import ConnectionEnded, HandshakeError
from tunnel.handshake import Welcome


class FakeConnection:
    """A connection that starts, ends and fails when a test says so."""

    def __init__(self, starts: bool = True) -> None:
        self._starts = starts
        self._end = trio.Event()
        self._error: BaseException | None = None
        self.open_streams = 0
        self.round_trip_seconds: float | None = None
        self.drained: list[bytes] = []
        self.closed: list[bytes] = []

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        if self._starts:
            task_status.started()
        await self._end.wait()
        if self._error is not None:
            raise self._error

    def end(self, error: BaseException | None = None) -> None:
        self._error = error
        self._end.set()

    def lose(self) -> None:
        self.end(ConnectionEnded("the transport broke"))

    def close(self, *, debug: bytes = b"") -> None:
        self.closed.append(debug)
        self.end()

    def drain(self, debug: bytes = b"drain") -> None:
        self.drained.append(debug)
        if not self.open_streams:
            self.end()


class ScriptedKas:
    """Answers each attempt to dial with the next item of its script; then takes everybody."""

    def __init__(self, *script: HandshakeError | FakeConnection) -> None:
        self._script = list(script)
        self.attempts: list[float] = []
        self.holds: list[tuple[str, ...]] = []
        self.replaces: list[str | None] = []
        self.connections: list[FakeConnection] = []
        self.tunnels: list[Tunnel] = []
        self._arrived = trio.Event()
        self.kas_id: Callable[[int], str] = lambda number: f"kas-{number}"

    async def dial(self, holds: tuple[str, ...], replaces: str | None) -> tuple[FakeConnection, Welcome]:
        self.attempts.append(trio.current_time())
        self.holds.append(holds)
        self.replaces.append(replaces)
        await trio.lowlevel.checkpoint()
        item = self._script.pop(0) if self._script else FakeConnection()
        if isinstance(item, HandshakeError):
            raise item
        number = len(self.connections)
        return item, Welcome(kas_id=self.kas_id(number), tunnel_id=f"t{number}", agent_id="a")

    def connect(self, transport: FakeConnection, tunnel: Tunnel) -> FakeConnection:
        self.connections.append(transport)
        self.tunnels.append(tunnel)
        self._arrived.set()
        self._arrived = trio.Event()
        return transport

    async def wait_for(self, number: int) -> None:
        """Return once this many tunnels, and one more, were opened."""
        while len(self.tunnels) <= number:
            await self._arrived.wait()
        await wait_all_tasks_blocked()

    def supervisor(self) -> Supervisor:
        backoff = Backoff(BackoffTimes(), draw=lambda low, high: high)
        return Supervisor(self.dial, self.connect, backoff, kas="wss://kas.test", token_source="/token")


def refusal(status: int = 0, reason: str = "unreachable", retry_after: float | None = None) -> HandshakeError:
    return HandshakeError(f"refused {status} {reason}", status=status, reason=reason, retry_after=retry_after)


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_it_connects_and_says_so_once(autojump_clock, nursery, caplog):
    caplog.set_level(logging.INFO)
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)

    assert supervisor.current is kas.tunnels[0]
    assert supervisor.disconnected_since is None
    assert [record.message for record in caplog.records] == ["connected to kas"]


async def test_attempts_are_spread_by_backoff_and_an_outage_is_one_line(autojump_clock, nursery, caplog):
    kas = ScriptedKas(*[refusal() for _ in range(6)])
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    waits = [later - earlier for earlier, later in zip(kas.attempts, kas.attempts[1:], strict=False)]

    assert waits == pytest.approx([1, 2, 4, 8, 16, 30])
    assert len(warnings(caplog)) == 1
    assert warnings(caplog)[0].__dict__["next_try_seconds"] == 1.0
    assert supervisor.failed == 6


async def test_a_long_outage_is_told_again_every_five_minutes_and_another_failure_at_once(
    autojump_clock, nursery, caplog
):
    kas = ScriptedKas(*[refusal() for _ in range(40)], refusal(502, "bad-gateway"))
    await nursery.start(kas.supervisor().run)
    told = [record.__dict__["error"] for record in warnings(caplog)]

    assert len(told) == 5
    assert told[-1] == "refused 502 bad-gateway"
    assert warnings(caplog)[1].__dict__["attempts"] > 1


async def test_retry_after_is_honoured(autojump_clock, nursery):
    kas = ScriptedKas(refusal(503, "draining", retry_after=20.0))
    await nursery.start(kas.supervisor().run)

    assert kas.attempts[1] - kas.attempts[0] == pytest.approx(22)  # with jitter on top


async def test_already_connected_waits_for_30_seconds_at_least(autojump_clock, nursery):
    kas = ScriptedKas(refusal(409, "already-connected"))
    await nursery.start(kas.supervisor().run)

    assert kas.attempts[1] - kas.attempts[0] >= 30


async def test_a_refused_token_is_tried_again_slowly_and_names_the_file(autojump_clock, nursery, caplog):
    kas = ScriptedKas(*[refusal(401, "unauthorized") for _ in range(3)])
    await nursery.start(kas.supervisor().run)

    assert all(later - earlier >= 10 for earlier, later in zip(kas.attempts, kas.attempts[1:], strict=False))
    assert warnings(caplog)[0].__dict__["check"] == "/token"


async def test_a_lost_tunnel_is_dialled_again_after_a_short_random_wait(autojump_clock, nursery, caplog):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    await trio.sleep(100)
    lost_at = trio.current_time()
    kas.connections[0].lose()
    await wait_all_tasks_blocked()
    assert supervisor.current is None
    assert supervisor.disconnected_since == lost_at
    await trio.sleep(5)

    assert kas.attempts[1] - lost_at == pytest.approx(1)
    assert kas.replaces[1] is None
    assert kas.holds[1] == ()
    assert supervisor.current is kas.tunnels[1]


async def test_a_tunnel_that_lasted_starts_the_backoff_anew(autojump_clock, nursery):
    kas = ScriptedKas(*[refusal() for _ in range(5)])
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    await trio.sleep(31)
    lost_at = trio.current_time()
    kas.connections[0].lose()
    await trio.sleep(60)

    assert kas.attempts[6] - lost_at == pytest.approx(1)


async def test_a_kas_that_accepts_and_drops_is_not_dialled_in_a_tight_loop(autojump_clock, nursery):
    kas = ScriptedKas()
    await nursery.start(kas.supervisor().run)
    for number in range(6):
        await kas.wait_for(number)
        kas.connections[number].lose()
    await trio.sleep(40)
    waits = [later - earlier for earlier, later in zip(kas.attempts, kas.attempts[1:], strict=False)]

    assert waits == pytest.approx([1, 2, 4, 8, 16, 30], abs=0.2)


async def test_when_kas_goes_away_the_next_tunnel_is_dialled_at_once_and_the_old_one_stays(autojump_clock, nursery):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    await trio.sleep(100)
    kas.connections[0].open_streams = 3
    left_at = trio.current_time()
    supervisor.on_leaving(kas.tunnels[0], "age")
    await trio.sleep(1)

    assert kas.attempts[1] == left_at
    assert kas.replaces[1] == "t0"
    assert kas.holds[1] == ("kas-0",)
    assert supervisor.tunnels == tuple(kas.tunnels)
    assert supervisor.current is kas.tunnels[1]
    assert kas.connections[0].closed == []
    assert b"drain" in kas.connections[0].drained

    kas.connections[0].end()
    await wait_all_tasks_blocked()
    assert supervisor.tunnels == (kas.tunnels[1],)
    assert supervisor.disconnected_since is None


async def test_a_tunnel_that_kas_gives_up_at_once_is_not_replaced_in_a_tight_loop(autojump_clock, nursery):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    for number in range(4):
        await kas.wait_for(number)
        await wait_all_tasks_blocked()
        supervisor.on_leaving(kas.tunnels[number], "drain")
    await trio.sleep(20)
    waits = [later - earlier for earlier, later in zip(kas.attempts, kas.attempts[1:], strict=False)]

    assert waits == pytest.approx([1, 2, 4, 8], abs=0.2)


async def test_old_tunnels_are_bounded_and_the_oldest_gives_way(autojump_clock, nursery):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    for number in range(MAX_TUNNELS + 1):
        kas.connections[number].open_streams = 1
        await trio.sleep(100)
        supervisor.on_leaving(kas.tunnels[number], "age")
        await trio.sleep(1)

    assert len(supervisor.tunnels) == MAX_TUNNELS
    assert kas.connections[0].closed == [b"replaced"]
    assert kas.connections[2].closed == []


async def test_the_old_tunnel_is_kept_while_nobody_else_takes_the_agent(autojump_clock, nursery):
    kas = ScriptedKas(FakeConnection(), refusal(409, "already-connected"))
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    kas.connections[0].open_streams = 1
    await trio.sleep(100)
    supervisor.on_leaving(kas.tunnels[0], "drain")
    await trio.sleep(5)

    assert supervisor.tunnels == (kas.tunnels[0],)
    assert supervisor.current is None
    assert supervisor.disconnected_since is not None


async def test_a_tunnel_whose_stream_ids_run_out_is_drained_after_the_next_one_is_there(autojump_clock, nursery):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    await trio.sleep(100)
    kas.connections[0].open_streams = 1
    supervisor.retire(kas.tunnels[0], "ids")
    supervisor.retire(kas.tunnels[0], "ids")
    assert kas.connections[0].drained == []
    await trio.sleep(1)

    assert kas.replaces[1] == "t0"
    assert kas.connections[0].drained == [b"replaced"]


async def test_without_settings_the_attempt_has_failed(autojump_clock, nursery, caplog):
    kas = ScriptedKas(FakeConnection(starts=False))
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)

    assert kas.attempts[1] - kas.attempts[0] == pytest.approx(11)
    assert "SETTINGS" in warnings(caplog)[0].__dict__["error"]
    assert supervisor.tunnels == (kas.tunnels[1],)


async def test_a_connection_that_ends_before_it_starts_is_a_failed_attempt(autojump_clock, nursery):
    broken = FakeConnection(starts=False)
    broken.lose()
    kas = ScriptedKas(broken)
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)

    assert supervisor.failed == 1
    assert supervisor.current is kas.tunnels[1]


async def test_a_bug_in_one_tunnel_costs_that_tunnel(autojump_clock, nursery, caplog):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    await nursery.start(supervisor.run)
    kas.connections[0].end(TypeError("a bug"))
    await trio.sleep(5)

    assert supervisor.current is kas.tunnels[1]
    assert "a tunnel crashed" in caplog.text


async def test_drain_waits_for_what_runs_and_dials_no_more(autojump_clock, nursery):
    kas = ScriptedKas()
    supervisor = kas.supervisor()
    ended: list[float] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128 - the supervisor reports it
        await supervisor.run(task_status=task_status)
        ended.append(trio.current_time())

    await nursery.start(run)
    kas.connections[0].open_streams = 1
    supervisor.drain()
    supervisor.drain()
    await trio.sleep(7)
    assert ended == []
    assert kas.connections[0].drained == [b"drain"]
    kas.connections[0].end()
    await trio.sleep(100)

    assert len(ended) == 1
    assert len(kas.attempts) == 1


async def test_drain_ends_a_wait_between_two_attempts(autojump_clock, nursery):
    kas = ScriptedKas(*[refusal(409, "already-connected") for _ in range(50)])
    supervisor = kas.supervisor()
    ended = trio.Event()

    async def run() -> None:
        await supervisor.run()
        ended.set()

    nursery.start_soon(run)
    await trio.sleep(5)
    supervisor.drain()
    with trio.fail_after(0.1):
        await ended.wait()
