"""Write `docs/configuration.md` from the configuration dataclasses of kas and agentk.

    python docs/generate_configuration.py          # writes the file
    python docs/generate_configuration.py --check  # exits with 1 where it is not up to date

The classes are the documentation: what a key means is the text below its field, what it defaults to is its default.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.config import ENVIRONMENT_PREFIX as AGENTK_PREFIX
from agent.config import AgentConfig
from operations.structuring import Range
from operations.values import Address, ByteCount, Seconds, SecretFile, format_byte_count, format_seconds
from server.config import ENVIRONMENT_PREFIX as KAS_PREFIX
from server.config import KasConfig

_VALUES = (Address, SecretFile)
TARGET = Path(__file__).with_name("configuration.md")

INTRODUCTION = """\
# Configuration

<!-- Written by docs/generate_configuration.py from the dataclasses of the code. Do not edit. -->

kas and agentk read one YAML (or, with the suffix `.toml`, TOML) file, then the environment, then flags; the later one
wins. A key that nobody knows, a key that is given twice, a value of the wrong kind: all problems are reported at once,
each with its path and what is allowed there, and the program ends with exit code 2.

**Environment.** Each key has a variable; two underscores stand for nesting, and each section below says how its
variables begin: {examples}. A list is separated by commas or written as in YAML.

**Values.** A *duration* is written as `30s`, `5m`, `1h30m`, `250ms` or `never`, or as a number of seconds. A *size* is
written as `64KiB`, `3MB`, or as a number of bytes. An *address* is `127.0.0.1:8150`, `[::1]:8150`, or `:8150` for every
interface. Secrets are in files, never in the configuration itself.
"""

OTHER_VARIABLES = """\
## Other variables

| variable | read by | meaning |
|---|---|---|
| `AGENTK_TOKEN` | agentk | the agent's token, in place of `kas.token_file`; it is removed from the environment once it was read |
| `POD_NAME` | agentk | the default of `replica` |
| `KUBECONFIG` | agentk, `moorline up` | the default of `kubernetes.kubeconfig`; several files are merged as kubectl does |
| `KUBERNETES_SERVICE_HOST`, `KUBERNETES_SERVICE_PORT` | agentk | set by Kubernetes in every Pod: where the kube-apiserver is |
| `HTTPS_PROXY`, `HTTP_PROXY`, `NO_PROXY` | agentk | the way out; not to the API server of its own Pod. Also in lower case |
| `HOME` | agentk, `moorline up` | `~/.kube/config`, where nothing else names a cluster |
"""


def main() -> int:
    """Write or check the file; the exit status."""
    text = render()
    if "--check" in sys.argv[1:]:
        if TARGET.is_file() and TARGET.read_text() == text:
            return 0
        print(f"{TARGET} is not up to date: run python docs/generate_configuration.py", file=sys.stderr)
        return 1
    TARGET.write_text(text)
    return 0


def render() -> str:
    """The whole page."""
    examples = "`KAS__LOG__LEVEL=debug` is `log.level` of kas"
    parts = [INTRODUCTION.format(examples=examples)]
    for title, cls, command, prefix in (
        ("kas", KasConfig, "kas --config FILE", KAS_PREFIX),
        ("agentk", AgentConfig, "agentk --config FILE", AGENTK_PREFIX),
    ):
        parts.append(f"## {title}\n\n`{command}`\n\n{_about(cls)}\n")
        for path, section in sections(cls, ""):
            if path:
                parts.append(f"### {title}: `{path}`\n\n{_about(section)}\n")
            if rows := table(section):
                variables = "__".join([prefix, *path.upper().split(".")]) if path else prefix
                parts.append(f"Environment: `{variables}__…`\n")
                parts.append(rows)
    parts.append(OTHER_VARIABLES)
    return "\n".join(parts).rstrip() + "\n"


def sections(cls: Any, path: str) -> Iterator[tuple[str, Any]]:
    """A configuration class and all below it, with their dotted paths."""
    yield path, cls
    for field, wanted in _fields(cls):
        nested = nested_class(wanted)
        if nested is not None:
            key = _key(field)
            mark = "[]" if _is_many(wanted) else ""
            yield from sections(nested, f"{path}.{key}{mark}".strip("."))


def table(cls: Any) -> str:
    """The keys of one class, without those that are sections of their own."""
    texts = field_texts(cls)
    rows = [
        f"| `{_key(field)}` | {type_name(wanted)} | {default(field)} | {texts.get(field.name, '')} |"
        for field, wanted in _fields(cls)
        if nested_class(wanted) is None
    ]
    if not rows:
        return ""
    return "\n".join(["| key | kind | default | meaning |", "|---|---|---|---|", *rows, ""])


def field_texts(cls: Any) -> dict[str, str]:
    """The text below each field, as one line."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls)))
    (definition,) = tree.body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(statement, ast.AnnAssign)
            and isinstance(statement.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
            and isinstance(following.value.value, str)
        ):
            texts[statement.target.id] = _one_line(following.value.value)
    return texts


