"""Whether an agent on this machine would reach kas: the steps of `tunnel.dialer.dial`, one by one and in words.

It asks as agentk does and stops short of opening a tunnel: kas registers one when the agent's SETTINGS arrive, and those
are never sent. Its replica and process have names of their own, so that no agent's tunnel is replaced even then.
What to make of options and configuration is `moorline.doctor.command`'s business.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from moorline.doctor.attempts import FORM_STEPS, Attempt, attempt, other_form
from moorline.doctor.clock import ClockReading, read_date
from moorline.doctor.findings import Findings, State
from moorline.doctor.presented import PresentedCertificate
from moorline.doctor.target import Target
from tunnel.dialer import aborting_on_failure, ask_kas, ask_proxy, connect, resolve, start_tls
from tunnel.errors import HandshakeError
from tunnel.handshake import Form, tunnel_target
from tunnel.transports.carrier import Carrier
from tunnel.transports.tcp import format_address
from tunnel.transports.tls import TlsTransport
from tunnel.transports.tls_contexts import client_context

RENEWAL = datetime.timedelta(days=14)
"""A certificate that expires within this time is worth a warning."""

_ADVICE = {
    "dns": "Check the name, and the resolver of this machine or Pod (/etc/resolv.conf). Where only a proxy resolves names "
    "outside, set HTTPS_PROXY.",
    "unreachable": "Check host and port: kas listens for agents at agents.address, port 8150 by default. `refused` means "
    "that nothing listens there or that a firewall says so; `unreachable`, that there is no route.",
    "tls-not-tls": "Use the port at which TLS ends: for an ingress mostly 443, and TLS has to be set up for this host "
    "there. http:// and ws:// (with --insecure-plaintext) show the token to everybody on the way.",
    "tls-unknown-ca": "Give agentk the certificate of the CA that issued it: --ca-file, kas.ca_file. If that is a CA of your "
    "own firewall or proxy, it opens TLS on the way.",
    "tls-name-mismatch": "Use one of the names of the certificate in the address, or issue one for this name.",
    "tls-timeout": "The port takes connections and does not answer TLS: is it the right one?",
    "tls-cut-off": "Something ended the connection in the TLS handshake: a load balancer without a server behind it, or a "
    "firewall that looks into TLS.",
    "is-tls": "If TLS is spoken on this port, begin the address with https:// or wss://.",
}
_PROXY_ADVICE = (
    "The proxy is taken from HTTPS_PROXY, for plaintext addresses from HTTP_PROXY, and NO_PROXY exempts hosts. The "
    "certificate of an https:// proxy is checked against the system's CAs alone."
)
_DATES = ("tls-expired", "tls-not-yet-valid")
_CERTIFICATE = (*_DATES, "tls-unknown-ca", "tls-name-mismatch", "tls-certificate", "tls-wrong-purpose", "tls-revoked")


class _StepFailed(Exception):
    def __init__(self, step: str, reason: str, text: str) -> None:
        super().__init__(text)
        self.step = step
        self.reason = reason


class Doctor:
    """Checks one address. Makes everything, starts nothing."""

    def __init__(
        self,
        target: Target,
        findings: Findings,
        *,
        step_seconds: float,
        now: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.UTC),
    ) -> None:
        """``step_seconds`` is how long each step may take; ``now`` is the clock of this machine."""
        self._target = target
        self._address = target.address
        self._proxy = target.proxies.for_address(target.address)
        self._findings = findings
        self._step_seconds = step_seconds
        self._now = now
        self._date: datetime.datetime | None = None
        """What time it is for the other side."""

    async def run(self) -> None:
        """Take every step that can be taken and note how it went. Raises nothing that the other side can cause.

        Ends within a dozen times ``step_seconds``. Cancelled, it leaves nothing open.
        """
        self._tell_address()
        attempts: list[Attempt] = []
        try:
            carrier = await self._open(tell=True)
        except _StepFailed as failure:
            seen = await self._look_at_certificate(failure.reason) if failure.reason in _CERTIFICATE else ()
            self._findings.failed(failure.step, str(failure), *self._advice(failure), *seen)
            self._skip_behind(failure.step)
        else:
            attempts = await self._try_both_forms(carrier)
        self._tell_clock()
        self._tell_token(attempts)
        self._tell_tunnel(attempts)

    def _advice(self, failure: _StepFailed) -> list[str]:
        if self._proxy is not None and failure.step in ("DNS", "TCP", "CONNECT"):
            return [_PROXY_ADVICE]
        reason = "tls-timeout" if (failure.step, failure.reason) == ("TLS", "timeout") else failure.reason
        return [_ADVICE[reason]] if reason in _ADVICE else []

    def _skip_behind(self, step: str) -> None:
        """Tell of the steps that cannot be tried once ``step`` has failed."""
        steps = ["DNS", "TCP"]
        if self._proxy is not None:
            steps.append("CONNECT")
        if self._address.is_encrypted:
            steps.append("TLS")
        steps += [FORM_STEPS[self._address.form], FORM_STEPS[other_form(self._address.form)]]
        for behind in steps[steps.index(step) + 1 :]:
            self._findings.skipped(behind, f"{step} has to work first")

    def _tell_address(self) -> None:
        address, findings = self._address, self._findings
        how = "a WebSocket" if address.form is Form.WEBSOCKET else "an upgrade to moorline/1"
        tls = "TLS" if address.is_encrypted else "no TLS"
        findings.ok("address", f"{address}: {tls} to {format_address(address.host, address.port)}, then {how}")
        if self._proxy is not None:
            findings.ok("proxy", f"through {self._proxy}")
        elif self._target.proxies.https_proxy or self._target.proxies.http_proxy:
            findings.ok("proxy", "not used for this address (NO_PROXY, or a local one)")
        else:
            findings.ok("proxy", "none: HTTPS_PROXY is not set")

    async def _open(self, *, tell: bool, insecure: bool = False) -> Carrier:
        """A byte stream to what speaks HTTP at the address; tells what goes well. Raises `_StepFailed`."""
        dialled = self._proxy or self._address
        if tell:
            with self._step("DNS"):
                found = await resolve(dialled.host, dialled.port, what=str(dialled))
            self._tell_addresses(dialled.host, found)
        with self._step("TCP"):
            carrier: Carrier = await connect(dialled.host, dialled.port, what=str(dialled))
        async with aborting_on_failure(carrier):
            if tell:
                self._findings.ok("TCP", f"connected to {carrier.info.peer}")
            carrier = await self._pass_proxy(carrier, tell=tell)
            return await self._start_tls(carrier, tell=tell, insecure=insecure)

    def _tell_addresses(self, host: str, found: list[str]) -> None:
        if found == [host]:
            self._findings.ok("DNS", f"nothing to resolve: {host} is an address")
        else:
            self._findings.ok("DNS", f"{host} is {', '.join(found)}")

    async def _pass_proxy(self, carrier: Carrier, *, tell: bool) -> Carrier:
        if self._proxy is None:
            return carrier
        authority = format_address(self._address.host, self._address.port)
        with self._step("CONNECT"):
            carrier = await ask_proxy(carrier, self._proxy, authority)
        if tell:
            self._findings.ok("CONNECT", f"the proxy connects to {authority}")
        return carrier

    async def _start_tls(self, carrier: Carrier, *, tell: bool, insecure: bool) -> Carrier:
        if not self._address.is_encrypted:
            if tell:
                self._findings.skipped("TLS", f"not with {self._address.scheme}://")
            return carrier
        context = client_context(alpn=("http/1.1",), insecure=True) if insecure else self._target.tls
        with self._step("TLS"):
            transport = await start_tls(carrier, context, self._address.host, what=str(self._address))
        if tell:
            self._tell_tls(transport)
        return transport

    def _tell_tls(self, transport: TlsTransport) -> None:
        presented = PresentedCertificate.parse(transport.peer_certificate)
        text = f"{transport.info.tls_version}, the certificate is trusted and for {self._address.host}"
        if presented is None:
            self._findings.ok("TLS", text)
            return
        text += f", until {presented.not_after:%Y-%m-%d}"
        if presented.not_after - self._now() < RENEWAL:
            self._findings.add("TLS", State.WARNING, text, "Renew the certificate soon.")
        else:
            self._findings.ok("TLS", text)

    @contextmanager
    def _step(self, name: str) -> Iterator[None]:
        """One step within its time; what goes wrong becomes `_StepFailed`."""
        try:
            with trio.fail_after(self._step_seconds):
                yield
        except trio.TooSlowError:
            text, reason = f"nothing came back within {self._step_seconds:g} s", "timeout"
            if name in ("DNS", "TCP"):
                text = f"no answer within {self._step_seconds:g} s: a firewall drops it, or host and port are wrong"
        except HandshakeError as error:
            text, reason = self._without_address(error), error.reason
        else:
            return
        raise _StepFailed(name, reason, text)

    def _without_address(self, error: HandshakeError) -> str:
        return str(error).removeprefix(f"{self._address}: ").removeprefix(f"{self._proxy}: ")

    async def _look_at_certificate(self, reason: str) -> Sequence[str]:
        """What the certificate says that was not accepted. No token is sent on this connection."""
        try:
            carrier = await self._open(tell=False, insecure=True)
        except _StepFailed:
            return ()
        try:
            assert isinstance(carrier, TlsTransport)
            presented = PresentedCertificate.parse(carrier.peer_certificate)
            if reason in _DATES:
                self._date = await self._ask_the_time(carrier)
        finally:
            carrier.abort()
        if presented is None:
            return ()
        validity = f"{presented.not_before:%Y-%m-%d %H:%M} to {presented.not_after:%Y-%m-%d %H:%M} UTC"
        names = ", ".join(presented.names) or "no name at all"
        return [f"It was issued by {presented.issuer} for {names}, valid from {validity}."]

    async def _ask_the_time(self, carrier: Carrier) -> datetime.datetime | None:
        address = self._address
        request = b"GET %b HTTP/1.1\r\nHost: %b\r\nConnection: close\r\n\r\n" % (
            tunnel_target(address.path_prefix),
            address.authority.encode("ascii"),
        )
        try:
            with trio.fail_after(self._step_seconds):
                return read_date(await ask_kas(carrier, request, address))
        except (HandshakeError, trio.TooSlowError):
            return None

    # --- what kas says ----------------------------------------------------------------------------

    async def _try_both_forms(self, carrier: Carrier) -> list[Attempt]:
        """Ask for a tunnel in the form of the address, then in the other, each on a connection of its own."""
        configured = await attempt(carrier, self._address, self._target, self._step_seconds)
        self._date = configured.date
        other_address = dataclasses.replace(self._address, scheme=_other_scheme(self._address.scheme))
        try:
            other = await attempt(await self._open(tell=False), other_address, self._target, self._step_seconds)
        except _StepFailed as failure:
            problem = HandshakeError(f"{failure.step} did not work the second time", reason=failure.reason)
            other = Attempt(other_address, refusal=problem)
        self._date = self._date or other.date
        self._tell_configured_form(configured, other)
        self._tell_other_form(configured, other)
        return [configured, other]

    def _tell_configured_form(self, configured: Attempt, other: Attempt) -> None:
        step = FORM_STEPS[configured.address.form]
        if configured.passes:
            self._findings.ok(step, configured.words)
            return
        advice = []
        reason = configured.refusal.reason if configured.refusal is not None else ""
        if reason in ("is-tls", "no-answer") and not self._address.is_encrypted:
            advice.append(_ADVICE["is-tls"])
        if other.passes:
            advice.append(f"{other.address} works from here: use that as the address (--kas-address, kas.address).")
        elif configured.is_stripped:
            advice.append(
                "Neither form passes: have the ingress or proxy pass the Upgrade header on, or let TCP through to kas. "
                "The documentation has configurations that work (Load balancers)."
            )
        self._findings.failed(step, configured.words, *advice)

    def _tell_other_form(self, configured: Attempt, other: Attempt) -> None:
        step = FORM_STEPS[other.address.form]
        if other.passes:
            also = f"; {other.address} would do as well" if configured.passes else ""
            self._findings.ok(step, other.words + also)
        elif configured.passes:
            self._findings.add(step, State.WARNING, f"{other.words}; not needed for {configured.address}")
        elif configured.is_refused_like(other):
            self._findings.failed(step, f"does not pass either: the answer is the same ({other.refusal_status})")
        else:
            self._findings.failed(step, other.words)

    def _tell_clock(self) -> None:
        if self._date is None:
            self._findings.skipped("clock", "nothing that answered gave the time")
            return
        reading = ClockReading(here=self._now(), there=self._date)
        self._findings.add("clock", reading.state, reading.text, *reading.advice)

    def _tell_token(self, attempts: list[Attempt]) -> None:
        target, step = self._target, "token"
        welcome = next((one.welcome for one in attempts if one.welcome is not None), None)
        refused = next((one for one in attempts if one.refuses_token), None)
        if target.token_problem:
            self._findings.failed(step, target.token_problem, _TOKEN_ADVICE)
        elif not target.token_source:
            self._findings.skipped(step, "none was given (--token-file, AGENTK_TOKEN)")
        elif welcome is not None:
            self._findings.ok(step, f"kas {welcome.kas_id} takes it: it is agent {welcome.agent_id}'s")
        elif refused is not None:
            self._findings.failed(step, f"kas does not know the token in {target.token_source} (401)", _TOKEN_ADVICE)
        else:
            self._findings.skipped(step, "kas did not get to see it")

    def _tell_tunnel(self, attempts: list[Attempt]) -> None:
        welcomed = next((one for one in attempts if one.welcome is not None), None)
        busy = next((one for one in attempts if one.passes and not one.refuses_token), None)
        if welcomed is not None and not welcomed.silence:
            self._findings.ok("tunnel", "kas's first SETTINGS arrived; closed again, nothing was registered")
        elif welcomed is not None:
            self._findings.failed(
                "tunnel", welcomed.silence, "Something on the way cuts or holds upgraded connections."
            )
        elif busy is not None:
            self._findings.failed("tunnel", busy.refusal_text)
        elif any(one.passes for one in attempts):
            self._findings.skipped("tunnel", "kas opens one for a token that it knows")
        else:
            self._findings.skipped("tunnel", "kas has to answer first")


_TOKEN_ADVICE = (
    "`kas token list` shows which agents have tokens, `kas token create --agent ID` makes one and shows it once."
)


def _other_scheme(scheme: str) -> str:
    return {"https": "wss", "wss": "https", "http": "ws", "ws": "http"}[scheme]
