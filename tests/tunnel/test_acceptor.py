from __future__ import annotations

import json

import pytest
import trio
import trio_websocket
from support.transport_pairs import closing, receive_exactly, receive_to_end, socket_pair, tcp_pair, tls_pair

from tunnel import acceptor
from tunnel.acceptor import accept_tunnel
from tunnel.errors import HandshakeError
from tunnel.handshake import Form, Hello, Welcome, encode_hello
from tunnel.transports import tcp, tls
from tunnel.transports.tcp import TcpTransport

HELLO = Hello(token="mla_secret", agent_version="0.1.0", replica="agentk-0", process="p1")
WELCOME = Welcome(kas_id="kas-1", tunnel_id="t-1", agent_id="prod-eu")
REQUEST = encode_hello(HELLO, form=Form.UPGRADE, authority="kas.test")


@pytest.fixture(autouse=True)
def closes_quickly(monkeypatch):
    for module in (tcp, tls):
        monkeypatch.setattr(module, "CLOSE_SECONDS", 0.05)


async def welcome_all(_: Hello) -> Welcome:
    return WELCOME


async def refusal_of(decide, request: bytes = REQUEST) -> tuple[HandshakeError, dict[str, str], dict[str, str]]:
    """The error that comes out, and the fields and the body that the agent gets."""
    agent, kas = await tcp_pair()
    async with closing(agent, kas):
        await agent.send_all(request)
        with pytest.raises(HandshakeError) as caught:
            await accept_tunnel(kas, decide=decide)
        answer = await receive_to_end(agent)
        assert agent.clean_eof
    head, _, body = answer.decode().partition("\r\n\r\n")
    status_line, *lines = head.split("\r\n")
    assert status_line.startswith(f"HTTP/1.1 {caught.value.status} ")
    return caught.value, dict(line.lower().split(": ", 1) for line in lines), json.loads(body)


@pytest.mark.parametrize("pair", [tcp_pair, tls_pair])
async def test_an_agent_that_may_come_in_gets_a_101_and_a_transport(pair):
    agent, kas = await pair()
    async with closing(agent, kas):
        await agent.send_all(REQUEST)
        transport, hello, welcome = await accept_tunnel(kas, decide=welcome_all)
        assert transport is kas
        assert hello == HELLO
        assert welcome == WELCOME
        answer = await agent.receive_some()
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert b"moorline-tunnel: t-1\r\n" in answer
        assert b"\r\nDate: " in answer
        await transport.send_all(b"http/2 from here")
        assert await receive_exactly(agent, 16) == b"http/2 from here"


async def test_a_request_may_come_in_any_pieces_and_with_more_behind_it():
    agent, kas = await tcp_pair()
    async with closing(agent, kas), trio.open_nursery() as nursery:

        async def send_in_pieces() -> None:
            message = REQUEST + b"PRI * HTTP/2.0"
            for start in range(0, len(message), 50):
                await agent.send_all(message[start : start + 50])
                await trio.sleep(0.001)

        nursery.start_soon(send_in_pieces)
        transport, _, _ = await accept_tunnel(kas, decide=welcome_all)
        assert await receive_exactly(transport, 14) == b"PRI * HTTP/2.0"


async def test_a_foreign_websocket_client_is_taken_for_what_it_says():
    client_socket, server_socket = await socket_pair()
    kas = TcpTransport(server_socket)
    async with trio.open_nursery() as nursery, closing(kas):
        received = []
        has_received = trio.Event()

        async def connect() -> None:
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                trio.SocketStream(client_socket),
                "kas.test",
                "/agent/v1/tunnel",
                subprotocols=["moorline.v1"],
                extra_headers=[
                    (b"Authorization", b"Bearer mla_secret"),
                    (b"Moorline-Versions", b"1"),
                    (b"Moorline-Agent-Version", b"9"),
                    (b"Moorline-Replica", b"r"),
                    (b"Moorline-Process", b"p"),
                ],
            )
            received.append(await connection.get_message())
            has_received.set()

        nursery.start_soon(connect)
        transport, hello, _ = await accept_tunnel(kas, decide=welcome_all)
        assert transport.info.kind == "websocket"
        assert (hello.token, hello.agent_version) == ("mla_secret", "9")
        await transport.send_all(b"binary")
        await has_received.wait()
        assert received == [b"binary"]
        nursery.cancel_scope.cancel()
        client_socket.close()


