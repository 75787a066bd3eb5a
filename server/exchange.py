"""How kas handles one exchange: parse, authenticate, address, admit, locate, forward, account.

`Pipeline.handle` is what both fronts call for each request. Each step raises a `ProxyError` with the answer of kas where
it fails; what fails after the response has started ends the exchange visibly instead. An `Exchange` records what
happened; observers see its start, its head and its end, and cannot delay it.

Deliberately absent: HTTP (the fronts), tunnels (`forwarding`), who is who (`directory`), what is allowed
(`authorization`).
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from functools import partial
from typing import Any

import trio

from server.access_log import Observers
from server.addressing import KUBERNETES, Addressing, credentials_of, header_credentials_of
from server.authorization import AskCluster, authorize, authorize_as_granted
from server.direct import DirectForwarding
from server.directory import Caller, Directory
from server.errors import FieldsTooLarge, InternalFailure, ProxyError, Unauthenticated
from server.exchange_record import Exchange, RequestIds
from server.forwarding import Forwarder, Forwarding, UpgradeAbandoned
from server.leases import Leases
from server.revocations import Revocations
from server.status import render
from server.verbs import opaque_request_info, request_info
from tunnel.errors import ConnectionEnded, ErrorCode, StreamError
from tunnel.fields import speaks_of_identity
from tunnel.messages import Downstream, Fields, field_values
from tunnel.progress import DownstreamGone, UpstreamFailed
from tunnel.streams import ServedStream

logger = logging.getLogger(__name__)

_BROKEN = (StreamError, ConnectionEnded, DownstreamGone, trio.BrokenResourceError, trio.ClosedResourceError)


class Pipeline:
    """Handles the exchanges of one kas."""

    def __init__(
        self,
        *,
        directory: Directory,
        addressing: Addressing,
        forwarder: Forwarder,
        revocations: Revocations,
        leases: Leases,
        observers: Observers,
        ask_cluster: AskCluster | None = None,
    ) -> None:
        self._directory = directory
        self._addressing = addressing
        self._forwarder = forwarder
        self._revocations = revocations
        self._leases = leases
        self._observers = observers
        self._ask_cluster = ask_cluster
        self._new_request_id = RequestIds().take

    def begin(self, downstream: Downstream, peer: str) -> bool:
        """Begin an exchange directly (`tunnel.direct`): the same steps, where none of them has to wait or to refuse.

        False where one has; then nothing has happened, and `handle` takes the steps one by one.
        """
        request = downstream.request
        fields = request.fields
        if speaks_of_identity(fields):
            return False
        try:
            credentials = header_credentials_of(fields)
            caller = self._directory.known_user(credentials.token)
            if caller is None:
                return False
            address = self._addressing.address_of(request, credentials)
            agent_id = address.agent_id
            tunnel = self._forwarder.find(agent_id)
            if tunnel is None:
                return False
            info = (request_info if address.origin == KUBERNETES else opaque_request_info)(request, address.target)
            request_id = self._new_request_id()
            known = self._directory.knows_agent(agent_id)
            identity = authorize_as_granted(caller, agent_id, agent_exists=known, info=info, request_id=request_id)
            now = self._leases.take(caller.credential_id, agent_id)
        except ProxyError:
            return False
        exchange = Exchange(request_id, request, peer, now, caller, address, info)
        forwarding = Forwarding(request, address, info, identity, fields, exchange.progress)
        self._observers.started(exchange)
        downstream.authenticated()
        direct = DirectForwarding(
            exchange,
            downstream,
            forwarding,
            tunnel,
            self._forwarder,
            head_sent=self._head_sent,
            ended=self._end_direct,
        )
        self._revocations.enter(caller.credential_id, direct.revoke)
        direct.begin(now)
        return True

    def _end_direct(self, direct: DirectForwarding) -> None:
        """Whatever `begin` has taken goes back. The exchange is over."""
        exchange = direct.exchange
        self._release_direct(direct)
        exchange.ended_at = now = trio.current_time()
        if exchange.progress.response_started and exchange.head_at is None:
            exchange.head_at = now
            self._observers.head_sent(exchange)
        self._observers.ended(exchange)

    def _release_direct(self, direct: DirectForwarding) -> None:
        credential_id = direct.exchange.credential_id
        self._revocations.leave(credential_id, direct.revoke)
        self._leases.give_back(credential_id)

    async def _go_on(self, direct: DirectForwarding) -> None:
        """Take up an exchange that was begun directly."""
        try:
            await direct.go_on(partial(self._on_head, direct.exchange))
        finally:
            self._release_direct(direct)

    async def handle(self, downstream: Downstream, peer: str) -> None:
        """Serve one request to its end. Whatever happens, the caller sees an answer or a broken connection."""
        direct = downstream.direct
        if isinstance(direct, DirectForwarding):
            downstream.direct = None
            await self._serve(direct.exchange, downstream, self._go_on(direct))
        else:
            exchange = Exchange(self._new_request_id(), downstream.request, peer, trio.current_time())
            self._observers.started(exchange)
            await self._serve(exchange, downstream, self._run(exchange, downstream))

    async def _serve(self, exchange: Exchange, downstream: Downstream, steps: Coroutine[Any, Any, None]) -> None:
        try:
            await steps
            exchange.completed()
        except ProxyError as error:
            exchange.failed("refused", ended_by=error.hop, hop=error.hop, error=error.message)
            await self._answer(exchange, downstream, error)
        except UpgradeAbandoned as exc:
            exchange.failed("abandoned", ended_by="tunnel", hop="tunnel", error=str(exc))
            downstream.reset(ErrorCode.CANCEL)
        except UpstreamFailed as exc:
            lost = isinstance(exc.__cause__, ConnectionEnded)
            exchange.failed(
                "reset", ended_by="tunnel" if lost else "upstream", hop="tunnel" if lost else "upstream", error=str(exc)
            )
        except _BROKEN as exc:
            if exchange.revoked:
                exchange.given_up()
            else:
                exchange.failed("reset", ended_by="caller", hop=None, error=str(exc))
            downstream.reset(ErrorCode.CANCEL)
        except Exception:
            # The fan-out that contains: a bug met by one exchange must end neither its connection's others nor kas.
            logger.exception("an exchange crashed", extra={"request_id": exchange.request_id})
            exchange.failed("refused", ended_by="kas", hop="kas", error="internal error")
            await self._answer(exchange, downstream, InternalFailure())
        except BaseException:
            exchange.given_up()
            raise
        finally:
            exchange.ended_at = trio.current_time()
            self._observers.ended(exchange)

    async def _run(self, exchange: Exchange, downstream: Downstream) -> None:
        if isinstance(downstream, ServedStream) and downstream.head_too_large:
            raise FieldsTooLarge("the header section of the request is larger than kas takes")
        credentials = credentials_of(exchange.request.fields)
        caller = await self._directory.authenticate_user(credentials.token)
        if caller is None:
            raise Unauthenticated("this token is not known here, was revoked or has expired")
        downstream.authenticated()
        exchange.caller = caller
        exchange.address = address = self._addressing.address_of(exchange.request, credentials)
        classify = request_info if address.origin == KUBERNETES else opaque_request_info
        exchange.info = classify(exchange.request, address.target)
        self._leases.take(caller.credential_id, address.agent_id)
        try:
            await self._run_admitted(exchange, downstream, caller, credentials.fields)
        finally:
            self._leases.give_back(caller.credential_id)

    async def _run_admitted(self, exchange: Exchange, downstream: Downstream, caller: Caller, fields: Fields) -> None:
        address, info = exchange.address, exchange.info
        assert address is not None
        assert info is not None

        def revoke() -> None:
            exchange.revoked = True
            downstream.cancel()

        self._revocations.enter(caller.credential_id, revoke)
        try:
            identity = await authorize(
                caller,
                address.agent_id,
                agent_exists=await self._directory.has_agent(address.agent_id),
                info=info,
                fields=fields,
                request_id=exchange.request_id,
                ask_cluster=self._ask_cluster,
            )
            await self._forwarder.forward(
                downstream,
                Forwarding(
                    exchange.request,
                    address,
                    info,
                    identity,
                    fields,
                    exchange.progress,
                    partial(self._on_head, exchange),
                ),
                queue=caller.credential_id,
            )
        finally:
            self._revocations.leave(caller.credential_id, revoke)

    def _on_head(self, exchange: Exchange, status: int) -> None:
        exchange.status = status
        self._head_sent(exchange)

    def _head_sent(self, exchange: Exchange) -> None:
        exchange.head_at = trio.current_time()
        self._observers.head_sent(exchange)

    async def _answer(self, exchange: Exchange, downstream: Downstream, error: ProxyError) -> None:
        """Send the Status that the error stands for, unless an answer has begun: then break it off."""
        if downstream.response_started:
            downstream.reset(ErrorCode.INTERNAL_ERROR)
            return
        exchange.status = error.status
        head, body = render(
            error,
            request_id=exchange.request_id,
            accept=field_values(exchange.request.fields, b"accept"),
            method=exchange.request.method,
        )
        try:
            await downstream.send_response(head, body, end=True)
        except _BROKEN:
            exchange.failed("reset", ended_by="caller", hop=None, error="the caller was gone before the answer")
