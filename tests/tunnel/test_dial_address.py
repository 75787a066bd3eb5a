from __future__ import annotations

import pytest

from tunnel.dial_address import DialAddress
from tunnel.handshake import Form


@pytest.mark.parametrize(
    ("text", "host", "port", "prefix", "authority", "form", "is_encrypted"),
    [
        ("wss://kas.test", "kas.test", 443, "", "kas.test", Form.WEBSOCKET, True),
        ("https://KAS.test:8443/", "kas.test", 8443, "", "kas.test:8443", Form.UPGRADE, True),
        ("ws://10.0.0.1/moorline", "10.0.0.1", 80, "/moorline", "10.0.0.1", Form.WEBSOCKET, False),
        (" http://[fd00::1]:80/a/b/ ", "fd00::1", 80, "/a/b", "[fd00::1]", Form.UPGRADE, False),
        ("https://[::1]:444", "::1", 444, "", "[::1]:444", Form.UPGRADE, True),
    ],
)
def test_an_address_is_read_into_its_parts(text, host, port, prefix, authority, form, is_encrypted):
    address = DialAddress.parse(text)
    assert (address.host, address.port, address.path_prefix) == (host, port, prefix)
    assert (address.authority, address.form, address.is_encrypted) == (authority, form, is_encrypted)
    assert DialAddress.parse(str(address)) == address


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kas.test", "must begin with wss://"),
        ("kas.test:443", "must begin with wss://"),
        ("ftp://kas.test", "must begin with wss://"),
        ("https://", "names no host"),
        ("https://:443", "names no host"),
        ("https://kas_test!", "names no host"),
        ("https://kas.test:port", "is not an address"),
        ("https://kas.test:70000", "is not an address"),
        ("https://[fd00::1", "is not an address"),
        ("https://kas.test/?token=x", "only a path may follow"),
        ("https://kas.test/#x", "only a path may follow"),
        ("https://kas.test/ä", "only a path may follow"),
    ],
)
def test_what_is_no_address_is_refused_with_a_reason(text, words):
    with pytest.raises(ValueError, match=words):
        DialAddress.parse(text)


@pytest.mark.parametrize("text", ["https://user:hunter2@kas.test", "https://user:hunter2@kas.test:port"])
def test_credentials_are_refused_and_not_repeated(text):
    with pytest.raises(ValueError, match="credentials have no place") as caught:
        DialAddress.parse(text)
    assert "hunter2" not in str(caught.value)