async def test_a_refusal_is_answered_in_full_and_raised():
    async def refuse(_: Hello) -> Welcome:
        raise HandshakeError("one tunnel is enough", status=409, reason="already-connected", retry_after=30.0)

    error, fields, body = await refusal_of(refuse)
    assert error.reason == "already-connected"
    assert body == {"error": "already-connected", "message": "one tunnel is enough"}
    assert fields["retry-after"] == "30"
    assert fields["moorline-versions"] == "1"
    assert fields["connection"] == "close"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (REQUEST.replace(b"/agent/v1/tunnel", b"/elsewhere"), 404),
        (REQUEST.replace(b"mla_secret", b"").replace(b"Bearer ", b"Bearer"), 401),
        (REQUEST.replace(b"moorline-versions: 1", b"moorline-versions: 7"), 426),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: " + b"x" * 20_000, 431),
        (b"GET /" + b"x" * 20_000, 414),
    ],
)
async def test_what_is_no_hello_is_refused_without_asking(request_bytes, status):
    async def never(_: Hello) -> Welcome:
        raise AssertionError("asked about a request that cannot be right")

    error, fields, _ = await refusal_of(never, request_bytes)
    assert error.status == status
    assert fields["moorline-versions"] == "1"


async def test_a_head_that_trickles_in_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(acceptor, "HEAD_SECONDS", 0.2)
    agent, kas = await tcp_pair()
    async with closing(agent, kas), trio.open_nursery() as nursery:

        async def trickle() -> None:
            for byte in REQUEST:
                await agent.send_all(bytes([byte]))
                await trio.sleep(0.02)

        nursery.start_soon(trickle)
        with pytest.raises(HandshakeError, match=r"no whole request within 0\.2 s") as caught:
            await accept_tunnel(kas, decide=welcome_all)
        assert caught.value.status == 408
        nursery.cancel_scope.cancel()
        assert (await agent.receive_some()).startswith(b"HTTP/1.1 408 ")


async def test_a_decision_that_takes_too_long_is_answered_with_503(monkeypatch):
    monkeypatch.setattr(acceptor, "DECIDE_SECONDS", 0.05)

    async def ponder(_: Hello) -> Welcome:
        await trio.sleep_forever()
        raise AssertionError

    error, fields, _ = await refusal_of(ponder)
    assert error.status == 503
    assert fields["retry-after"] == "5"


async def test_a_connection_that_ends_before_its_request_is_whole_is_just_broken():
    agent, kas = await tcp_pair()
    async with closing(agent, kas):
        await agent.send_all(REQUEST[:50])
        await agent.send_eof()
        with pytest.raises(trio.BrokenResourceError, match="before a request was complete"):
            await accept_tunnel(kas, decide=welcome_all)
        with pytest.raises(trio.ClosedResourceError):
            await kas.receive_some()


async def test_a_bug_in_the_decision_closes_the_connection():
    async def crash(_: Hello) -> Welcome:
        raise ZeroDivisionError

    agent, kas = await tcp_pair()
    async with closing(agent, kas):
        await agent.send_all(REQUEST)
        with pytest.raises(ZeroDivisionError):
            await accept_tunnel(kas, decide=crash)
        with pytest.raises(trio.BrokenResourceError):
            await agent.receive_some()


async def test_an_agent_that_does_not_read_the_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(acceptor, "ANSWER_SECONDS", 0.05)
    agent, kas = await tcp_pair()

    async def clog(_: Hello) -> Welcome:
        for _ in range(10):
            while kas.send_nowait(bytes(65_536)):
                pass
            await trio.sleep(0.01)
        return WELCOME

    async with closing(agent, kas):
        await agent.send_all(REQUEST)
        with pytest.raises(trio.BrokenResourceError, match="does not read our answer"):
            await accept_tunnel(kas, decide=clog)
