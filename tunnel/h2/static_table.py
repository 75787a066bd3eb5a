"""The static table of HPACK (RFC 7541, appendix A), and the field names whose values are kept out of every cache."""

from __future__ import annotations

import functools
import re
from typing import Final

from tunnel.messages import Field

STATIC_FIELDS: Final[tuple[Field, ...]] = (
    (b"", b""),  # index 0 is not used
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
)
"""By index; the first entry fills the place of index 0."""

LAST_STATIC_INDEX: Final = len(STATIC_FIELDS) - 1

CREDENTIAL_NAMES: Final = frozenset(
    (
        b"authorization",
        b"cookie",
        b"set-cookie",
        b"proxy-authorization",
        b"moorline-identity",
        b"sec-websocket-protocol",  # browsers give Kubernetes their bearer token in it
    )
)

_sounds_like_one = re.compile(rb"auth|token|secret|password|credential|session|api-?key|^impersonate-").search


@functools.lru_cache(maxsize=1_024)
def is_credential(name: bytes) -> bool:
    """Whether the value is a secret or says who somebody is: never cached, never indexed (RFC 7541 §7.1.3).

    Fields that only sound so are taken for one as well; it costs them a little time.
    """
    if name.startswith(b":"):
        return False
    return name in CREDENTIAL_NAMES or _sounds_like_one(name) is not None
