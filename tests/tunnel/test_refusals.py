from __future__ import annotations

import pytest

from tunnel.errors import HandshakeError
from tunnel.handshake import Form, Hello, encode_refusal
from tunnel.http1.heads import HeadBuffer, parse_response_head
from tunnel.refusals import explain_garbage, explain_proxy_refusal, explain_refusal

HELLO = Hello(token="mla_secret", agent_version="0.1.0", replica="r", process="p")
ADDRESS = "https://kas.test"


def explain(message: bytes, *, form: Form = Form.UPGRADE, hello: Hello = HELLO) -> HandshakeError:
    buffer = HeadBuffer(message)
    block = buffer.take_head(100_000)
    assert block is not None
    head, _ = parse_response_head(block, b"GET")
    return explain_refusal(head, buffer.take_all(), hello=hello, form=form, address=ADDRESS)


def foreign(status: int, *lines: str, body: str = "") -> bytes:
    head = "".join(f"{line}\r\n" for line in lines)
    return f"HTTP/1.1 {status} X\r\n{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


NGINX = "Server: nginx"
HTML = "<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body>\x00\r\n</html>"


@pytest.mark.parametrize(
    ("answer", "reason", "text"),
    [
        (
            foreign(200, NGINX, body="<h1>Welcome to nginx!</h1>"),
            "not-a-kas",
            (
                "answered 200 instead of opening a tunnel: it is not a kas agent listener, or a proxy on the way removed "
                "the Upgrade header; check host and path, or try wss:// "
                "(Server: nginx, body: <h1>Welcome to nginx!</h1>)"
            ),
        ),
        (
            foreign(301, "Location: https://other.test/"),
            "redirect",
            "redirects to https://other.test/ (301), which is not followed: put the final address in the configuration",
        ),
        (
            foreign(301, "Location: https://other.test/", body="a page for browsers"),
            "redirect",
            "redirects to https://other.test/ (301), which is not followed: put the final address in the configuration",
        ),
        (
            foreign(302),
            "redirect",
            "redirects to nowhere (302), which is not followed: put the final address in the configuration",
        ),
        (
            foreign(308, "Location: http://x\x80y/"),
            "redirect",
            "redirects to http://x y/ (308), which is not followed: put the final address in the configuration",
        ),
        (
            foreign(400),
            "bad-request",
            "answered 400: it is no kas, or a proxy on the way does not let upgrades through",
        ),
        (foreign(401), "unauthorized", "asks for credentials (401), and is no kas: check host and path"),
        (
            foreign(403, body="blocked by policy"),
            "forbidden",
            (
                "forbidden (403) by something that is no kas: a firewall or an ingress in front of it "
                "(body: blocked by policy)"
            ),
        ),
        (
            foreign(404, NGINX),
            "not-found",
            "no kas at this host and path (404): check the address, and the ingress's routes (Server: nginx)",
        ),
        (
            foreign(407),
            "proxy-authentication",
            "a proxy on the way asks for credentials (407): set HTTPS_PROXY=http://user:password@host:port for it",
        ),
        (foreign(409), "not-a-kas", "answered 409, and is no kas: check host and path"),
        (
            foreign(426),
            "not-a-kas",
            "asks for another protocol (426), and is no kas: check host and path",
        ),
        (
            foreign(429, "Retry-After: 7"),
            "unavailable",
            "something in front of kas gets too many handshakes (429): trying again in 7 s",
        ),
        (
            foreign(500),
            "refused",
            "something that is no kas answered 500",
        ),
        (
            foreign(502, NGINX, body=HTML),
            "bad-gateway",
            (
                "something in front of kas answered 502: it does not reach kas, or does not let upgrades through "
                "(Server: nginx, body: <html> <head><title>502 Bad Gateway</title></head> <body> </html>)"
            ),
        ),
        (
            foreign(503),
            "unavailable",
            "something in front of kas takes no tunnels now (503): trying again later",
        ),
        (
            foreign(504),
            "bad-gateway",
            "something in front of kas answered 504: it does not reach kas, or does not let upgrades through",
        ),
    ],
)
def test_what_is_no_kas_is_named_with_what_to_check(answer, reason, text):
    error = explain(answer)
    assert str(error) == f"{ADDRESS}: {text}"
    assert error.reason == reason
    assert error.status == int(answer.split(b" ")[1])


def test_the_address_for_kubectl_is_not_the_one_for_agents():
    error = explain(foreign(401, "Moorline-Request-Id: 1", body='{"kind": "Status"}'))
    assert str(error) == (
        f"{ADDRESS}: this is where kas takes requests of kubectl (401); agents connect to another address of kas "
        "(agents.address in its configuration, port 8150 by default)"
    )
    assert error.reason == "wrong-listener"