def type_name(wanted: Any) -> str:
    """The kind of a value, in an operator's words."""
    origin = typing.get_origin(wanted)
    arguments = typing.get_args(wanted)
    if origin is typing.Annotated:
        limits = [_limits(arguments[0], note) for note in arguments[1:] if isinstance(note, Range)]
        return ", ".join([type_name(arguments[0]), *limits])
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(argument) for argument in arguments if argument is not type(None))
    if origin in (list, tuple, set, frozenset) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return f"list of {type_name(arguments[0])}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"mapping to {type_name(arguments[1])}"
    names: dict[Any, str] = {
        Seconds: "duration",
        ByteCount: "size",
        Address: "address",
        Path: "path",
        SecretFile: "path of a file with the secret",
        str: "text",
        bool: "`true`, `false`",
        int: "whole number",
        float: "number",
    }
    return names.get(wanted, getattr(wanted, "__name__", str(wanted)))


def default(field: dataclasses.Field[Any]) -> str:
    """What a key is worth when it is not given."""
    if field.default_factory is not dataclasses.MISSING:
        value: Any = field.default_factory()
    else:
        value = field.default
    if value is dataclasses.MISSING:
        return "required"
    if value is None or value in ("", (), [], {}):
        return ""
    wanted = _scalar(field)
    if wanted is Seconds:
        return f"`{format_seconds(value)}`"
    if wanted is ByteCount:
        return f"`{format_byte_count(value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, (list, tuple)):
        return ", ".join(f"`{item}`" for item in value)
    return f"`{value}`"


def nested_class(wanted: Any) -> Any:
    """The configuration class that a key holds: one, an optional one, or several. None for plain values."""
    for argument in (wanted, *typing.get_args(wanted)):
        if isinstance(argument, type) and dataclasses.is_dataclass(argument) and argument not in _VALUES:
            return argument
    return None


def _fields(cls: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _scalar(field: dataclasses.Field[Any]) -> Any:
    owner = field.type if not isinstance(field.type, str) else None
    text = field.type if isinstance(field.type, str) else getattr(owner, "__name__", "")
    if "Seconds" in text:
        return Seconds
    return ByteCount if "ByteCount" in text else None


def _limits(wanted: Any, limits: Range) -> str:
    def shown(value: float) -> str:
        if wanted is Seconds:
            return format_seconds(value)
        return format_byte_count(int(value)) if wanted is ByteCount else f"{value:.15g}"

    if limits.maximum == float("inf"):
        return f"at least {shown(limits.minimum)}"
    return f"{shown(limits.minimum)} to {shown(limits.maximum)}"


def _is_many(wanted: Any) -> bool:
    return typing.get_origin(wanted) in (list, tuple, dict, Mapping, Sequence)


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


def _about(cls: Any) -> str:
    return _one_line(inspect.cleandoc(cls.__doc__ or ""))


def _one_line(text: str) -> str:
    return " ".join(inspect.cleandoc(text).replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    sys.exit(main())
