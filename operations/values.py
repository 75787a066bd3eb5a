"""The types of configuration values that carry their unit: durations, sizes, addresses, files with secrets.

Each has one function that parses what an operator writes and raises `InvalidValue`, which says what is
allowed. Pure, except for `SecretFile.read`.
"""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
import math
import re
from pathlib import Path
from typing import Any, NewType

Seconds = NewType("Seconds", float)
"""A duration. Written as "30s", "1h30m", "250ms", "never" (infinite), or as a number of seconds."""

ByteCount = NewType("ByteCount", int)
"""A size in bytes. Written as "64KiB", "3MB", or as a number of bytes."""

NEVER = Seconds(math.inf)


class InvalidValue(ValueError):
    """A value that an operator wrote and that cannot be used. The text says what is allowed."""


_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+")
_SIZE = re.compile(r"(\d+)\s*([A-Za-z]*)")
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_PORTS = range(65_536)
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*")


@dataclasses.dataclass(frozen=True, slots=True)
class Address:
    """Where to listen, or what to dial: a host name or IP address, and a port. An empty host means every interface."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """True where only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True, slots=True)
class SecretFile:
    """A secret which is kept in a file. The value is never held here, so that no repr and no dump can show it."""

    path: Path

    def read(self) -> str:
        """The content without surrounding white space. Raises `InvalidValue`, which names the file."""
        try:
            content = self.path.read_text(encoding="utf-8").strip()
        except OSError as exc:
            raise InvalidValue(f"cannot read {self.path}: {exc.strerror or type(exc).__name__}") from None
        except UnicodeDecodeError:
            raise InvalidValue(f"{self.path} is not a text file") from None
        if not content:
            raise InvalidValue(f"{self.path} is empty")
        return content


def parse_seconds(value: Any) -> Seconds:
    """A duration from a number or from text with units."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str) and value.strip() in ("never", "inf", "infinity"):
        seconds = math.inf
    elif isinstance(value, str) and _DURATION.fullmatch(text := value.strip().replace(" ", "")):
        seconds = math.fsum(float(number) * _DURATION_UNITS[unit] for number, unit in _DURATION_PART.findall(text))
    elif isinstance(value, str) and re.fullmatch(r"\d+(\.\d+)?", value.strip()):
        seconds = float(value)
    else:
        seconds = math.nan
    if not seconds >= 0:
        raise InvalidValue(f"expected a duration such as 30s, 5m, 1h30m or never, got {shown(value)}")
    return Seconds(seconds)


def format_seconds(seconds: float) -> str:
    """A duration as an operator would write it; `parse_seconds` reads it back."""
    if seconds == math.inf:
        return "never"
    for unit in ("d", "h", "m"):
        if seconds >= _DURATION_UNITS[unit] and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds // _DURATION_UNITS[unit])}{unit}"
    if seconds < 1 and seconds and (milliseconds := round(seconds * 1000, 6)) == int(milliseconds):
        return f"{int(milliseconds)}ms"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds:f}".rstrip("0") + "s"


def parse_byte_count(value: Any) -> ByteCount:
    """A size from a whole number or from text with a unit."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return ByteCount(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        number, unit = match.groups()
        if unit.lower() in _SIZE_UNITS:
            return ByteCount(int(number) * _SIZE_UNITS[unit.lower()])
    raise InvalidValue(f"expected a size such as 64KiB, 3MB or a number of bytes, got {shown(value)}")


def format_byte_count(count: int) -> str:
    """A size as an operator would write it; `parse_byte_count` reads it back."""
    for unit in ("GiB", "MiB", "KiB"):
        factor = _SIZE_UNITS[unit.lower()]
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def parse_address(value: Any) -> Address:
    """An address from ``host:port``, ``[IPv6]:port`` or ``:port``."""
    problem = InvalidValue(
        f"expected host:port such as 127.0.0.1:8154, [::1]:8154 or :8154 for every interface, got {shown(value)}"
    )
    if not isinstance(value, str):
        raise problem
    host, colon, port = value.strip().rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) not in _PORTS:
        raise problem
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise problem from None
    elif host == "*":
        host = ""
    elif host and not _HOST_NAME.fullmatch(host):
        raise problem
    return Address(host, int(port))


def parse_path(value: Any) -> Path:
    """A path from text that is not empty; ``~`` is the home directory."""
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise InvalidValue(f"expected the path of a file, got {shown(value)}")
    return Path(value).expanduser()


def parse_moment(value: Any) -> datetime.datetime:
    """A point in time from RFC 3339 text or a YAML timestamp; without an offset it is taken as UTC."""
    moment: Any = value
    if isinstance(value, str):
        try:
            moment = datetime.datetime.fromisoformat(value.strip())
        except ValueError:
            moment = None
    elif isinstance(value, datetime.date) and not isinstance(value, datetime.datetime):
        moment = datetime.datetime(value.year, value.month, value.day, tzinfo=datetime.UTC)
    if not isinstance(moment, datetime.datetime):
        raise InvalidValue(f"expected a point in time such as 2027-01-31T00:00:00Z, got {shown(value)}")
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=datetime.UTC)


def shown(value: Any) -> str:
    """A received value for an error message: short, on one line, and without anything that looks like a token."""
    text = repr(value) if isinstance(value, str) else str(value) if isinstance(value, (int, float)) else ""
    if value is None:
        return "nothing"
    if not text:
        return f"a {_KINDS.get(type(value), type(value).__name__)}"
    text = redact(text)
    return text if len(text) <= 80 else f"{text[:77]}…"


_KINDS: dict[type, str] = {dict: "mapping", list: "list", tuple: "list", bool: "boolean"}

_SECRET = re.compile(r"(ml[ua]_)[A-Za-z0-9_-]{8,}|(\bbearer[ :=]+)[^\s\"',;]+", re.IGNORECASE)


def redact(text: str) -> str:
    """The text without tokens of ours and without bearer credentials.

    A net under the rule that no secret gets into a message, not a replacement for it: it knows the two token prefixes
    and the word ``Bearer``, nothing else.
    """
    if ("ml" in text and ("mlu_" in text or "mla_" in text)) or "earer" in text or "EARER" in text:
        return _SECRET.sub(lambda match: f"{match[1] or match[2]}[redacted]", text)
    return text