def refused(status: int, message: str = "no", reason: str = "because", retry_after: float | None = None) -> bytes:
    return encode_refusal(HandshakeError(message, status=status, reason=reason, retry_after=retry_after))


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (400, "kas does not understand this agent's handshake (400): are both of fitting versions?"),
        (401, "kas refused the token (401): check that it is this agent's current token"),
        (403, "kas does not let this agent in (403)"),
        (404, "kas has no tunnels at this path (404): check the path in the address"),
        (409, "kas has a tunnel of this agent already (409)"),
        (500, "kas answered 500"),
        (503, "kas takes no tunnels now (503): trying again later"),
    ],
)
def test_the_words_of_a_kas_are_repeated_with_its_reason(status, text):
    error = explain(refused(status, message="the\tagent is paused"))
    assert str(error) == f"{ADDRESS}: {text} (kas says: the agent is paused)"
    assert error.reason == "because"


@pytest.mark.parametrize(
    ("theirs", "ours", "text"),
    [
        (b"2, 3", (1,), "kas speaks 2, 3, agentk 1; this agent is too old for kas: upgrade agentk"),
        (b"1", (2, 3), "kas speaks 1, agentk 2, 3; kas is too old for this agent: upgrade kas"),
        (b"x", (1,), "kas speaks none, agentk 1; kas is too old for this agent: upgrade kas"),
    ],
)
def test_versions_that_do_not_meet_say_who_is_too_old(theirs, ours, text):
    hello = Hello(token="mla_secret", agent_version="1", replica="r", process="p", versions=ours)
    answer = refused(426, reason="no-common-version").replace(b"moorline-versions: 1", b"moorline-versions: " + theirs)
    error = explain(answer, hello=hello)
    assert f"no common version of the tunnel protocol (426): {text} (kas says: no)" in str(error)


@pytest.mark.parametrize(("form", "other"), [(Form.UPGRADE, "wss://"), (Form.WEBSOCKET, "https://")])
def test_an_upgrade_that_was_removed_on_the_way_suggests_the_other_form(form, other):
    error = explain(refused(426, reason="upgrade-required"), form=form)
    assert f"a proxy on the way removed the Upgrade header; let it through, or try {other}" in str(error)
    assert f"or try {other}" in str(explain(foreign(200), form=form))


@pytest.mark.parametrize(
    ("status", "lines", "seconds"),
    [
        (503, ["Retry-After: 30"], 30.0),
        (503, ["Retry-After: 999999999999999999999"], 86_400.0),
        (503, ["Retry-After: soon"], None),
        (503, ["Retry-After: -5"], None),
        (429, ["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT", "Date: Sun, 06 Nov 1994 08:49:07 GMT"], 30.0),
        (429, ["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT", "Date: Mon, 07 Nov 1994 08:49:07 GMT"], 0.0),
        (429, ["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"], None),
        (429, ["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT", "Date: Sun, 06 Nov 1994 08:49:07 -0000"], None),
        (409, ["Retry-After: 30", "Moorline-Versions: 1"], 30.0),
        (404, ["Retry-After: 30"], None),
    ],
)
def test_the_time_to_wait_is_taken_from_answers_that_mean_it(status, lines, seconds):
    assert explain(foreign(status, *lines)).retry_after == seconds


@pytest.mark.parametrize("body", ["", "no json", "[1]", '{"error": 1, "message": "x"}', "[" * 4_000])
def test_a_refusal_that_is_not_as_agreed_is_still_explained(body):
    error = explain(foreign(401, "Moorline-Versions: 1", body=body))
    assert "kas refused the token (401)" in str(error)
    assert error.reason == "unauthorized"


def test_an_excerpt_has_a_bound():
    assert len(str(explain(foreign(502, "Server: " + "s" * 500, body="b" * 4_000)))) < 500


@pytest.mark.parametrize(
    ("received", "reason", "words"),
    [
        (b"", "no-answer", "the connection was closed without an answer: check the port"),
        (b"\x15\x03\x01\x00\x02\x02\x0a", "is-tls", "the address must say https:// or wss://"),
        (
            b"SSH-2.0-OpenSSH_9.6\r\n",
            "not-http",
            "the answer is not HTTP/1.1, it begins with 'SSH-2.0-OpenSSH_9.6': check the port",
        ),
    ],
)
def test_an_answer_that_is_no_http_is_described(received, reason, words):
    error = explain_garbage(received, address=ADDRESS)
    assert words in str(error)
    assert error.reason == reason


@pytest.mark.parametrize(
    ("status", "with_credentials", "reason", "words"),
    [
        (407, False, "proxy-authentication", "asks for credentials (407): set HTTPS_PROXY"),
        (407, True, "proxy-authentication", "refuses our credentials (407): check user and password"),
        (403, False, "proxy", "does not allow connections to kas.test:443 (403)"),
        (502, False, "proxy", "does not reach kas.test:443 (502)"),
        (400, False, "proxy", "answered 400 to CONNECT kas.test:443: is it an HTTP proxy? (body: nope)"),
    ],
)
def test_a_proxy_that_refuses_is_named(status, with_credentials, reason, words):
    buffer = HeadBuffer(foreign(status))
    head, _ = parse_response_head(buffer.take_head(1_000), b"CONNECT")
    error = explain_proxy_refusal(
        head,
        b"nope" if status == 400 else b"",
        proxy="http://proxy.test:3128",
        authority="kas.test:443",
        with_credentials=with_credentials,
    )
    assert str(error).startswith("proxy http://proxy.test:3128 ")
    assert words in str(error)
    assert error.reason == reason
