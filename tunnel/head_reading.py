"""Reading one message head from a transport: for both ends of the handshake and for answers of proxies."""

from __future__ import annotations

from tunnel.http1.heads import HeadBuffer
from tunnel.transports.carrier import Carrier


async def receive_head(carrier: Carrier, buffer: HeadBuffer, *, limit_bytes: int) -> bytes | None:
    """The next head, each line with its CRLF; None where the other side closed before it was whole.

    Bytes behind it go back to the carrier. What came of an unfinished or malformed head stays in ``buffer``. Raises
    `RemoteProtocolError` as soon as it cannot become a head, or is larger than the limit.
    """
    while True:
        data = await carrier.receive_some()
        if not data:
            return None
        buffer.append(data)
        block = buffer.take_head(limit_bytes)
        if block is not None:
            carrier.unread(buffer.take_all())
            return block
