"""`moorline doctor`: each step of reaching kas, broken once. kas and agentk are real; what misbehaves is called fake."""

from __future__ import annotations

import contextlib
import datetime
import functools
import logging
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trustme
from support.fake_proxy import FakeProxy
from support.http2 import settings
from support.scripted_stack import Stack, authority, authority_pem, open_stack, until

from moorline.doctor.checks import Doctor
from moorline.doctor.findings import Finding, Findings, State, render
from moorline.doctor.presented import PresentedCertificate
from moorline.doctor.target import NO_TOKEN, Target, probe_hello
from operations.values import Address
from server.config import AccessConfig, AgentListenerConfig, KasConfig, OperationsConfig, ProxyConfig, TlsConfig
from server.kas import Kas
from tunnel.dial_address import DialAddress
from tunnel.errors import HandshakeError
from tunnel.h2.frames import PREFACE
from tunnel.handshake import encode_refusal
from tunnel.proxy_settings import NO_PROXIES, ProxySettings, ProxyUrl
from tunnel.transports.tls_contexts import client_context

LOOPBACK = Address("127.0.0.1", 0)
BASE_STEPS = ["address", "proxy", "DNS", "TCP", "TLS"]
ALL_STEPS = [*BASE_STEPS, "upgrade", "WebSocket", "clock", "token", "tunnel"]


class Report(dict[str, Finding]):
    """What was found, by step."""

    def states(self, state: State) -> list[str]:
        return [step for step, finding in self.items() if finding.state is state]

    @property
    def failed(self) -> list[str]:
        return self.states(State.FAILED)

    def words(self, step: str) -> str:
        return " ".join([self[step].text, *self[step].advice])


async def examine(
    address: str,
    *,
    token: str = NO_TOKEN,
    source: str = "a test",
    problem: str = "",
    ca: str | None = None,
    proxies: ProxySettings = NO_PROXIES,
    seconds: float = 5.0,
    ahead: datetime.timedelta = datetime.timedelta(),
) -> Report:
    """Run the doctor; ``ahead`` is how far this machine's clock is."""
    report = Report()

    def note(finding: Finding) -> None:
        assert finding.step not in report, "told twice"
        assert token == NO_TOKEN or token not in finding.text + " ".join(finding.advice)
        report[finding.step] = finding

    target = Target(
        address=DialAddress.parse(address),
        hello=probe_hello(token, "0.1.0"),
        token_source=source,
        token_problem=problem,
        tls=client_context(ca_data=ca or authority_pem(), system_cas=False, alpn=("http/1.1",)),
        proxies=proxies,
    )
    doctor = Doctor(
        target,
        Findings(note),
        step_seconds=seconds,
        now=lambda: datetime.datetime.now(datetime.UTC) + ahead,
    )
    with trio.fail_after(30):
        await doctor.run()
    return report


