"""The paths of the API: which part of the sandbox answers a request, once the caller has shown the token."""

from __future__ import annotations

import hmac
import logging
import random

from sandbox import discovery, openapi
from sandbox.calls import Call
from sandbox.kinds import GROUPS, KINDS, Kind, Object
from sandbox.pods import PodStreams
from sandbox.reading import Selection, answer_list, answer_watch
from sandbox.status import ApiError, no_such_path, not_allowed
from sandbox.store import Store
from sandbox.tables import View
from sandbox.writing import Writing, scale_of
from tunnel.http1.downstream import Http1Downstream

logger = logging.getLogger(__name__)

_AGGREGATED = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class ApiServer:
    """Answers requests."""

    def __init__(self, store: Store, streams: PodStreams, randomness: random.Random, *, token: str) -> None:
        self._store = store
        self._streams = streams
        self._random = randomness
        self._writing = Writing(store, randomness)
        self._token = token.encode()

    async def handle(self, downstream: Http1Downstream) -> None:
        """Answer one request, whatever becomes of it."""
        call = Call(downstream)
        try:
            self._authenticate(call)
            await self._route(call)
        except ApiError as error:
            failure = error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # An object can make no sense in more ways than admission knows; that is its author's affair.
            logger.warning("sandbox: %s %s failed", call.method, "/".join(call.path), exc_info=error)
            failure = ApiError(500, "InternalError", f"the sandbox cannot make sense of this: {error!r}")
        else:
            return
        if not downstream.response_started:
            await call.answer(failure.document(), failure.code)

    def _authenticate(self, call: Call) -> None:
        scheme, _, token = call.field(b"authorization").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(token.strip().encode("latin-1"), self._token):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        call.downstream.authenticated()

    async def _route(self, call: Call) -> None:
        match call.path:
            case ["version"]:
                await call.answer(discovery.version())
            case ["livez" | "readyz" | "healthz", *_]:
                await call.answer("ok", content_type="text/plain")
            case ["api" | "apis" as root] if call.form() == "APIGroupDiscoveryList":
                await call.answer(discovery.aggregated(is_core=root == "api"), content_type=_AGGREGATED)
            case ["api" | "apis" as root]:
                await call.answer(discovery.core_versions() if root == "api" else discovery.groups())
            case ["apis", group]:
                await call.answer(discovery.group(group))
            case ["openapi", "v2"]:  # kubectl reads it, in protobuf only, before it looks for a kind that is not here
                await call.answer("", content_type="application/com.github.proto-openapi.spec.v2.v1.0+protobuf")
            case ["openapi", "v3"]:
                await call.answer(openapi.index())
            case ["openapi", "v3", "api", "v1"]:
                await call.answer(openapi.document(""))
            case ["openapi", "v3", "apis", group, "v1"] if group in GROUPS:
                await call.answer(openapi.document(group))
            case ["api", "v1", *rest]:
                await self._group(call, "", rest)
            case ["apis", group, "v1", *rest]:
                await self._group(call, group, rest)
            case _:
                raise no_such_path()

    async def _group(self, call: Call, group: str, path: list[str]) -> None:
        if not path:
            await call.answer(discovery.resources(group))
            return
        namespace = ""
        if path[0] == "namespaces" and len(path) > 2 and path[2] != "status":
            namespace, path = path[1], path[2:]
        kind = KINDS.get((group, path[0]))
        if kind is None or (namespace and not kind.is_namespaced):
            raise no_such_path()
        if kind.answer is not None:
            await self._review(call, kind)
        elif len(path) == 1:
            await self._collection(call, kind, namespace)
        else:
            await self._item(call, kind, namespace, path[1], "/".join(path[2:]))

    async def _review(self, call: Call, kind: Kind) -> None:
        """Whoever asks is who they say, or the one user that there is, and may do everything."""
        if call.method != "POST":
            raise not_allowed()
        user = call.field(b"impersonate-user")
        groups = call.field_lines(b"impersonate-group") if user else ["system:masters"]
        info = {"username": user or "sandbox-admin", "groups": [*groups, "system:authenticated"]}
        document = {"metadata": {}} | await call.document()
        call.warnings.clear()  # what is asked makes no difference, whether it was understood or not
        await call.answer(kind.of({**document, "status": kind.answer or {"userInfo": info}}), 201)

    async def _collection(self, call: Call, kind: Kind, namespace: str) -> None:
        selection, view = Selection(call, kind, namespace), self._view(call, kind)
        match call.method:
            case "GET" if call.is_set("watch"):
                await answer_watch(call, self._store, selection, view, self._random)
            case "GET":
                await answer_list(call, self._store, selection, view)
            case "POST":
                namespace = namespace or ("default" if kind.is_namespaced else "")
                await call.answer(view.one(await self._writing.create(call, kind, namespace)), 201)
            case _:
                raise not_allowed()

    async def _item(self, call: Call, kind: Kind, namespace: str, name: str, subresource: str) -> None:
        document: Object
        if subresource not in ("", *kind.subresources):
            raise no_such_path()
        if subresource not in ("", "status", "scale"):
            await self._streams.serve(call, namespace, name, subresource)
            return
        match call.method:
            case "GET":
                document = self._store.get(kind, namespace, name)
                document = scale_of(document) if subresource == "scale" else document
            case "PUT" | "PATCH":
                document = await self._writing.change(call, kind, namespace, name, subresource)
            case "DELETE" if not subresource:
                options = await call.document()
                document = self._writing.delete(call, kind, self._store.get(kind, namespace, name), options)
            case _:
                raise not_allowed()
        has_form = document["kind"] == kind.name
        await call.answer(self._view(call, kind).one(document) if has_form else document)

    def _view(self, call: Call, kind: Kind) -> View:
        return View(kind, call.form(), call.query.get("includeObject", ""), self._store.now)
