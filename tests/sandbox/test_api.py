"""The API over HTTP, with nothing moving by itself."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from support.sandbox import Caller, sandbox_caller

import sandbox.store
from sandbox.kinds import CONFIG_MAPS

MAPS = "/api/v1/namespaces/demo/configmaps"
WEB = "/apis/apps/v1/namespaces/demo/deployments/web"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json"


@pytest.fixture
async def caller() -> AsyncIterator[Caller]:
    async with sandbox_caller(lives=False) as found:
        yield found


async def make(caller: Caller, name: str, **more: Any) -> Any:
    answer = await caller.ask("POST", MAPS, {"metadata": {"name": name}, **more})
    assert answer.status == 201, answer.body
    return answer.document


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic YTpi"])
async def test_strangers_are_turned_away(autojump_clock: object, caller: Caller, authorization: str) -> None:
    answer = await caller.ask("GET", "/version", Authorization=authorization)
    assert (answer.status, answer.document["kind"], answer.document["reason"]) == (401, "Status", "Unauthorized")


async def test_it_says_what_it_is(autojump_clock: object, caller: Caller) -> None:
    assert "sandbox" in (await caller.get("/version"))["gitVersion"]
    nodes = await caller.get("/api/v1/nodes")
    assert all("sandbox" in node["metadata"]["name"] for node in nodes["items"])
    for path in ("/livez", "/readyz", "/healthz", "/readyz/ping"):
        assert (await caller.ask("GET", path)).body == b"ok"


async def test_discovery_says_the_same_at_once_and_piece_by_piece(autojump_clock: object, caller: Caller) -> None:
    accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    at_once: dict[str, set[str]] = {}
    for root in ("/api", "/apis"):
        for group in (await caller.get(root, Accept=accept))["items"]:
            prefix = f"/apis/{group['metadata']['name']}" if "name" in group["metadata"] else "/api"
            for version in group["versions"]:
                names = set()
                for resource in version["resources"]:
                    names |= {resource["resource"]}
                    names |= {
                        f"{resource['resource']}/{sub['subresource']}" for sub in resource.get("subresources", [])
                    }
                at_once[f"{prefix}/{version['version']}"] = names
    pieces = {"/api/v1"}
    for group in (await caller.get("/apis"))["groups"]:
        assert (await caller.get(f"/apis/{group['name']}"))["versions"] == group["versions"]
        pieces |= {f"/apis/{version['groupVersion']}" for version in group["versions"]}
    assert at_once.keys() == pieces
    for path in pieces:
        assert {resource["name"] for resource in (await caller.get(path))["resources"]} == at_once[path]


async def test_the_openapi_documents_refer_to_nothing_that_is_missing(autojump_clock: object, caller: Caller) -> None:
    for entry in (await caller.get("/openapi/v3"))["paths"].values():
        document = await caller.get(entry["serverRelativeURL"])
        schemas = document["components"]["schemas"]
        references = {part.split('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]}
        assert references <= schemas.keys()
        assert all(schema["description"] for schema in schemas.values())
    assert (await caller.ask("GET", "/openapi/v2")).body == b""


async def test_kubectl_may_ask_for_a_dry_run_and_is_offered_no_patch_of_its_own(
    autojump_clock: object, caller: Caller
) -> None:
    document = await caller.get("/openapi/v3/apis/apps/v1")
    operation = document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"]
    assert {"dryRun", "fieldValidation"} <= {parameter["name"] for parameter in operation["parameters"]}
    assert list(operation["requestBody"]["content"]) == ["application/merge-patch+json"]


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("GET", "/", 404, "NotFound"),
        ("GET", "/api/v2/pods", 404, "NotFound"),
        ("GET", "/apis/nothing/v1", 404, "NotFound"),
        ("GET", "/api/v1/namespaces/demo/nodes", 404, "NotFound"),
        ("GET", f"{MAPS}/missing", 404, "NotFound"),
        ("GET", f"{MAPS}/web-config/status", 404, "NotFound"),
        ("PUT", MAPS, 405, "MethodNotAllowed"),
        ("DELETE", MAPS, 405, "MethodNotAllowed"),
        ("POST", f"{MAPS}/web-config", 405, "MethodNotAllowed"),
        ("GET", "/apis/authentication.k8s.io/v1/selfsubjectreviews", 405, "MethodNotAllowed"),
        ("GET", f"{MAPS}?labelSelector=%3D", 400, "BadRequest"),
        ("GET", f"{MAPS}?limit=x", 400, "BadRequest"),
        ("GET", f"{MAPS}?continue=x", 400, "BadRequest"),
        ("GET", f"{MAPS}?watch=1&resourceVersion=x", 400, "BadRequest"),
        ("GET", "/api/v1/namespaces/demo/pods/missing/exec?command=ls", 404, "NotFound"),
    ],
)
async def test_what_cannot_be_served_is_a_status(
    autojump_clock: object, caller: Caller, method: str, path: str, status: int, reason: str
) -> None:
    answer = await caller.ask(method, path)
    assert (answer.status, answer.document["reason"], answer.document["code"]) == (status, reason, status)


async def test_an_object_is_created_read_replaced_and_deleted(autojump_clock: object, caller: Caller) -> None:
    made = await make(caller, "a", data={"x": "1"})
    assert made["metadata"]["namespace"] == "demo"
    assert await caller.get(f"{MAPS}/a") == made
    replaced = (await caller.ask("PUT", f"{MAPS}/a", {**made, "data": {"x": "2"}})).document
    assert replaced["data"] == {"x": "2"}
    conflicting = await caller.ask("PUT", f"{MAPS}/a", {**made, "data": {"x": "3"}})
    assert (conflicting.status, conflicting.document["reason"]) == (409, "Conflict")
    deleted = await caller.ask("DELETE", f"{MAPS}/a")
    assert (deleted.document["status"], deleted.document["details"]["uid"]) == ("Success", made["metadata"]["uid"])
    assert (await caller.ask("GET", f"{MAPS}/a")).status == 404


@pytest.mark.parametrize(
    ("path", "document", "problem"),
    [
        (MAPS, [], "is not a ConfigMap"),
        (MAPS, {"kind": "Secret", "metadata": {"name": "a"}}, "is a Secret and not a ConfigMap"),
        (MAPS, {"metadata": {"name": "a", "namespace": "other"}}, "does not match the namespace"),
        (MAPS, {"metadata": {"name": "Not_a_name"}}, "a lowercase RFC 1123 subdomain"),
        (MAPS, {"metadata": {}}, "metadata.name: Required value"),
        (MAPS, {"metadata": {"name": "a"}, "data": {"x": 1}}, "data.x: Invalid value: expected string, got int"),
        (MAPS, {"metadata": {"name": "a", "labels": "x"}}, "metadata.labels: Invalid value: expected map"),
        ("/api/v1/namespaces/demo/pods", {"metadata": {"name": "a"}, "spec": {}}, "spec.containers: Required value"),
        (
            "/api/v1/namespaces/demo/pods",
            {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c"}]}},
            "spec.containers[0].image: Required value",
        ),
        (
            "/api/v1/namespaces/demo/pods",
            {"metadata": {"name": "a"}, "spec": {"containers": [None]}},
            "an item of the list is null",
        ),
        (
            "/apis/apps/v1/namespaces/demo/deployments",
            {
                "metadata": {"name": "a"},
                "spec": {
                    "selector": {"matchLabels": {"a": "b"}},
                    "template": {"metadata": {}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
                },
            },
            "`selector` does not match template `labels`",
        ),
        (
            "/api/v1/namespaces/demo/services",
            {"metadata": {"name": "a"}, "spec": {"ports": [{"targetPort": 80}]}},
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
        ),
        ("/api/v1/namespaces/missing/configmaps", {"metadata": {"name": "a"}}, 'namespaces \\"missing\\" not found'),
        (MAPS, b"{", "cannot be decoded"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    autojump_clock: object, caller: Caller, path: str, document: Any, problem: str
) -> None:
    before = caller.sandbox.store.revision
    answer = await caller.ask("POST", path, document)
    assert 400 <= answer.status < 500, answer.body
    assert problem in answer.body.decode()
    assert caller.sandbox.store.revision == before


async def test_a_body_may_be_yaml_and_dates_stay_text(autojump_clock: object, caller: Caller) -> None:
    body = b"metadata: {name: a}\ndata: {day: 2026-01-01}\n"
    answer = await caller.ask("POST", MAPS, body, Content_Type="application/yaml")
    assert answer.document["data"] == {"day": "2026-01-01"}
    assert (await caller.ask("POST", MAPS, b"x", Content_Type="application/cbor")).status == 415


async def test_a_body_that_is_too_large_is_refused(autojump_clock: object, caller: Caller) -> None:
    answer = await caller.ask("POST", MAPS, b" " * 3_145_729)
    assert answer.status == 413


async def test_only_json_is_answered(autojump_clock: object, caller: Caller) -> None:
    assert (await caller.ask("GET", MAPS, Accept="application/vnd.kubernetes.protobuf")).status == 406
    both = await caller.ask("GET", MAPS, Accept="application/vnd.kubernetes.protobuf,application/json")
    assert both.field("content-type") == "application/json"


async def test_a_dry_run_changes_nothing(autojump_clock: object, caller: Caller) -> None:
    before = caller.sandbox.store.revision
    made = await caller.ask("POST", f"{MAPS}?dryRun=All", {"metadata": {"name": "a"}})
    assert made.status == 201
    merge = {"Content_Type": "application/merge-patch+json"}
    patched = await caller.ask("PATCH", f"{MAPS}/web-config?dryRun=All", {"data": {"x": "y"}}, **merge)
    assert patched.document["data"]["x"] == "y"
    assert (await caller.ask("DELETE", f"{MAPS}/web-config?dryRun=All")).status == 200
    assert caller.sandbox.store.revision == before


@pytest.mark.parametrize(
    ("content_type", "patch"),
    [
        ("json-patch+json", [{"op": "add", "path": "/metadata/labels/x", "value": "y"}]),
        ("merge-patch+json", {"metadata": {"labels": {"x": "y"}}}),
        ("strategic-merge-patch+json", {"metadata": {"labels": {"x": "y"}}}),
        ("apply-patch+yaml", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"labels": {"x": "y"}}}),
    ],
)
async def test_an_object_can_be_patched_in_four_ways(
    autojump_clock: object, caller: Caller, content_type: str, patch: Any
) -> None:
    answer = await caller.ask("PATCH", WEB, patch, Content_Type=f"application/{content_type}")
    assert answer.status == 200, answer.body
    assert answer.document["metadata"]["labels"] == {"app": "web", "x": "y"}
    assert ("one manager" in (answer.field("warning") or "")) is content_type.startswith("apply")


async def test_a_patch_of_another_kind_is_refused(autojump_clock: object, caller: Caller) -> None:
    answer = await caller.ask("PATCH", WEB, {}, Content_Type="application/json")
    assert answer.status == 415
    assert "strategic-merge-patch" in answer.document["message"]


async def test_apply_creates_and_takes_back_what_it_said(autojump_clock: object, caller: Caller) -> None:
    apply = {"Content_Type": "application/apply-patch+yaml"}
    first = await caller.ask("PATCH", f"{MAPS}/new", {"data": {"a": "1", "b": "1"}}, **apply)
    assert first.status == 200
    await caller.ask("PATCH", f"{MAPS}/new", {"data": {"c": "1"}}, Content_Type="application/merge-patch+json")
    second = await caller.ask("PATCH", f"{MAPS}/new", {"data": {"a": "2"}}, **apply)
    assert second.document["data"] == {"a": "2", "c": "1"}


async def test_the_selector_of_a_deployment_stays_as_it_is(autojump_clock: object, caller: Caller) -> None:
    template = {"metadata": {"labels": {"x": "y"}}}
    patch = {"spec": {"selector": {"matchLabels": {"x": "y"}}, "template": template}}
    answer = await caller.ask("PATCH", WEB, patch, Content_Type="application/merge-patch+json")
    assert (answer.status, "field is immutable" in answer.document["message"]) == (422, True)


async def test_status_and_spec_are_changed_apart(autojump_clock: object, caller: Caller) -> None:
    merge = {"Content_Type": "application/merge-patch+json"}
    patch = {"spec": {"replicas": 7}, "status": {"replicas": 9}}
    first = (await caller.ask("PATCH", f"{WEB}/status", patch, **merge)).document
    assert (first["spec"]["replicas"], first["status"]) == (3, {"replicas": 9})
    second = (await caller.ask("PATCH", WEB, {**patch, "status": {"replicas": 1}}, **merge)).document
    assert (second["spec"]["replicas"], second["status"]) == (7, {"replicas": 9})


async def test_the_scale_is_read_and_set(autojump_clock: object, caller: Caller) -> None:
    scale = await caller.get(f"{WEB}/scale")
    assert (scale["kind"], scale["spec"], scale["status"]["selector"]) == ("Scale", {"replicas": 3}, "app=web")
    scale["spec"]["replicas"] = 5
    assert (await caller.ask("PUT", f"{WEB}/scale", scale)).document["spec"] == {"replicas": 5}
    patch = {"spec": {"replicas": 2}}
    await caller.ask("PATCH", f"{WEB}/scale", patch, Content_Type="application/merge-patch+json")
    assert (await caller.get(WEB))["spec"]["replicas"] == 2
    assert (await caller.ask("PUT", f"{WEB}/scale", scale)).status == 409
    assert (await caller.ask("PUT", f"{WEB}/scale", {"spec": {"replicas": -1}})).status == 400


async def test_a_secret_takes_plain_text(autojump_clock: object, caller: Caller) -> None:
    secret = {"metadata": {"generateName": "s-"}, "stringData": {"a": "b"}}
    made = (await caller.ask("POST", "/api/v1/namespaces/demo/secrets", secret)).document
    assert made["metadata"]["name"].startswith("s-")
    assert (made["data"], made["type"], "stringData" in made) == ({"a": "Yg=="}, "Opaque", False)


async def test_lists_are_selected_and_cut_into_pages(autojump_clock: object, caller: Caller) -> None:
    for name in "abcde":
        await make(caller, name, **({"data": {}} if name != "c" else {}))
    names, token, rounds = [], "", 0
    first_version = None
    while True:
        page = await caller.get(f"{MAPS}?limit=2&continue={token}")
        first_version = first_version or page["metadata"]["resourceVersion"]
        assert page["metadata"]["resourceVersion"] == first_version
        names += [item["metadata"]["name"] for item in page["items"]]
        rounds += 1
        if rounds == 1:
            assert page["metadata"]["remainingItemCount"] == 4
            await make(caller, "dd")
        if not (token := page["metadata"].get("continue", "")):
            break
    assert names == ["a", "b", "c", "d", "dd", "e", "web-config"]
    selected = await caller.get(f"{MAPS}?fieldSelector=metadata.name%3Dc")
    assert [item["metadata"]["name"] for item in selected["items"]] == ["c"]
    everywhere = await caller.get("/apis/apps/v1/deployments?labelSelector=app%20in%20(web)")
    assert [item["metadata"]["name"] for item in everywhere["items"]] == ["web"]
    assert everywhere["kind"] == "DeploymentList"


async def test_an_old_page_is_gone(autojump_clock: object, caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.store, "HISTORY", 2)
    for name in "abc":
        await make(caller, name)
    token = (await caller.get(f"{MAPS}?limit=1"))["metadata"]["continue"]
    for name in "def":
        await make(caller, name)
    answer = await caller.ask("GET", f"{MAPS}?limit=1&continue={token}")
    assert (answer.status, answer.document["reason"]) == (410, "Expired")


async def test_tables_hold_what_is_asked_for(autojump_clock: object, caller: Caller) -> None:
    table = await caller.get(MAPS, Accept=TABLE)
    assert (table["kind"], [row["cells"][0] for row in table["rows"]]) == ("Table", ["web-config"])
    assert table["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    whole = await caller.get(f"{MAPS}?includeObject=Object", Accept=TABLE)
    assert whole["rows"][0]["object"]["data"]
    assert (await caller.get(f"{MAPS}?includeObject=None", Accept=TABLE))["rows"][0]["object"] is None
    assert (await caller.get(f"{MAPS}/web-config", Accept=TABLE))["rows"][0]["cells"][1] == 1


async def test_metadata_alone(autojump_clock: object, caller: Caller) -> None:
    accept = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
    found = await caller.get(MAPS, Accept=accept)
    assert found["kind"] == "PartialObjectMetadataList"
    assert found["items"][0].keys() == {"kind", "apiVersion", "metadata"}


async def test_a_watch_tells_what_enters_changes_and_leaves_the_selection(
    autojump_clock: object, caller: Caller
) -> None:
    version = (await caller.get(MAPS))["metadata"]["resourceVersion"]
    target = f"{MAPS}?watch=1&resourceVersion={version}&labelSelector=in%3Dyes&timeoutSeconds=50"
    watch = await caller.watch(target)
    for labels in ({"in": "no"}, {"in": "yes"}, {"in": "yes", "more": "1"}, {"in": "no"}):
        if (await caller.ask("GET", f"{MAPS}/a")).status == 404:
            await make(caller, "a", metadata={"name": "a", "labels": labels})
        else:
            patch = {"metadata": {"labels": labels}}
            await caller.ask("PATCH", f"{MAPS}/a", patch, Content_Type="application/merge-patch+json")
    await make(caller, "unlabelled")
    assert [(await watch.event())["type"] for _ in range(3)] == ["ADDED", "MODIFIED", "DELETED"]
    assert await watch.event() is None


async def test_a_watch_without_a_version_begins_with_what_is_there(autojump_clock: object, caller: Caller) -> None:
    watch = await caller.watch(f"{MAPS}?watch=true&timeoutSeconds=5")
    assert (await watch.event())["object"]["metadata"]["name"] == "web-config"
    await caller.ask("DELETE", f"{MAPS}/web-config")
    assert (await watch.event())["type"] == "DELETED"


async def test_a_watch_list_ends_its_beginning_with_a_bookmark(autojump_clock: object, caller: Caller) -> None:
    query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    watch = await caller.watch(f"{MAPS}?{query}&timeoutSeconds=100")
    assert (await watch.event())["type"] == "ADDED"
    bookmark = await watch.event()
    assert bookmark["type"] == "BOOKMARK"
    assert bookmark["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
    assert bookmark["object"]["metadata"]["resourceVersion"] == str(caller.sandbox.store.revision)
    began = trio.current_time()
    later = await watch.event()
    assert (later["type"], "annotations" in later["object"]["metadata"]) == ("BOOKMARK", False)
    assert trio.current_time() - began == pytest.approx(60)
    assert await watch.event() is None


async def test_bookmarks_tell_of_changes_elsewhere(autojump_clock: object, caller: Caller) -> None:
    version = caller.sandbox.store.revision
    watch = await caller.watch(f"{MAPS}?watch=1&resourceVersion={version}&allowWatchBookmarks=1&timeoutSeconds=70")
    await caller.ask("POST", "/api/v1/namespaces/demo/secrets", {"metadata": {"name": "s"}})
    assert (await watch.event())["object"]["metadata"]["resourceVersion"] == str(version + 1)


async def test_a_watch_from_an_old_version_is_told_to_list_again(
    autojump_clock: object, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox.store, "HISTORY", 2)
    begin = caller.sandbox.store.revision
    for name in "abc":
        await make(caller, name)
    watch = await caller.watch(f"{MAPS}?watch=1&resourceVersion={begin}")
    event = await watch.event()
    assert (event["type"], event["object"]["code"], event["object"]["reason"]) == ("ERROR", 410, "Expired")
    assert await watch.event() is None


async def test_a_watch_of_tables_gives_the_columns_once(autojump_clock: object, caller: Caller) -> None:
    await make(caller, "a")
    watch = await caller.watch(f"{MAPS}?watch=1&timeoutSeconds=5", Accept=TABLE)
    first, second = await watch.event(), await watch.event()
    assert (bool(first["object"]["columnDefinitions"]), second["object"]["columnDefinitions"]) == (True, [])
    assert second["object"]["rows"][0]["cells"][0] == "web-config"


async def test_who_goes_away_leaves_nothing_behind(autojump_clock: object, caller: Caller) -> None:
    watch = await caller.watch(f"{MAPS}?watch=1")
    await watch.event()
    await trio.testing.wait_all_tasks_blocked()
    tasks = trio.lowlevel.current_statistics().tasks_living
    watch.transport.abort()
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living < tasks
    assert len(caller.sandbox.store._changed) == 0


async def test_preconditions_of_a_deletion_are_kept(autojump_clock: object, caller: Caller) -> None:
    made = await make(caller, "a")
    refused = await caller.ask("DELETE", f"{MAPS}/a", {"preconditions": {"uid": "other"}})
    assert refused.status == 409
    options = {"preconditions": {"uid": made["metadata"]["uid"]}}
    assert (await caller.ask("DELETE", f"{MAPS}/a", options)).status == 200


async def test_everybody_may_do_everything_and_is_who_they_say(autojump_clock: object, caller: Caller) -> None:
    review = {"spec": {"resourceAttributes": {"verb": "delete", "resource": "nodes"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    answer = await caller.ask("POST", path, review)
    assert (answer.status, answer.document["status"]["allowed"]) == (201, True)
    rules = await caller.ask("POST", path.replace("access", "rules"), {"spec": {"namespace": "demo"}})
    assert rules.document["status"]["resourceRules"][0]["verbs"] == ["*"]
    whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    assert (await caller.ask("POST", whoami, {})).document["status"]["userInfo"]["username"] == "sandbox-admin"
    fields = {"Impersonate_User": "ann", "Impersonate_Group": "dev"}
    user = (await caller.ask("POST", whoami, {}, **fields)).document["status"]["userInfo"]
    assert (user["username"], user["groups"]) == ("ann", ["dev", "system:authenticated"])


async def test_an_object_that_breaks_the_sandbox_is_an_error_and_no_more(
    autojump_clock: object, caller: Caller
) -> None:
    """Types that admission does not know may still make no sense; whoever reads such an object is told."""
    caller.sandbox.store.create(
        CONFIG_MAPS, CONFIG_MAPS.of({"metadata": {"name": "odd", "namespace": "demo"}, "data": 5})
    )
    answer = await caller.ask("GET", MAPS, Accept=TABLE)
    assert (answer.status, answer.document["reason"]) == (500, "InternalError")
    assert (await caller.ask("GET", MAPS)).status == 200


async def test_a_sandbox_needs_a_token() -> None:
    from sandbox.cluster import Sandbox

    with pytest.raises(ValueError, match="needs a token"):
        Sandbox(token="")