@contextlib.asynccontextmanager
async def kas_with(folder: Path, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """A kas that presents a certificate of the test's; yields the port for agents."""
    chain, key, access = folder / "kas.pem", folder / "kas.key", folder / "access.yaml"
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key.write_bytes(certificate.private_key_pem.bytes())
    access.write_text("agents: []\n")
    tls = TlsConfig(certificate_file=chain, key_file=key)
    config = KasConfig(
        agents=AgentListenerConfig(address=LOOPBACK, tls=tls),
        proxy=ProxyConfig(address=LOOPBACK, tls=tls),
        operations=OperationsConfig(address=LOOPBACK),
        access=AccessConfig(file=access),
    )
    async with trio.open_nursery() as nursery:
        addresses = await nursery.start(Kas(config).run)
        yield addresses.agents.port
        nursery.cancel_scope.cancel()


Talk = Callable[[trio.abc.Stream, bytes], Awaitable[None]]


@contextlib.asynccontextmanager
async def fake_peer(talk: Talk) -> AsyncIterator[int]:
    """Hands each connection to ``talk`` with the first request head on it; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)

    async def serve(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            stream = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:
                    return
                head += data
            await talk(stream, head)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def answering(answer: bytes) -> Talk:
    async def talk(stream: trio.abc.Stream, head: bytes) -> None:
        await stream.send_all(answer)
        await stream.aclose()

    return talk


def address_of(stack: Stack, scheme: str = "https") -> str:
    return f"{scheme}://127.0.0.1:{stack.addresses.agents.port}"


# --- all is well ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "first"), [("https", "upgrade"), ("wss", "WebSocket")])
async def test_where_all_is_well_every_step_says_so(tmp_path, scheme, first):
    async with open_stack(tmp_path) as stack:
        report = await examine(address_of(stack, scheme), token=stack.access.agent_token)

    assert report.states(State.OK) == list(report)
    assert sorted(report) == sorted(ALL_STEPS)
    assert list(report)[5] == first
    assert "it is agent edge's" in report["token"].text


async def test_the_agent_s_own_tunnel_stays_and_no_other_is_registered(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    async with open_stack(tmp_path) as stack:
        (before,) = stack.kas.registry.tunnels_of("edge")
        registered = []
        stack.kas.registry.register = registered.append
        report = await examine(address_of(stack), token=stack.access.agent_token)
        (after,) = stack.kas.registry.tunnels_of("edge")
        # One for each form of the handshake.
        await until(lambda: len(ended_tunnels(caplog)) == 2)
        assert after is before
        assert before.is_usable

    assert report.failed == []
    assert registered == []
    assert all(replica.startswith("doctor-") for replica in ended_tunnels(caplog)[:2])


def ended_tunnels(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The replicas of which kas said so."""
    return [record.replica for record in caplog.records if record.message == "tunnel ended"]


# --- DNS, TCP, proxy -----------------------------------------------------------------------------


async def test_a_name_that_does_not_resolve():
    report = await examine("https://kas.invalid:8150")

    assert report.failed == ["DNS"]
    assert "cannot resolve kas.invalid" in report["DNS"].text
    assert report.states(State.SKIPPED) == ["TCP", "TLS", "upgrade", "WebSocket", "clock", "token", "tunnel"]


async def test_a_port_at_which_nothing_listens():
    with trio.socket.socket() as unused:
        await unused.bind(("127.0.0.1", 0))
        report = await examine(f"https://127.0.0.1:{unused.getsockname()[1]}")

    assert report.failed == ["TCP"]
    assert report["TCP"].text == "cannot connect: Connection refused"
    assert "port 8150" in report.words("TCP")
    assert report["TLS"].text == "TCP has to work first"


async def test_the_port_that_is_meant_for_kubectl(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(f"https://127.0.0.1:{stack.addresses.proxy.port}", token=stack.access.agent_token)

    assert report.failed == ["upgrade", "WebSocket"]
    assert "this is where kas takes requests of kubectl (401)" in report["upgrade"].text
    assert "port 8150" in report["upgrade"].text


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not allow connections to 192.0.2.1:443 (403)"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "asks for credentials (407)"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "does not reach 192.0.2.1:443 (502)"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is not HTTP/1.1"),
    ],
)
async def test_a_proxy_that_refuses(answer, words):
    async with FakeProxy(answer=answer).running() as proxy:
        through = ProxySettings(https_proxy=ProxyUrl.parse(f"127.0.0.1:{proxy.port}"))
        report = await examine("https://192.0.2.1", proxies=through)

    assert report.failed == ["CONNECT"]
    assert words in report["CONNECT"].text
    assert report["proxy"].text == f"through http://127.0.0.1:{proxy.port}"


async def test_a_proxy_that_is_not_there():
    through = ProxySettings(https_proxy=ProxyUrl.parse("proxy.invalid:3128"))
    report = await examine("https://kas.example.com", proxies=through)

    assert report.failed == ["DNS"]
    assert "cannot resolve proxy.invalid" in report["DNS"].text
    assert "NO_PROXY exempts hosts" in report.words("DNS")
    assert "CONNECT" in report.states(State.SKIPPED)


