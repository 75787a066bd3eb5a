"""One request to the API: its path, query and body taken apart, and its answer put together."""

from __future__ import annotations

import urllib.parse

from sandbox import protobuf
from sandbox.documents import decode, encode
from sandbox.kinds import Object
from sandbox.status import ApiError, bad_request
from tunnel.http1.downstream import Http1Downstream
from tunnel.messages import Fields, ResponseHead, field_value, field_values

BODY_BYTES = 3_145_728
META_GROUP = "meta.k8s.io"


class Call:
    """A request. ``path`` holds the decoded segments of the path, ``query`` the first value of each parameter."""

    def __init__(self, downstream: Http1Downstream) -> None:
        self.downstream = downstream
        path, _, query = downstream.request.target.decode("latin-1").partition("?")
        self.method = downstream.request.method.decode("latin-1")
        self.path = [urllib.parse.unquote(part) for part in path.strip("/").split("/") if part]
        self.values = urllib.parse.parse_qs(query, keep_blank_values=True)
        self.query = {name: values[0] for name, values in self.values.items()}
        self.warnings: list[str] = []

    def field(self, name: bytes) -> str:
        """The value of a header field; the empty string where there is none."""
        return (field_value(self.downstream.request.fields, name) or b"").decode("latin-1")

    def field_lines(self, name: bytes) -> list[str]:
        """The values of all lines of a header field."""
        return [value.decode("latin-1") for value in field_values(self.downstream.request.fields, name)]

    def is_set(self, name: str) -> bool:
        """Whether a boolean parameter is true."""
        return self.query.get(name, "") in ("1", "true", "True")

    def number(self, name: str) -> int | None:
        """A parameter that is a number; None where it is missing. Raises `ApiError`."""
        text = self.query.get(name, "")
        if text and not text.isdecimal():
            raise bad_request(f"{name}={text} is not a number")
        return int(text) if text else None

    def form(self) -> str:
        """The form that the caller wants: ``Table``, ``PartialObjectMetadata``, ``APIGroupDiscoveryList`` or none."""
        for media_range in self.field(b"accept").split(",") or ["*/*"]:
            media_type, *parameters = (part.strip() for part in media_range.split(";"))
            values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
            if media_type in ("application/json", "application/*", "*/*", ""):
                wanted = values.get("as", "")
                if not wanted or (values.get("g"), values.get("v")) in (
                    (META_GROUP, "v1"),
                    ("apidiscovery.k8s.io", "v2"),
                ):
                    return wanted.removesuffix("List") if values.get("g") == META_GROUP else wanted
        raise ApiError(406, "NotAcceptable", "the sandbox answers in JSON only")

    async def document(self) -> Object:
        """The body. Raises `ApiError`."""
        data = bytearray()
        while piece := await self.downstream.body.receive():
            data += piece
            if len(data) > BODY_BYTES:
                message = f"Request entity too large: limit is {BODY_BYTES}"
                raise ApiError(413, "RequestEntityTooLarge", message)
        content_type = self.field(b"content-type")
        if content_type.startswith(protobuf.MEDIA_TYPE) and data:
            document, dropped = protobuf.decode(bytes(data))
            self.warnings += [f"sandbox: a field that is not known here was dropped: {name}" for name in dropped[:10]]
            return document
        decoded: Object = decode(bytes(data), content_type) if data else {}
        return decoded

    async def answer(self, document: object, status: int = 200, content_type: str = "application/json") -> None:
        """Answer with a document, or with plain text."""
        body = document.encode() if isinstance(document, str) else encode(document)
        await self.downstream.send_response(ResponseHead(status, self.head(content_type)), body, end=True)

    async def begin(self, content_type: str) -> None:
        """Send the head of an answer whose body comes bit by bit."""
        await self.downstream.send_response(ResponseHead(200, self.head(content_type)))

    def head(self, content_type: str) -> Fields:
        """The header fields of an answer."""
        fields = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache, private")]
        return fields + [(b"warning", f'299 - "{text}"'.encode()) for text in self.warnings]
