from __future__ import annotations

import errno
import itertools
import logging
import os
import socket
from functools import partial

import pytest
import trio
from support.transport_pairs import client_tls, closing, receive_to_end, server_tls

from tunnel import listening
from tunnel.errors import HandshakeError
from tunnel.listening import listen, serve
from tunnel.transports import tcp, tls
from tunnel.transports.tcp import TcpTransport
from tunnel.transports.tls import TlsTransport


@pytest.fixture(autouse=True)
def closes_quickly(monkeypatch):
    for module in (tcp, tls):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)


async def greet(transport) -> None:
    await transport.send_all(b"hello")
    await transport.aclose()


async def connect(listener: socket.socket) -> TcpTransport:
    sock = trio.socket.socket()
    await sock.connect(listener.getsockname())
    return TcpTransport(sock)


class FakeListener:
    """Raises what it is told to before it accepts from a real listener."""

    def __init__(self, listener: socket.socket, errors: list[int]) -> None:
        self._listener = listener
        self.errors = errors

    def fileno(self) -> int:
        return self._listener.fileno()

    def accept(self):
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self._listener.accept()

    def close(self) -> None:
        self._listener.close()


async def test_each_connection_is_handed_to_the_handler(nursery):
    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], greet, name="test"))
    for _ in range(3):
        client = await connect(listener)
        async with closing(client):
            assert await receive_to_end(client) == b"hello"
    nursery.cancel_scope.cancel()


async def test_more_connections_than_one_turn_takes_are_all_accepted(nursery):
    (listener,) = await listen("127.0.0.1", 0)
    clients = [await connect(listener) for _ in range(listening.ACCEPTED_AT_ONCE * 2 + 3)]
    await nursery.start(partial(serve, [listener], greet, name="test"))
    for client in clients:
        async with closing(client):
            assert await receive_to_end(client) == b"hello"
    nursery.cancel_scope.cancel()


async def test_between_many_connections_other_tasks_have_their_turn(nursery):
    (listener,) = await listen("127.0.0.1", 0)
    clients = [await connect(listener) for _ in range(listening.ACCEPTED_AT_ONCE * 6)]
    accepted, seen = [], [0]

    async def note(_transport) -> None:
        accepted.append(None)

    await nursery.start(partial(serve, [listener], note, name="test"))
    with trio.fail_after(5):
        while seen[-1] < len(clients):
            await trio.lowlevel.checkpoint()
            seen.append(len(accepted))
    # Of those of one turn, some may begin before this task's turn and some after it.
    assert max(after - before for before, after in itertools.pairwise(seen)) <= listening.ACCEPTED_AT_ONCE * 2
    for client in clients:
        client.abort()
    nursery.cancel_scope.cancel()


async def test_an_accepted_connection_has_the_options_that_a_dialled_one_has(nursery):
    options = [
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 15),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, tcp.NOTSENT_LOWAT_BYTES),
    ]

    def options_of(transport: TcpTransport) -> list[tuple[int, int, int]]:
        return [(level, name, transport._sock.getsockopt(level, name)) for level, name, _ in options]

    send, receive = trio.open_memory_channel(1)

    async def show(transport) -> None:
        await send.send((options_of(transport), transport.info.peer))
        await transport.aclose()

    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], show, name="test"))
    client = await connect(listener)
    async with closing(client):
        found, peer = await receive.receive()
        assert found == options_of(client) == options
        assert peer == tcp.address_name(client._sock.getsockname())
    nursery.cancel_scope.cancel()


async def test_one_connection_s_bug_is_logged_and_ends_only_that_connection(nursery, caplog):
    crashes = [RuntimeError("bug"), None]

    async def crash_once(transport) -> None:
        crash = crashes.pop(0)
        if crash is not None:
            raise crash
        await greet(transport)

    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], crash_once, name="agent listener"))
    victim = await connect(listener)
    async with closing(victim):
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(victim)
    client = await connect(listener)
    async with closing(client):
        assert await receive_to_end(client) == b"hello"
    (record,) = caplog.records
    assert record.getMessage().startswith("agent listener: serving 127.0.0.1:")
    assert record.exc_info is not None
    nursery.cancel_scope.cancel()


async def test_a_handler_that_forgets_its_transport_leaves_no_socket_open(nursery):
    async def forget(transport) -> None:
        await transport.receive_some()

    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], forget, name="test"))
    client = await connect(listener)
    async with closing(client):
        await client.send_all(b"x")
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(2):
            await receive_to_end(client)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_running_out_of_descriptors_is_waited_out_and_logged_once(nursery, caplog, monkeypatch, code):
    monkeypatch.setattr(listening, "BACKOFF_SECONDS", 0.01)
    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [FakeListener(listener, [code] * 5)], greet, name="test"))
    client = await connect(listener)
    async with closing(client):
        assert await receive_to_end(client) == b"hello"
    (record,) = caplog.records
    assert "cannot accept connections" in record.getMessage()
    nursery.cancel_scope.cancel()


