"""The operations listener: whether kas lives, whether it is ready, and its metrics. No credentials, no data of callers."""

from __future__ import annotations

from collections.abc import Callable

from server.status import render_plain_refusal
from tunnel.http1.server import Http1Server
from tunnel.messages import Downstream, Fields, ResponseHead
from tunnel.transports.base import Transport

Page = Callable[[], tuple[int, bytes]]
"""Returns status and text."""


class OperationsListener:
    """Serves a fixed set of pages over HTTP/1.1."""

    def __init__(self, pages: dict[bytes, Page]) -> None:
        self._pages = pages

    async def serve(self, transport: Transport) -> None:
        """Serve one connection to its end."""
        await Http1Server(transport, self._answer, render_error=render_plain_refusal).run()

    async def _answer(self, downstream: Downstream) -> None:
        downstream.authenticated()  # nobody is a stranger here, so that a scraper keeps its connection
        request = downstream.request
        path = request.target.partition(b"?")[0]
        page = self._pages.get(path)
        if request.method not in (b"GET", b"HEAD"):
            status, text = 405, b"only GET and HEAD\n"
        elif page is None:
            status, text = 404, b"here are: " + b" ".join(self._pages) + b"\n"
        else:
            status, text = page()
        fields: Fields = [
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(text)),
            (b"cache-control", b"no-store"),
        ]
        is_head = request.method == b"HEAD"
        head = ResponseHead(status, fields, content_length=len(text), ended=is_head)
        await downstream.send_response(head, b"" if is_head else text, end=True)
