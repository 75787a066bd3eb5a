"""The paths of the API: which part of the sandbox answers a request, once the caller has shown the token."""

from __future__ import annotations

import hmac
import logging
import random

from sandbox import discovery, openapi
from sandbox.calls import Call
from sandbox.kinds import GROUP_VERSIONS, KINDS, STORED, Kind
from sandbox.pods import PodStreams
from sandbox.reading import Selection, answer_list, answer_watch
from sandbox.reviews import review
from sandbox.status import ApiError, no_such_path, not_allowed
from sandbox.store import Store
from sandbox.views import View
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
            if not downstream.response_started:
                await call.answer(error.document(), error.code)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            # An object can make no sense in more ways than admission knows; that is its author's affair.
            logger.warning("sandbox: %s %s failed", call.method, "/".join(call.path), exc_info=error)
            if not downstream.response_started:
                failure = ApiError(500, "InternalError", f"the sandbox cannot make sense of this: {error!r}")
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
            case ["api" | "apis" as root]:
                if call.form() == "APIGroupDiscoveryList":
                    await call.answer(discovery.aggregated(is_core=root == "api"), content_type=_AGGREGATED)
                else:
                    await call.answer(discovery.core_versions() if root == "api" else discovery.groups())
            case ["apis", group]:
                await call.answer(discovery.group(group))
            case ["openapi", "v3"]:
                await call.answer(openapi.index())
            case ["openapi", "v3", "api", version] if ("", version) in GROUP_VERSIONS:
                await call.answer(openapi.document("", version))
            case ["openapi", "v3", "apis", group, version] if (group, version) in GROUP_VERSIONS:
                await call.answer(openapi.document(group, version))
            case ["api", version, *rest]:
                await self._group_version(call, "", version, rest)
            case ["apis", group, version, *rest]:
                await self._group_version(call, group, version, rest)
            case _:
                raise no_such_path()

    async def _group_version(self, call: Call, group: str, version: str, path: list[str]) -> None:
        namespace = ""
        if not path:
            await call.answer(discovery.resources(group, version))
            return
        if path[0] == "namespaces" and len(path) > 2 and path[2] not in ("status", "finalize"):
            namespace, path = path[1], path[2:]
        kind = KINDS.get((group, version, path[0]))
        if kind is None or (namespace and not kind.is_namespaced):
            raise no_such_path()
        if kind not in STORED:
            if call.method != "POST":
                raise not_allowed()
            await call.answer(review(call, kind, await call.document()), 201)
        elif len(path) == 1:
            await self._collection(call, kind, namespace)
        else:
            await self._item(call, kind, namespace, path[1], "/".join(path[2:]))

    async def _collection(self, call: Call, kind: Kind, namespace: str) -> None:
        selection = Selection(call, kind, namespace)
        match call.method:
            case "GET" if call.is_set("watch"):
                await answer_watch(call, self._store, selection, self._random)
            case "GET":
                await answer_list(call, self._store, selection)
            case "POST":
                document = await self._writing.create(
                    call, kind, namespace or ("default" if kind.is_namespaced else "")
                )
                await call.answer(self._view(call, kind).one(document), 201)
            case "DELETE":
                options = await call.document()
                doomed = selection.of(self._store)
                for document in doomed:
                    self._writing.delete_one(call, kind, document, options)
                await call.answer(self._view(call, kind).many(doomed, {"resourceVersion": str(self._store.revision)}))
            case _:
                raise not_allowed()

    async def _item(self, call: Call, kind: Kind, namespace: str, name: str, subresource: str) -> None:
        if subresource not in ("", *kind.subresources):
            raise no_such_path()
        if subresource == "eviction":
            options = (await call.document()).get("deleteOptions") or {}
            self._writing.delete_one(call, kind, self._store.get(kind, namespace, name), options)
            await call.answer({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201}, 201)
            return
        if subresource not in ("", "status", "scale"):
            await self._streams.serve(call, namespace, name, subresource)
            return
        match call.method:
            case "GET" if call.is_set("watch"):
                await answer_watch(call, self._store, Selection(call, kind, namespace, name), self._random)
                return
            case "GET":
                document = self._store.get(kind, namespace, name)
                document = scale_of(document) if subresource == "scale" else document
            case "PUT":
                document = await self._writing.replace(call, kind, namespace, name, subresource)
            case "PATCH":
                document = await self._writing.patch(call, kind, namespace, name, subresource)
            case "DELETE" if not subresource:
                document = await self._writing.delete(call, kind, self._store.get(kind, namespace, name))
            case _:
                raise not_allowed()
        has_form = document["kind"] == kind.name
        await call.answer(self._view(call, kind).one(document) if has_form else document)

    def _view(self, call: Call, kind: Kind) -> View:
        return View(kind, call.form(), call.query.get("includeObject", ""), self._store.now())
