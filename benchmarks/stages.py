"""The stages of a request, each as a function that can be run by itself on arguments as real requests have them.

What is measured is the way through kas and agentk without sockets and tasks: heads of HTTP/1.1, field rules, policy,
identity, HPACK, both HTTP/2 engines, bodies, watches, the access log. Arguments are made for a range of numbers, and
those of one number are unlike those of every other one, so that nothing is found in a cache that would not be found
there in earnest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from agent.identity_rules import check_request, request_fields
from server.access_file import Grant
from server.access_log import AccessLog
from server.addressing import Addressing, credentials_of
from server.authorization import authorize
from server.directory import Caller
from server.exchange_record import Exchange
from server.forwarding import downstream_head, upstream_head
from server.metrics import ExchangeMetrics
from server.tokens import USER_PREFIX, digest, is_well_formed
from server.verbs import request_info
from server.watches import Framer, framer_for
from tunnel import heads
from tunnel.h2.config import FRONT_RESPONDER
from tunnel.h2.engine import TUNNEL_REQUESTER, TUNNEL_RESPONDER, Engine, Role
from tunnel.h2.events import DataReceived, RequestReceived, ResponseReceived
from tunnel.h2.hpack import HeaderDecoder, HeaderEncoder
from tunnel.http1.framing import ChunkedDecoder, LengthDecoder, encode_chunk
from tunnel.http1.heads import encode_request_head, encode_response_head, parse_request_head, parse_response_head
from tunnel.identity import FIELD_NAME, Identity, decode_identity, encode_identity
from tunnel.messages import Fields, RequestHead

TOKEN = USER_PREFIX + ("Moorline0123456789" * 3)[:43]
"""Always the same one: how long a block of HPACK is depends on its letters."""
BODY = b"x" * 1024
PIECE = b"x" * 65_536
EVENT = (
    b'{"type":"MODIFIED","object":{"kind":"Pod","apiVersion":"v1","metadata":{"name":"web-%d","namespace":"default",'
    b'"resourceVersion":"%d","labels":{"app":"web"}},"spec":{"nodeName":"node-1"},"status":{"phase":"Running"}}}\n'
)
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nAudit-Id: 6b4c2f0a-7d1e-4c55-9a07-%012d\r\nCache-Control: no-cache, private\r\n"
    b"Content-Type: application/json\r\nX-Kubernetes-Pf-Flowschema-Uid: 1bd8a4a3-3f4b-4c7a-9a36-7c0b7b1f7d11\r\n"
    b"X-Kubernetes-Pf-Prioritylevel-Uid: 9d2a1f0c-5c5b-4f43-8b52-d2a8c3e4f511\r\n"
    b"Date: Sat, 21 Nov 2026 05:00:00 GMT\r\nContent-Length: 1024\r\n"
)
CALLER = Caller(user="alice", credential_id="user/alice/default/0123", grants=(Grant(agent="*").for_user("alice"),))
ADDRESSING = Addressing()
AUTHORITY = b"10.0.0.1:443"


@dataclasses.dataclass(frozen=True)
class Stage:
    """``work`` is called with one argument after the other of those that ``arguments`` makes for a range of numbers."""

    name: str
    work: Callable[[Any], object]
    arguments: Callable[[Iterable[int]], list[Any]]


def request_block(number: int) -> bytes:
    """The head of a request as kubectl sends it, unlike every other one."""
    return (
        b"GET /agents/edge/k8s/api/v1/namespaces/default/pods/web-%06d HTTP/1.1\r\nHost: kas.example.com\r\n"
        b"User-Agent: kubectl/v1.31.0 (linux/amd64) kubernetes/9edcffc\r\nAccept: application/json\r\n"
        b"Authorization: Bearer %b\r\nKubectl-Session: %016x\r\nAccept-Encoding: gzip\r\n"
    ) % (number, TOKEN.encode(), number)


def parsed(number: int) -> RequestHead:
    """The same, as kas has parsed it."""
    return parse_request_head(request_block(number))


def policy(head: RequestHead) -> RequestHead:
    """What kas decides between a parsed request and the head that the agent gets."""
    credentials = credentials_of(head.fields)
    if not is_well_formed(credentials.token, USER_PREFIX) or not digest(credentials.token):
        raise AssertionError
    address = ADDRESSING.address_of(head, credentials)
    info = request_info(head, address.target)
    deciding = authorize(
        CALLER,
        address.agent_id,
        agent_exists=True,
        info=info,
        fields=credentials.fields,
        request_id="0123456789abcdef",
    )
    try:
        deciding.send(None)
    except StopIteration as stop:
        identity: Identity = stop.value
        return upstream_head(head, address, info, identity, credentials.fields)
    raise AssertionError


def tunnelled(number: int) -> Fields:
    """The field list of a request in the tunnel."""
    return heads.request_fields(policy(parsed(number)))


def answered(number: int) -> Fields:
    """The field list of a response in the tunnel."""
    response, _ = parse_response_head(RESPONSE % number, b"GET")
    return heads.response_fields(response)


class Cycle:
    """Two engines, back to back."""

    def __init__(self) -> None:
        self.kas = Engine(Role.REQUESTER, TUNNEL_REQUESTER)
        self.agent = Engine(Role.RESPONDER, TUNNEL_RESPONDER)
        for engine in (self.kas, self.agent):
            engine.start()
        for _ in range(3):
            self.agent.receive(b"".join(self.kas.gather()), 0.0)
            self.kas.receive(b"".join(self.agent.gather()), 0.0)

    def run(self, messages: tuple[Fields, Fields]) -> None:
        """One request with its response, of 1 KiB."""
        request, response = messages
        kas, agent = self.kas, self.agent
        kas.open_stream(request, ended=True)
        (event,) = agent.receive(b"".join(kas.gather()), 0.0)
        assert isinstance(event, RequestReceived)
        agent.send_head(event.stream, response)
        agent.send_data(event.stream, BODY, ended=True)
        agent.release(event.stream)
        head, data = kas.receive(b"".join(agent.gather()), 0.0)
        assert isinstance(head, ResponseReceived)
        assert isinstance(data, DataReceived)
        kas.consume(data.stream, len(data.data))
        kas.take_drained()
        agent.take_drained()

    def open(self) -> None:
        """A stream that stays open, for `carry`."""
        self.stream = self.kas.open_stream(tunnelled(0), ended=True)
        (event,) = self.agent.receive(b"".join(self.kas.gather()), 0.0)
        assert isinstance(event, RequestReceived)
        self.answer = event.stream
        self.agent.send_head(self.answer, answered(0))
        self.kas.receive(b"".join(self.agent.gather()), 0.0)

    def carry(self, piece: bytes) -> None:
        """A piece of a long response body, with the credit that goes back for it."""
        kas, agent = self.kas, self.agent
        agent.send_data(self.answer, piece)
        for event in kas.receive(b"".join(agent.gather()), 0.0):
            if isinstance(event, DataReceived):
                kas.consume(event.stream, len(event.data))
        agent.receive(b"".join(kas.gather()), 0.0)
        kas.take_drained()
        agent.take_drained()


def _cycle_with_stream() -> Cycle:
    cycle = Cycle()
    cycle.open()
    return cycle


def stages() -> list[Stage]:
    """All of them, in the order in which a request meets them."""
    return [*_request_stages(), *_response_stages(), *_engine_stages(), *_body_stages(), *_account_stages()]


def _each(make: Callable[[int], Any]) -> Callable[[Iterable[int]], list[Any]]:
    return lambda numbers: [make(number) for number in numbers]


def _request_stages() -> list[Stage]:
    encoder = HeaderEncoder()
    decoder = HeaderDecoder(table_bytes=0, list_limit_bytes=1 << 20, cache_bytes=TUNNEL_RESPONDER.line_cache_bytes)

    def identity(number: int) -> Identity:
        return Identity(mode="impersonate", user="alice", request_id=f"{number:016x}")

    def received(number: int) -> RequestHead:
        return heads.request_head(tunnelled(number), ended=True)

    def for_the_cluster(head: RequestHead) -> bytes:
        fields = request_fields(head, check_request(head, ("impersonate",)))
        return encode_request_head(RequestHead(head.method, head.target, b"", fields), authority=AUTHORITY)

    return [
        Stage("kas: parse a request head", parse_request_head, _each(request_block)),
        Stage("kas: policy and field rules of a request", policy, _each(parsed)),
        Stage("kas: encode an identity block", encode_identity, _each(identity)),
        Stage("kas: field list of a request", heads.request_fields, _each(lambda number: policy(parsed(number)))),
        Stage("kas: HPACK, encode a request", encoder.encode, _each(tunnelled)),
        Stage(
            "agentk: HPACK, decode a request", decoder.decode, _each(lambda number: encoder.encode(tunnelled(number)))
        ),
        Stage("agentk: head of a field list", lambda fields: heads.request_head(fields, ended=True), _each(tunnelled)),
        Stage(
            "agentk: decode an identity block",
            decode_identity,
            _each(lambda n: [(FIELD_NAME, encode_identity(identity(n)))]),
        ),
        Stage("agentk: check, build and encode a request", for_the_cluster, _each(received)),
    ]


def _response_stages() -> list[Stage]:
    encoder, front = HeaderEncoder(), HeaderEncoder()
    decoder = HeaderDecoder(table_bytes=0, list_limit_bytes=1 << 20, cache_bytes=TUNNEL_REQUESTER.line_cache_bytes)
    address = ADDRESSING.address_of(parsed(0), credentials_of(parsed(0).fields))

    def response(number: int) -> Any:
        return heads.response_head(answered(number), ended=False)

    def to_the_caller(head: Any) -> Any:
        return downstream_head(head, address, "0123456789abcdef")

    return [
        Stage(
            "agentk: parse a response head",
            lambda block: parse_response_head(block, b"GET"),
            _each(lambda n: RESPONSE % n),
        ),
        Stage("agentk: HPACK, encode a response", encoder.encode, _each(answered)),
        Stage("kas: HPACK, decode a response", decoder.decode, _each(lambda number: encoder.encode(answered(number)))),
        Stage("kas: head of a field list", lambda fields: heads.response_head(fields, ended=False), _each(answered)),
        Stage("kas: field rules of a response", to_the_caller, _each(response)),
        Stage("kas: encode a response head", lambda head: encode_response_head(200, head.fields), _each(response)),
        Stage(
            "kas: HPACK, encode a response for an HTTP/2 caller",
            front.encode,
            _each(lambda number: heads.response_fields(to_the_caller(response(number)))),
        ),
    ]


def _engine_stages() -> list[Stage]:
    def exchange(number: int) -> tuple[Fields, Fields]:
        return tunnelled(number), answered(number)

    return [
        Stage("HTTP/2: request and response, both engines", Cycle().run, _each(exchange)),
        Stage("HTTP/2: 64 KiB of a body, both engines", _cycle_with_stream().carry, _each(lambda _: PIECE)),
        _front_stage(),
    ]


def _front_stage() -> Stage:
    """A caller's HTTP/2: HPACK with Huffman and a dynamic table, as the `hpack` package of a foreign client makes it."""
    import hpack

    foreign = hpack.Encoder()
    decoder = HeaderDecoder(
        table_bytes=FRONT_RESPONDER.header_table_bytes,
        list_limit_bytes=FRONT_RESPONDER.max_header_list_bytes,
        cache_bytes=FRONT_RESPONDER.line_cache_bytes,
    )

    def block(number: int) -> bytes:
        head = parsed(number)
        pseudo = [
            (b":method", head.method),
            (b":scheme", b"https"),
            (b":authority", head.authority),
            (b":path", head.target),
        ]
        encoded: bytes = foreign.encode([*pseudo, *((name.lower(), value) for name, value in head.fields)])
        return encoded

    return Stage("kas: HPACK, decode a request of an HTTP/2 caller", decoder.decode, _each(block))


