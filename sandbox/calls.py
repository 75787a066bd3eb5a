"""One request to the API: its path, query and body taken apart, and its answer put together."""

from __future__ import annotations

import json
import urllib.parse
from typing import Any

from sandbox import protobuf
from sandbox.documents import encode, from_yaml
from sandbox.status import ApiError, bad_request
from tunnel.http1.downstream import Http1Downstream
from tunnel.messages import Fields, ResponseHead, field_value, field_values

BODY_BYTES = 3_145_728
_FORMS = {
    ("", "", ""): "",
    ("meta.k8s.io", "v1", "Table"): "Table",
    ("meta.k8s.io", "v1", "PartialObjectMetadata"): "PartialObjectMetadata",
    ("meta.k8s.io", "v1", "PartialObjectMetadataList"): "PartialObjectMetadata",
    ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList"): "APIGroupDiscoveryList",
}


class Call:
    """A request. ``path`` holds the decoded segments of the path, ``query`` the first value of each parameter."""

    def __init__(self, downstream: Http1Downstream) -> None:
        self.downstream = downstream
        path, _, query = downstream.request.target.decode("latin-1").partition("?")
        self.method = downstream.request.method.decode("latin-1")
        self.path = [urllib.parse.unquote(part) for part in path.split("/") if part]
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
        """The form that the caller wants, one of the above; the empty string for objects as they are."""
        for media_range in self.field(b"accept").split(","):
            media_type, *parameters = (part.strip() for part in media_range.split(";"))
            values = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
            wanted = (values.get("g", ""), values.get("v", ""), values.get("as", ""))
            if media_type in ("application/json", "application/*", "*/*", "") and wanted in _FORMS:
                return _FORMS[wanted]
        raise ApiError(406, "NotAcceptable", "the sandbox answers in JSON only")

    async def document(self) -> Any:
        """The body, decoded; an empty object where there is none. Raises `ApiError`."""
        data = bytearray()
        while piece := await self.downstream.body.receive():
            data += piece
            if len(data) > BODY_BYTES:
                raise ApiError(413, "RequestEntityTooLarge", f"Request entity too large: limit is {BODY_BYTES}")
        if not data:
            return {}
        media_type = self.field(b"content-type").partition(";")[0].strip().lower()
        if media_type == protobuf.MEDIA_TYPE:
            document, dropped = protobuf.decode(bytes(data))
            self.warnings += [f"sandbox: dropped, since it is not known here: {name}" for name in dropped[:10]]
            return document
        if media_type and not media_type.endswith(("json", "yaml", "*/*")):
            message = f"the body of the request was in an unknown format: {media_type}"
            raise ApiError(415, "UnsupportedMediaType", message)
        try:
            return from_yaml(bytes(data)) if media_type.endswith("yaml") else json.loads(data)
        except (ValueError, RecursionError) as error:
            raise bad_request(f"the body of the request cannot be decoded: {error}") from error

    async def answer(self, document: object, status: int = 200, content_type: str = "application/json") -> None:
        """Answer with a document, or with plain text."""
        body = document.encode() if isinstance(document, str) else encode(document)
        await self.downstream.send_response(ResponseHead(status, self._head(content_type)), body, end=True)

    async def begin(self, content_type: str) -> None:
        """Send the head of an answer whose body comes bit by bit."""
        await self.downstream.send_response(ResponseHead(200, self._head(content_type)))

    def _head(self, content_type: str) -> Fields:
        fields = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache, private")]
        return fields + [(b"warning", f'299 - "{text}"'.encode()) for text in self.warnings]
