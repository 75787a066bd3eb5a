"""What `kubectl get` prints."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sandbox import kinds
from sandbox.tables import age, cells, columns, pod_status

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)


def stamp(**ago: float) -> str:
    return (NOW - timedelta(**ago)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        ({"seconds": -60}, "<invalid>"),
        ({"seconds": -1}, "0s"),
        ({"seconds": 0}, "0s"),
        ({"seconds": 119}, "119s"),
        ({"seconds": 120}, "2m"),
        ({"seconds": 125}, "2m5s"),
        ({"minutes": 10, "seconds": 5}, "10m"),
        ({"minutes": 179}, "179m"),
        ({"hours": 3}, "3h"),
        ({"hours": 7, "minutes": 59}, "7h59m"),
        ({"hours": 8, "minutes": 5}, "8h"),
        ({"hours": 47}, "47h"),
        ({"hours": 49}, "2d1h"),
        ({"days": 3}, "3d"),
        ({"days": 8, "hours": 5}, "8d"),
        ({"days": 729}, "729d"),
        ({"days": 730}, "2y"),
        ({"days": 735}, "2y5d"),
        ({"days": 365 * 8 + 5}, "8y"),
    ],
)
def test_ages_are_precise_where_they_are_short(ago: dict[str, float], text: str) -> None:
    assert age(stamp(**ago), NOW) == text


def test_an_age_may_be_unknown() -> None:
    assert age(None, NOW) == "<unknown>"


def container(*, ready: bool = False, restarts: int = 0, **state: Any) -> dict[str, Any]:
    return {"ready": ready, "restartCount": restarts, "state": state}


RUNNING = {"startedAt": stamp(minutes=1)}
READY = [{"type": "Ready", "status": "True"}]


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Failed", "reason": "Evicted"}, "Evicted"),
        (
            {"phase": "Pending", "containerStatuses": [container(waiting={"reason": "ContainerCreating"})]},
            "ContainerCreating",
        ),
        ({"phase": "Running", "containerStatuses": [container(ready=True, running=RUNNING)]}, "Running"),
        (
            {"phase": "Running", "containerStatuses": [container(terminated={"exitCode": 1, "reason": "Error"})]},
            "Error",
        ),
        ({"phase": "Running", "containerStatuses": [container(terminated={"exitCode": 3})]}, "ExitCode:3"),
        (
            {
                "phase": "Running",
                "conditions": READY,
                "containerStatuses": [
                    container(terminated={"exitCode": 0, "reason": "Completed"}),
                    container(ready=True, running=RUNNING),
                ],
            },
            "Running",
        ),
        (
            {
                "phase": "Running",
                "containerStatuses": [
                    container(terminated={"exitCode": 0, "reason": "Completed"}),
                    container(ready=True, running=RUNNING),
                ],
            },
            "NotReady",
        ),
    ],
)
def test_one_word_sums_up_a_pod(status: dict[str, Any], word: str) -> None:
    assert pod_status({"metadata": {}, "spec": {}, "status": status}) == word


@pytest.mark.parametrize(("phase", "word"), [("Running", "Terminating"), ("Succeeded", "Succeeded")])
def test_a_pod_on_its_way_out_terminates_unless_it_has_ended(phase: str, word: str) -> None:
    assert pod_status({"metadata": {"deletionTimestamp": stamp()}, "status": {"phase": phase}}) == word


def test_the_cells_of_a_pod_that_restarted() -> None:
    last = {"lastState": {"terminated": {"finishedAt": stamp(minutes=5)}}}
    pod = {
        "metadata": {"name": "p", "creationTimestamp": stamp(hours=1)},
        "spec": {"containers": [{}, {}], "nodeName": "n"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "containerStatuses": [
                container(ready=True, restarts=2, running=RUNNING) | last,
                container(ready=True, running=RUNNING),
            ],
        },
    }
    assert cells(kinds.PODS, pod, NOW) == [
        *("p", "2/2", "Running", "2 (5m ago)", "60m", "10.0.0.1", "n", "<none>", "<none>"),
    ]


def test_the_cells_of_services() -> None:
    service = {
        "metadata": {"name": "s", "creationTimestamp": stamp(days=1)},
        "spec": {
            "type": "NodePort",
            "clusterIP": "10.96.0.9",
            "selector": {"b": "2", "a": "1"},
            "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}],
        },
    }
    assert cells(kinds.SERVICES, service, NOW) == [
        *("s", "NodePort", "10.96.0.9", "<none>", "80:30080/TCP,53/UDP", "24h", "a=1,b=2"),
    ]


def test_the_cells_of_endpoints_are_cut_short() -> None:
    addresses = [{"ip": f"10.0.0.{number}"} for number in range(5)]
    document = {"metadata": {"name": "e"}, "subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}
    assert cells(kinds.ENDPOINTS, document, NOW)[1] == "10.0.0.0:80,10.0.0.1:80,10.0.0.2:80 + 2 more..."
    assert cells(kinds.ENDPOINTS, {"metadata": {"name": "e"}}, NOW)[1] == "<none>"


def test_the_cells_of_endpoint_slices_are_cut_short() -> None:
    document: dict[str, Any] = {"metadata": {"name": "e"}, "addressType": "IPv4"}
    assert cells(kinds.ENDPOINT_SLICES, document, NOW)[1:4] == ["IPv4", "<unset>", "<unset>"]
    document |= {"ports": [{"port": 80}], "endpoints": [{"addresses": [f"10.0.0.{number}"]} for number in range(5)]}
    assert cells(kinds.ENDPOINT_SLICES, document, NOW)[2:4] == ["80", "10.0.0.0,10.0.0.1,10.0.0.2 + 2 more..."]


@pytest.mark.parametrize("kind", kinds.STORED, ids=lambda kind: kind.plural)
def test_every_kind_has_a_cell_for_each_column_even_where_an_object_is_almost_empty(kind: kinds.Kind) -> None:
    template = {"spec": {"containers": []}}
    spec = {"containers": [], "template": template, "selector": {}}
    document = kind.of({"metadata": {"name": "x"}, "spec": spec})
    assert len(cells(kind, document, NOW)) == len(columns(kind))


def test_columns_are_described() -> None:
    result = columns(kinds.PODS)
    assert [item["name"] for item in result if not item["priority"]] == ["Name", "Ready", "Status", "Restarts", "Age"]
    assert (result[7]["name"], result[0]["format"]) == ("Nominated Node", "name")