def _body_stages() -> list[Stage]:
    def body_of_length(data: bytes) -> None:
        LengthDecoder(len(data)).feed(data)

    chunked = ChunkedDecoder()
    chunked.feed(encode_chunk(b"x"))  # the first chunk is preceded by nothing
    framer = framer_for(b"application/json", None)
    assert framer is not None
    followed: Framer = framer

    return [
        Stage("agentk: body of known length, one piece", body_of_length, _each(lambda _: BODY)),
        Stage("agentk: decode a chunk", chunked.feed, _each(lambda number: encode_chunk(EVENT % (number, number)))),
        Stage("kas: encode a chunk", encode_chunk, _each(lambda number: EVENT % (number, number))),
        Stage("kas: follow an event of a watch", followed.feed, _each(lambda number: EVENT % (number, number))),
    ]


def _account_stages() -> list[Stage]:
    log, metrics = AccessLog(), ExchangeMetrics()

    def ended(number: int) -> Exchange:
        head = parsed(number)
        address = ADDRESSING.address_of(head, credentials_of(head.fields))
        exchange = Exchange(f"{number:016x}", head, "127.0.0.1:5000", 0.0, CALLER, address)
        exchange.info = request_info(head, address.target)
        exchange.head_at, exchange.ended_at = 0.001, 0.0011
        exchange.completed()
        return exchange

    def count(exchange: Exchange) -> None:
        metrics.started(exchange)
        metrics.head_sent(exchange)
        metrics.ended(exchange)

    return [
        Stage("kas: access log line", log.ended, _each(ended)),
        Stage("kas: metrics of an exchange", count, _each(ended)),
    ]