async def test_through_a_proxy_all_is_well_and_the_proxy_does_not_see_the_token(tmp_path):
    async with (
        open_stack(tmp_path, with_agent=False) as stack,
        FakeProxy(target=stack.addresses.agents.port).running() as proxy,
    ):
        through = ProxySettings(https_proxy=ProxyUrl.parse(f"127.0.0.1:{proxy.port}"))
        # A name that only the proxy knows, and that kas's certificate is for.
        report = await examine("https://kas.example.com", token=stack.access.agent_token, proxies=through)

    assert report.failed == []
    assert report["CONNECT"].text == "the proxy connects to kas.example.com:443"
    assert stack.access.agent_token.encode() not in b"".join(proxy.received)
    assert len(proxy.received) == 2


async def test_a_host_that_no_proxy_exempts():
    unused = ProxySettings(https_proxy=ProxyUrl.parse("proxy.invalid:3128"), no_proxy="kas.invalid")
    report = await examine("https://kas.invalid", proxies=unused)

    assert "not used" in report["proxy"].text
    assert "cannot resolve kas.invalid" in report["DNS"].text


# --- TLS and the clock ---------------------------------------------------------------------------


async def test_a_ca_that_is_not_trusted(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(
            address_of(stack), token=stack.access.agent_token, ca=trustme.CA().cert_pem.bytes().decode()
        )

    assert report.failed == ["TLS"]
    assert "comes from a CA that is not trusted here" in report["TLS"].text
    assert "--ca-file" in report.words("TLS")
    assert "It was issued by" in report.words("TLS")
    assert report["upgrade"].text == "TLS has to work first"


async def test_a_certificate_for_another_name(tmp_path):
    async with kas_with(tmp_path, authority().issue_cert("kas.example.com")) as port:
        report = await examine(f"https://127.0.0.1:{port}")

    assert report.failed == ["TLS"]
    assert "is for other addresses than '127.0.0.1'" in report["TLS"].text
    assert "for kas.example.com, valid from" in report.words("TLS")


async def test_a_certificate_that_has_expired(tmp_path):
    expired = authority().issue_cert("127.0.0.1", not_after=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    async with kas_with(tmp_path, expired) as port:
        report = await examine(f"https://127.0.0.1:{port}")

    assert report.failed == ["TLS"]
    assert "has expired" in report["TLS"].text
    assert "2026-01-02 00:00 UTC" in report.words("TLS")
    # kas itself says what time it is, so the clock is not to blame.
    assert report["clock"].state is State.OK


async def test_a_certificate_that_seems_expired_since_the_clock_is_wrong(tmp_path):
    expired = authority().issue_cert("127.0.0.1", not_after=datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC))
    async with kas_with(tmp_path, expired) as port:
        report = await examine(f"https://127.0.0.1:{port}", ahead=datetime.timedelta(days=400))

    assert report.failed == ["TLS", "clock"]
    assert "this machine is 400 days ahead of who answered" in report["clock"].text


async def test_a_certificate_that_expires_soon_is_worth_a_word(tmp_path):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    async with kas_with(tmp_path, authority().issue_cert("127.0.0.1", not_after=soon)) as port:
        report = await examine(f"https://127.0.0.1:{port}", source="")

    assert report["TLS"].state is State.WARNING
    assert report.failed == []


@pytest.mark.parametrize(
    ("ahead", "state", "words"),
    [
        (datetime.timedelta(seconds=20), State.OK, "within 60 s"),
        (datetime.timedelta(minutes=3), State.WARNING, "3 minutes ahead of"),
        (datetime.timedelta(hours=-5, seconds=-30), State.FAILED, "5 hours behind"),
    ],
)
async def test_a_clock_that_differs_from_kas_s(tmp_path, ahead, state, words):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(address_of(stack), token=stack.access.agent_token, ahead=ahead)

    assert report["clock"].state is state
    assert words in report["clock"].text
    assert report["tunnel"].state is State.OK


async def test_a_port_that_speaks_plain_http():
    async with plain_http() as port:
        report = await examine(f"https://127.0.0.1:{port}")

    assert report.failed == ["TLS"]
    assert "received a plain HTTP answer" in report["TLS"].text
    assert "the port at which TLS ends" in report.words("TLS")


@contextlib.asynccontextmanager
async def plain_http() -> AsyncIterator[int]:
    """A fake: answers whatever comes first with 400, as an HTTP server does that is sent TLS."""

    async def serve(stream: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.receive_some()
            await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(functools.partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_a_port_that_speaks_tls_where_the_address_says_http(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(address_of(stack, "http"), token=stack.access.agent_token)

    assert report["TLS"].state is State.SKIPPED
    assert report.failed == ["upgrade", "WebSocket"]
    assert "begin the address with https://" in report.words("upgrade")


# --- silence -------------------------------------------------------------------------------------


async def test_a_port_that_takes_connections_and_says_nothing():
    with trio.socket.socket() as silent:
        await silent.bind(("127.0.0.1", 0))
        silent.listen()
        report = await examine(f"https://127.0.0.1:{silent.getsockname()[1]}", seconds=0.2)

    assert report.failed == ["TLS"]
    assert report["TLS"].text == "nothing came back within 0.2 s"
    assert "is it the right one?" in report.words("TLS")


async def test_a_server_that_does_not_answer_the_handshake():
    async def say_nothing(stream: trio.abc.Stream, head: bytes) -> None:
        await trio.sleep_forever()

    async with fake_peer(say_nothing) as port:
        report = await examine(f"https://127.0.0.1:{port}", seconds=0.2)

    assert report.failed == ["upgrade", "WebSocket"]
    assert "no answer within 0.2 s" in report["upgrade"].text


WELCOME = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: moorline/1\r\nMoorline-Version: 1\r\n"
    b"Moorline-Kas: fake\r\nMoorline-Tunnel: t\r\nMoorline-Agent: edge\r\n\r\n"
)


@pytest.mark.parametrize(
    ("behind", "words"),
    [
        (b"", "its SETTINGS did not arrive"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + bytes(100), "its SETTINGS did not arrive"),
        (PREFACE + settings(), "what is sent to it through the upgraded connection does not"),
    ],
)
async def test_an_upgraded_connection_that_something_holds_up(behind, words):
    async def hold_up(stream: trio.abc.Stream, head: bytes) -> None:
        await stream.send_all(WELCOME + behind)
        await trio.sleep_forever()

    async with fake_peer(hold_up) as port:
        report = await examine(f"https://127.0.0.1:{port}", token="mla_fake-token", seconds=0.3)

    assert report.failed == ["tunnel"]
    assert words in report["tunnel"].text


async def test_an_upgraded_connection_that_breaks():
    async with fake_peer(answering(WELCOME)) as port:
        report = await examine(f"https://127.0.0.1:{port}", token="mla_fake-token")

    assert report.failed == ["tunnel"]


# --- what stands in front of kas -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 200 OK\r\nServer: fake\r\n\r\nhello", "answered 200 instead of opening a tunnel"),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", "no kas at this host and path (404)"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "a proxy on the way does not let upgrades through"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "it does not reach kas, or does not let upgrades through"),
        (b"HTTP/1.1 301 Moved\r\nLocation: https://other.invalid/\r\n\r\n", "redirects to https://other.invalid/"),
    ],
)
async def test_an_ingress_that_leads_elsewhere(answer, words):
    async with fake_peer(answering(answer)) as port:
        report = await examine(f"https://127.0.0.1:{port}", token="mla_fake-token")

    assert report.failed == ["upgrade", "WebSocket"]
    assert words in report["upgrade"].text
    assert report["WebSocket"].text == f"does not pass either: the answer is the same ({answer.split()[1].decode()})"
    assert report["token"].state is State.SKIPPED


@pytest.mark.parametrize("scheme", ["https", "wss"])
async def test_two_answers_that_differ_are_both_told(scheme):
    answer_by_form = {"upgrade": b"HTTP/1.1 404 Not Found\r\n\r\n", "WebSocket": b"HTTP/1.1 403 Forbidden\r\n\r\n"}

    async def answer(stream: trio.abc.Stream, head: bytes) -> None:
        await stream.send_all(answer_by_form["upgrade" if b"Upgrade: moorline/1" in head else "WebSocket"])

    async with fake_peer(answer) as port:
        report = await examine(f"{scheme}://127.0.0.1:{port}", token="mla_fake-token")

    assert "(404)" in report["upgrade"].text
    assert "(403)" in report["WebSocket"].text


@pytest.mark.parametrize(("scheme", "other"), [("https", "wss"), ("wss", "https")])
async def test_an_ingress_that_passes_one_form_only_has_the_other_recommended(tmp_path, scheme, other):
    blocked = b"moorline/1" if scheme == "https" else b"websocket"
    async with open_stack(tmp_path, with_agent=False) as stack:

        async def pass_one_form(stream: trio.abc.Stream, head: bytes) -> None:
            if b"Upgrade: " + blocked in head:
                head = head.replace(b"Upgrade: " + blocked + b"\r\n", b"").replace(b"Connection: Upgrade\r\n", b"")
            inner = client_context(ca_data=authority_pem(), system_cas=False)
            tcp = await trio.open_tcp_stream("127.0.0.1", stack.addresses.agents.port)
            kas = trio.SSLStream(tcp, inner, server_hostname="127.0.0.1", https_compatible=True)
            await kas.send_all(head)
            async with kas, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, kas, stream)
                await _copy(stream, kas)
                nursery.cancel_scope.cancel()

        async with fake_peer(pass_one_form) as port:
            report = await examine(f"{scheme}://127.0.0.1:{port}", token=stack.access.agent_token)

    (failed,) = report.failed
    assert failed == ("upgrade" if scheme == "https" else "WebSocket")
    assert "removed the Upgrade header" in report[failed].text
    assert f"{other}://127.0.0.1:{port} works from here" in report.words(failed)
    assert report["tunnel"].state is State.OK


