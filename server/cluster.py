"""Questions that kas itself asks a cluster, through the tunnel, under a caller's identity."""

from __future__ import annotations

import trio

from server.authorization import ACCESS_REVIEW_TARGET, AccessQuestion, access_review, is_allowed
from server.errors import AgentNotConnected, TunnelLost, UpstreamTimeout
from server.registry import Registry
from tunnel.errors import ConnectionEnded, ErrorCode, RemoteProtocolError, StreamError
from tunnel.identity import FIELD_NAME, Identity, encode_identity
from tunnel.messages import BodyReader, RequestHead

ANSWER_BYTES = 65_536
ANSWER_SECONDS = 10.0


class ClusterQuestions:
    """Asks clusters whether a caller may do something there."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def ask(self, agent_id: str, identity: Identity, question: AccessQuestion) -> bool:
        """Whether the cluster's RBAC allows it to this identity. Anything but a clear yes is no.

        Raises `AgentNotConnected`, `TunnelLost` or `UpstreamTimeout`.
        """
        tunnel = self._registry.find(agent_id)
        if tunnel is None:
            raise AgentNotConnected(agent_id)
        body = access_review(question)
        head = RequestHead(
            b"POST",
            ACCESS_REVIEW_TARGET,
            b"kubernetes",
            [
                (b"content-type", b"application/json"),
                (b"accept", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (FIELD_NAME, encode_identity(identity)),
            ],
            content_length=len(body),
        )
        try:
            with trio.fail_after(ANSWER_SECONDS):
                upstream = await tunnel.connection.open(head, queue="kas")
                try:
                    await upstream.send(body)
                    await upstream.finish()
                    answer = await upstream.receive_head()
                    return answer.status == 201 and is_allowed(await _read(upstream.body))
                finally:
                    upstream.reset(ErrorCode.CANCEL)
        except trio.TooSlowError:
            raise UpstreamTimeout(agent_id, ANSWER_SECONDS) from None
        except (StreamError, ConnectionEnded, RemoteProtocolError) as exc:
            raise TunnelLost(agent_id) from exc


async def _read(body: BodyReader) -> bytes:
    content = b""
    while data := await body.receive():
        content += data
        if len(content) > ANSWER_BYTES:
            return b""
    return content
