"""One request for a tunnel by `moorline doctor`, in one of its two forms, and what came of it."""

from __future__ import annotations

import dataclasses
import datetime

import trio

from moorline.doctor.clock import read_date
from moorline.doctor.target import Target
from tunnel.dial_address import DialAddress
from tunnel.dialer import Answer, ask_kas, new_websocket_key, understand
from tunnel.errors import HandshakeError
from tunnel.h2.config import TUNNEL_RESPONDER
from tunnel.h2.engine import Engine, Role
from tunnel.h2.events import ConnectionFailed
from tunnel.handshake import Form, Welcome, encode_hello
from tunnel.refusals import is_from_agent_listener
from tunnel.transports.base import Transport
from tunnel.transports.carrier import Carrier
from tunnel.transports.websocket import WebSocketTransport

FORM_STEPS = {Form.UPGRADE: "upgrade", Form.WEBSOCKET: "WebSocket"}

_NOT_UNDERSTOOD = (400, 404, 405, 414, 431, 505)
_STRIPPED = ("upgrade-required", "websocket-version")


@dataclasses.dataclass(frozen=True, slots=True)
class Attempt:
    """What came back."""

    address: DialAddress
    welcome: Welcome | None = None
    refusal: HandshakeError | None = None
    is_kas: bool = False
    """A kas answered, and nothing in front of it."""
    date: datetime.datetime | None = None
    silence: str = ""
    """What was missing after the welcome; empty where nothing was."""

    @property
    def passes(self) -> bool:
        """Whether such a request reaches kas whole, whatever kas then says to it."""
        if self.welcome is not None:
            return True
        refusal = self.refusal
        assert refusal is not None
        return self.is_kas and refusal.status not in _NOT_UNDERSTOOD and refusal.reason not in _STRIPPED

    @property
    def is_stripped(self) -> bool:
        """Whether something on the way seems to have taken the upgrade away."""
        return self.refusal is not None and self.refusal.reason in (*_STRIPPED, "not-a-kas", "bad-request")

    @property
    def refuses_token(self) -> bool:
        """Whether kas answered that it does not know the token."""
        return self.is_kas and self.refusal is not None and self.refusal.status == 401

    @property
    def refusal_status(self) -> int:
        """The HTTP status of a refusal; 0 where there was none."""
        return 0 if self.refusal is None else self.refusal.status

    def is_refused_like(self, other: Attempt) -> bool:
        """Whether both were answered, with the same status and for the same reason."""
        if self.refusal is None or other.refusal is None or not self.refusal.status:
            return False
        return (self.refusal.status, self.refusal.reason) == (other.refusal.status, other.refusal.reason)

    @property
    def refusal_text(self) -> str:
        """Why there is no tunnel, without the address."""
        return str(self.refusal).removeprefix(f"{self.address}: ")

    @property
    def words(self) -> str:
        """How this form of the handshake went."""
        if self.welcome is not None:
            return f"kas {self.welcome.kas_id} answers 101"
        if self.passes and self.refusal is not None:
            return f"the request reaches kas, which answers {self.refusal.status}"
        return self.refusal_text


def other_form(form: Form) -> Form:
    """The other of the two."""
    return Form.WEBSOCKET if form is Form.UPGRADE else Form.UPGRADE


async def attempt(carrier: Carrier, address: DialAddress, target: Target, seconds: float) -> Attempt:
    """Ask for a tunnel on ``carrier`` and close it; whatever came of that. Raises nothing that the other side can cause."""
    key = new_websocket_key(address.form)
    request = encode_hello(
        target.hello,
        form=address.form,
        authority=address.authority,
        path_prefix=address.path_prefix,
        websocket_key=key,
        extra_headers=target.headers,
    )
    try:
        with trio.fail_after(seconds):
            answer = await ask_kas(carrier, request, address)
    except HandshakeError as error:
        carrier.abort()
        return Attempt(address, refusal=error)
    except trio.TooSlowError:
        carrier.abort()
        text = f"no answer within {seconds:g} s: check the port, and whether something on the way holds upgrades back"
        return Attempt(address, refusal=HandshakeError(text, reason="timeout"))
    except BaseException:
        carrier.abort()
        raise
    try:
        return await _judge(carrier, answer, address, target, key, seconds)
    finally:
        carrier.abort()


async def _judge(
    carrier: Carrier, answer: Answer, address: DialAddress, target: Target, key: bytes, seconds: float
) -> Attempt:
    date = read_date(answer)
    try:
        welcome = understand(answer, hello=target.hello, address=address, websocket_key=key)
    except HandshakeError as error:
        return Attempt(address, refusal=error, is_kas=is_from_agent_listener(answer.head), date=date)
    transport: Transport = carrier
    if address.form is Form.WEBSOCKET:
        transport = WebSocketTransport(carrier, client=True)
    silence = await _missing_settings(transport, seconds) or await _missing_end(transport, seconds)
    return Attempt(address, welcome=welcome, is_kas=True, date=date, silence=silence)


async def _missing_settings(transport: Transport, seconds: float) -> str:
    """Read until kas's SETTINGS are here. Ours are not sent: with them, kas would register a tunnel."""
    engine = Engine(Role.RESPONDER, TUNNEL_RESPONDER)
    with trio.move_on_after(seconds):
        try:
            while not engine.settings_received:
                data = await transport.receive_some()
                if not data or any(isinstance(event, ConnectionFailed) for event in engine.receive(data, 0.0)):
                    break
        except trio.BrokenResourceError:
            return "kas opened a tunnel, and then the connection broke"
    if engine.settings_received:
        return ""
    return "kas opened a tunnel, and then its SETTINGS did not arrive"


async def _missing_end(transport: Transport, seconds: float) -> str:
    """End our half: that kas then ends its own shows that what we send arrives there, too."""
    with trio.move_on_after(seconds):
        try:
            await transport.send_eof()
            while await transport.receive_some():
                pass
        except trio.BrokenResourceError:
            pass  # kas cuts what never became a tunnel
        return ""
    return "kas's SETTINGS arrive, but what is sent to it through the upgraded connection does not"
