"""What single stages of a request cost: bytecodes that run, and nanoseconds of the quickest of many rounds.

The count is the same on every machine and under any load, so that a regression of a few percent is seen; it does not
see what happens inside of C functions, for which the nanoseconds are there. ``python -m benchmarks.micro``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from agent.identity_rules import check_request, request_fields
from operations.logs import LogConfig, configure_logging
from server.access_file import Grant
from server.access_log import AccessLog
from server.addressing import Addressing, credentials_of
from server.authorization import authorize
from server.directory import Caller
from server.exchange_record import Exchange
from server.forwarding import downstream_head, upstream_head
from server.metrics import ExchangeMetrics
from server.tokens import USER_PREFIX, digest, is_well_formed, new_token
from server.verbs import request_info
from tunnel import heads
from tunnel.h2.engine import TUNNEL_REQUESTER, TUNNEL_RESPONDER, Engine, Role
from tunnel.h2.events import DataReceived, RequestReceived, ResponseReceived
from tunnel.h2.hpack import HeaderDecoder, HeaderEncoder
from tunnel.http1.heads import encode_request_head, encode_response_head, parse_request_head, parse_response_head
from tunnel.identity import FIELD_NAME, Identity, decode_identity, encode_identity
from tunnel.messages import Fields, RequestHead

TOKEN = new_token(USER_PREFIX)
BODY = b"x" * 1024
RESPONSE = (
    b"HTTP/1.1 200 OK\r\nAudit-Id: 6b4c2f0a-7d1e-4c55-9a07-1f2e3d4c5b6a\r\nCache-Control: no-cache, private\r\n"
    b"Content-Type: application/json\r\nX-Kubernetes-Pf-Flowschema-Uid: 1bd8a4a3-3f4b-4c7a-9a36-7c0b7b1f7d11\r\n"
    b"X-Kubernetes-Pf-Prioritylevel-Uid: 9d2a1f0c-5c5b-4f43-8b52-d2a8c3e4f511\r\n"
    b"Date: Sat, 21 Nov 2026 05:00:00 GMT\r\nContent-Length: 1024\r\n"
)
CALLER = Caller(user="alice", credential_id="user/alice/default/0123", grants=(Grant(agent="*").for_user("alice"),))
ADDRESSING = Addressing()
ROUNDS = 40
CALLS = 200


def request_block(number: int) -> bytes:
    """The head of a request as kubectl sends it, unlike every other one."""
    return (
        b"GET /agents/edge/k8s/api/v1/namespaces/default/pods/web-%d HTTP/1.1\r\nHost: kas.example.com\r\n"
        b"User-Agent: kubectl/v1.31.0 (linux/amd64) kubernetes/9edcffc\r\nAccept: application/json\r\n"
        b"Authorization: Bearer %b\r\nKubectl-Session: %016x\r\nAccept-Encoding: gzip\r\n"
    ) % (number, TOKEN.encode(), number)


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
        request_id=f"{id(head) & 0xFFFF:016x}",
    )
    try:
        deciding.send(None)
    except StopIteration as stop:
        identity: Identity = stop.value
        return upstream_head(head, address, info, identity, credentials.fields)
    raise AssertionError


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
        self.response: Fields = []

    def run(self, request: Fields) -> None:
        """One request with its response, of 1 KiB."""
        kas, agent = self.kas, self.agent
        kas.open_stream(request, ended=True)
        (event,) = agent.receive(b"".join(kas.gather()), 0.0)
        assert isinstance(event, RequestReceived)
        agent.send_head(event.stream, self.response)
        agent.send_data(event.stream, BODY, ended=True)
        agent.release(event.stream)
        head, data = kas.receive(b"".join(agent.gather()), 0.0)
        assert isinstance(head, ResponseReceived)
        assert isinstance(data, DataReceived)
        kas.consume(data.stream, len(data.data))
        kas.take_drained()
        agent.take_drained()


def stages() -> dict[str, tuple[Callable[[Any], object], list[Any]]]:
    """By name: what is measured, and arguments for it that differ as those of real requests do."""
    blocks = [request_block(number) for number in range(CALLS)]
    parsed = [parse_request_head(block) for block in blocks]
    sent = [policy(head) for head in parsed]
    encoder, cycle = HeaderEncoder(), Cycle()
    decoder = HeaderDecoder(table_bytes=0, list_limit_bytes=1 << 20, cache_bytes=16_384)
    lists = [heads.request_fields(head) for head in sent]
    encoded = [encoder.encode(fields) for fields in lists]
    response, _ = parse_response_head(RESPONSE, b"GET")
    answer = heads.response_fields(response)
    cycle.response = answer
    packed = encoder.encode(answer)
    received = [heads.request_head(fields, ended=True) for fields in lists]
    identities = [Identity(mode="impersonate", user="alice", request_id=f"{number:016x}") for number in range(CALLS)]
    carried: list[Fields] = [[(FIELD_NAME, encode_identity(identity))] for identity in identities]
    address = ADDRESSING.address_of(parsed[0], credentials_of(parsed[0].fields))
    exchange = Exchange("0123456789abcdef", parsed[0], "127.0.0.1:5000", 0.0, CALLER, address)
    exchange.info = request_info(parsed[0], address.target)
    exchange.head_at, exchange.ended_at = 0.001, 0.0011
    exchange.completed()
    log, metrics = AccessLog(), ExchangeMetrics()
    authority = b"10.0.0.1:443"
    once = [None] * CALLS

    def for_the_cluster(head: RequestHead) -> bytes:
        fields = request_fields(head, check_request(head, ("impersonate",)))
        return encode_request_head(RequestHead(head.method, head.target, b"", fields), authority=authority)

    def count(_: object) -> None:
        metrics.started(exchange)
        metrics.head_sent(exchange)
        metrics.ended(exchange)

    return {
        "kas: parse a request head": (parse_request_head, blocks),
        "kas: policy": (policy, parsed),
        "identity block, encoding": (encode_identity, identities),
        "identity block, decoding": (decode_identity, carried),
        "HPACK, encoding a request": (encoder.encode, lists),
        "HPACK, decoding a request": (decoder.decode, encoded),
        "HPACK, encoding a response": (encoder.encode, [answer] * CALLS),
        "HPACK, decoding a response": (decoder.decode, [packed] * CALLS),
        "HTTP/2, request and response, both engines": (cycle.run, lists),
        "agentk: check and encode a request": (for_the_cluster, received),
        "agentk: parse a response head": (lambda _: parse_response_head(RESPONSE, b"GET"), once),
        "kas: response head for the caller": (lambda _: downstream_head(response, address, "0123456789abcdef"), once),
        "kas: encode a response head": (lambda _: encode_response_head(200, response.fields), once),
        "kas: access log line": (lambda _: log.ended(exchange), once),
        "kas: metrics": (count, once),
    }


def nanoseconds(work: Callable[[Any], object], arguments: list[Any]) -> float:
    """Of one call, in the quickest round."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter_ns()
        for argument in arguments:
            work(argument)
        best = min(best, time.perf_counter_ns() - started)
    return best / len(arguments)


def bytecodes(work: Callable[[Any], object], arguments: list[Any]) -> float:
    """That run in one call, once caches are warm. Instructions of the frames that call it are not counted."""
    count = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    for argument in arguments:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            work(argument)
        finally:
            sys.settrace(before)
    return count / len(arguments)


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python -m benchmarks.micro", description=__doc__).parse_args()
    with Path("/dev/null").open("w") as sink:
        configure_logging(LogConfig(format="json"), stream=sink)
        print("| stage | bytecodes | ns |\n|---|---|---|")
        for name, (work, arguments) in stages().items():
            quickest = nanoseconds(work, arguments)
            count = bytecodes(work, arguments)
            print(f"| {name} | {count:.0f} | {quickest:.0f} |")
        logging.getLogger().handlers.clear()


if __name__ == "__main__":
    main()