async def test_a_connection_that_failed_in_the_queue_is_skipped_silently(nursery, caplog):
    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [FakeListener(listener, [errno.ECONNABORTED] * 5)], greet, name="test"))
    client = await connect(listener)
    async with closing(client):
        assert await receive_to_end(client) == b"hello"
    assert not caplog.records
    nursery.cancel_scope.cancel()


async def test_an_error_that_says_the_listener_itself_is_broken_comes_out():
    (listener,) = await listen("127.0.0.1", 0)
    waits = await connect(listener)
    async with closing(waits):
        with pytest.RaisesGroup(pytest.RaisesExc(OSError), flatten_subgroups=True):
            await serve([FakeListener(listener, [errno.EINVAL])], greet, name="test")


async def test_the_tls_handshake_is_part_of_the_connection_s_own_task(nursery, caplog):
    caplog.set_level(logging.INFO)
    context = server_tls()
    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], greet, name="test", tls=lambda: context))
    silent = await connect(listener)
    plain = await connect(listener)
    await plain.send_all(b"GET / HTTP/1.1\r\n\r\n")
    client = TlsTransport(await connect(listener), client_tls(), server_side=False, server_hostname="kas.test")
    async with closing(silent, plain, client):
        await client.handshake()
        assert await receive_to_end(client) == b"hello"
        await trio.sleep(0.1)
    (record,) = caplog.records
    assert "received plain HTTP on a TLS port" in record.getMessage()
    assert record.reason == "tls-not-tls"
    nursery.cancel_scope.cancel()


async def test_handshakes_at_the_same_time_have_a_limit(nursery, monkeypatch):
    monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 0.3)
    context = server_tls()
    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], greet, name="test", tls=lambda: context, handshakes=2))
    silent = [await connect(listener) for _ in range(2)]
    await trio.sleep(0.05)
    client = TlsTransport(await connect(listener), client_tls(), server_side=False, server_hostname="kas.test")
    async with closing(*silent, client):
        monkeypatch.setattr(tls, "HANDSHAKE_SECONDS", 5.0)
        started = trio.current_time()
        await client.handshake()
        assert trio.current_time() - started > 0.1
        assert await receive_to_end(client) == b"hello"
    nursery.cancel_scope.cancel()


async def test_a_renewed_certificate_is_used_for_the_next_connection(nursery):
    contexts = [server_tls(), server_tls()]
    used = []

    def current():
        used.append(contexts[len(used)])
        return used[-1]

    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], greet, name="test", tls=current))
    for _ in range(2):
        client = TlsTransport(await connect(listener), client_tls(), server_side=False, server_hostname="kas.test")
        async with closing(client):
            await client.handshake()
    assert used == contexts
    nursery.cancel_scope.cancel()


async def test_stopping_lets_handlers_finish_and_accepts_nobody_any_more():
    stop, go_on = trio.Event(), trio.Event()

    async def slow(transport) -> None:
        await go_on.wait()
        await greet(transport)

    (listener,) = await listen("127.0.0.1", 0)
    address = listener.getsockname()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(serve, [listener], slow, name="test", stop=stop))
            client = await connect(listener)
            async with closing(client):
                await trio.sleep(0.02)
                stop.set()
                await trio.sleep(0.02)
                with trio.socket.socket() as late, pytest.raises(ConnectionRefusedError):
                    await late.connect(address)
                assert nursery.child_tasks
                go_on.set()
                assert await receive_to_end(client) == b"hello"


async def test_a_port_that_is_taken_is_an_error_of_the_caller_s():
    (listener,) = await listen("127.0.0.1", 0)
    with listener, pytest.raises(OSError, match="in use"):
        await listen("127.0.0.1", listener.getsockname()[1])


async def test_a_handler_s_handshake_error_is_a_bug_like_any_other(nursery, caplog):
    async def refuse(_transport) -> None:
        raise HandshakeError("nobody caught this", status=400)

    (listener,) = await listen("127.0.0.1", 0)
    await nursery.start(partial(serve, [listener], refuse, name="test"))
    client = await connect(listener)
    async with closing(client):
        with pytest.raises(trio.BrokenResourceError):
            await receive_to_end(client)
    assert caplog.records[0].exc_info is not None
    nursery.cancel_scope.cancel()
