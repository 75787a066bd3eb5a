from __future__ import annotations

import pytest

from tunnel.dial_address import DialAddress
from tunnel.proxy_settings import NO_PROXIES, ProxySettings, ProxyUrl

PROXY = ProxyUrl(scheme="http", host="proxy.test", port=3128)


def is_exempt(no_proxy: str, address: str) -> bool:
    settings = ProxySettings(https_proxy=PROXY, no_proxy=no_proxy)
    return settings.for_address(DialAddress.parse(address)) is None


@pytest.mark.parametrize(
    ("no_proxy", "address", "expected"),
    [
        ("", "https://kas.test", False),
        ("*", "https://kas.test", True),
        ("other.test, *", "https://kas.test", True),
        ("kas.test", "https://kas.test", True),
        ("KAS.test", "https://kas.TEST", True),
        ("kas.test.", "https://kas.test", True),
        ("kas.test", "https://kas.test.", True),
        ("test", "https://kas.test", True),
        ("as.test", "https://kas.test", False),
        (".test", "https://kas.test", True),
        (".kas.test", "https://kas.test", False),
        (".kas.test", "https://eu.kas.test", True),
        ("*.kas.test", "https://eu.kas.test", True),
        ("*.kas.test", "https://kas.test", False),
        ("kas.test", "https://eu.kas.test", True),
        ("kas.test:443", "https://kas.test", True),
        ("kas.test:8443", "https://kas.test", False),
        ("kas.test:8443", "https://kas.test:8443", True),
        ("kas.test:port", "https://kas.test", True),
        ("other.test,kas.test", "https://kas.test", True),
        ("other.test kas.test", "https://kas.test", True),
        (" , ,", "https://kas.test", False),
        (".", "https://kas.test", False),
        (":443", "https://kas.test", False),
        ("10.1.2.3", "https://10.1.2.3", True),
        ("10.1.2.3", "https://10.1.2.4", False),
        ("10.1.2.3:443", "https://10.1.2.3", True),
        ("10.1.2.3:80", "https://10.1.2.3", False),
        ("10.0.0.0/8", "https://10.1.2.3", True),
        ("10.0.0.1/8", "https://10.1.2.3", True),
        ("10.0.0.0/8", "https://11.1.2.3", False),
        ("10.0.0.0/8", "https://kas.test", False),
        ("2.3", "https://10.1.2.3", False),
        ("fd00::/8", "https://[fd00::1]", True),
        ("fd00::/8", "https://10.1.2.3", False),
        ("[fd00::1]:443", "https://[fd00::1]", True),
        ("[fd00::1]", "https://[fd00::1]", True),
        ("[fd00::1]:80", "https://[fd00::1]", False),
        ("fd00::1", "https://[fd00::1]", True),
        ("", "https://localhost", True),
        ("", "https://127.0.0.9", True),
        ("", "https://[::1]", True),
    ],
)
def test_no_proxy_means_what_it_means_to_go_programs(no_proxy, address, expected):
    assert is_exempt(no_proxy, address) is expected


def test_the_scheme_of_the_address_chooses_the_proxy():
    other = ProxyUrl(scheme="http", host="other.test", port=80)
    settings = ProxySettings(https_proxy=PROXY, http_proxy=other)
    assert settings.for_address(DialAddress.parse("wss://kas.test")) is PROXY
    assert settings.for_address(DialAddress.parse("ws://kas.test")) is other
    assert NO_PROXIES.for_address(DialAddress.parse("wss://kas.test")) is None


@pytest.mark.parametrize(
    ("environment", "https_proxy", "http_proxy"),
    [
        ({}, None, None),
        ({"HTTPS_PROXY": "http://a:1"}, "http://a:1", None),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:2"}, "http://b:2", None),
        ({"https_proxy": "", "HTTPS_PROXY": "http://a:1"}, "http://a:1", None),
        ({"HTTP_PROXY": " a:1 "}, None, "http://a:1"),
        ({"HTTP_PROXY": "https://a", "HTTPS_PROXY": "a"}, "http://a:80", "https://a:443"),
        ({"HTTPS_PROXY": "https://[fd00::1]:3128"}, "https://[fd00::1]:3128", None),
    ],
)
def test_the_usual_variables_are_read(environment, https_proxy, http_proxy):
    settings = ProxySettings.from_environment(environment)
    assert (settings.https_proxy and str(settings.https_proxy)) == https_proxy
    assert (settings.http_proxy and str(settings.http_proxy)) == http_proxy


def test_exceptions_are_read_in_either_case():
    assert ProxySettings.from_environment({"NO_PROXY": "a"}).no_proxy == "a"
    assert ProxySettings.from_environment({"NO_PROXY": "a", "no_proxy": "b"}).no_proxy == "b"


def test_credentials_are_decoded_and_never_shown():
    proxy = ProxyUrl.parse("http://user:p%40ss@proxy.test:3128")
    assert proxy.basic_credentials == b"Basic dXNlcjpwQHNz"
    assert "p@ss" not in repr(proxy)
    assert "p@ss" not in str(proxy)
    assert str(proxy) == "http://proxy.test:3128"
    assert PROXY.basic_credentials is None


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("socks5://user:hunter2@proxy.test", "HTTPS_PROXY: a proxy's address must begin with http:// or https://"),
        ("http://user:hunter2@proxy.test:port", "HTTPS_PROXY: a proxy's address is malformed"),
        ("http://user:hunter2@[proxy.test", "HTTPS_PROXY: a proxy's address is malformed"),
        ("http://user:hunter2@", "HTTPS_PROXY: a proxy's address names no host"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_refused_with_the_name_of_the_variable(value, words):
    with pytest.raises(ValueError, match=words) as caught:
        ProxySettings.from_environment({"HTTPS_PROXY": value})
    assert "hunter2" not in str(caught.value)