async def _copy(source: trio.abc.Stream, sink: trio.abc.Stream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await source.receive_some():
            await sink.send_all(data)
        await sink.aclose()


# --- token ---------------------------------------------------------------------------------------


async def test_a_token_that_kas_does_not_know(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(address_of(stack), token="mla_" + "x" * 43, source="/etc/moorline/token")

    assert report.failed == ["token"]
    assert report["token"].text == "kas does not know the token in /etc/moorline/token (401)"
    assert "kas token create --agent" in report.words("token")
    assert report["upgrade"].text == "the request reaches kas, which answers 401"
    assert report["tunnel"].state is State.SKIPPED


async def test_a_token_that_cannot_be_used_does_not_stop_the_other_steps(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(address_of(stack), problem="what /t holds is the token of a user")

    assert report.failed == ["token"]
    assert report["token"].text == "what /t holds is the token of a user"
    assert report["upgrade"].state is State.OK


async def test_without_a_token_everything_else_is_checked(tmp_path):
    async with open_stack(tmp_path, with_agent=False) as stack:
        report = await examine(address_of(stack), source="")

    assert report.failed == []
    assert report.states(State.SKIPPED) == ["token", "tunnel"]


async def test_a_kas_that_takes_no_tunnels_now():
    answer = encode_refusal(HandshakeError("kas is shutting down", status=503, reason="draining", retry_after=1.0))
    async with fake_peer(answering(answer)) as port:
        report = await examine(f"https://127.0.0.1:{port}", token="mla_fake-token")

    assert report.failed == ["tunnel"]
    assert "kas is shutting down" in report["tunnel"].text
    assert report["upgrade"].state is State.OK
    assert report["clock"].text == "nothing that answered gave the time"


# --- how it is shown -----------------------------------------------------------------------------


def test_a_finding_is_one_line_and_its_advice_is_set_in():
    finding = Finding("TLS", State.FAILED, "no", ["do " * 50, "and this"])
    first, *advice = render(finding, colour=False).splitlines()

    assert first == "failed   TLS        no"
    assert advice[0].startswith("                    - do do")
    assert all(len(line) <= 100 for line in advice)
    assert advice[-1] == "                    - and this"
    assert render(finding, colour=True).startswith("\x1b[1;31mfailed  \x1b[0m TLS")


def test_what_the_other_side_says_does_not_reach_the_terminal_unprinted():
    finding = Finding("TLS", State.FAILED, "issued by \x1b]0;gotcha\x07", ["\x1b[2J"])

    assert set(render(finding, colour=False)) & {"\x1b", "\x07"} == set()


def test_a_certificate_that_cannot_be_read_is_left_out():
    assert PresentedCertificate.parse(b"no certificate") is None
    assert PresentedCertificate.parse(None) is None
