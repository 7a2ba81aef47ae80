"""The metrics endpoint: scraped over HTTP, with the names that the dashboard uses."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.observe.events import EventLog
from app.observe.figures import FIGURES, Reporter
from app.observe.metrics import Metrics
from app.observe.progress import Progress
from demo.object_store import free_port

DASHBOARD = Path(__file__).resolve().parent.parent / "k8s" / "chart" / "files" / "dashboard.json"


def test_what_is_served_is_what_the_dashboard_asks_for() -> None:
    port = free_port()
    metrics = Metrics(port)
    before = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    assert "arcface_loss 0" not in before  # nobody has measured one
    assert not next(iter(text_string_to_metric_families(before))).samples
    Reporter(Progress(10, enabled=False), EventLog("memory://run", enabled=False, tensorboard=False), metrics)
    metrics.last_checkpoint.set(1)
    metrics.set(dict.fromkeys(FIGURES, 1) | {"step": 7})
    metrics.accuracy.labels("lfw").set(0.99)
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    served = {family.name: family for family in text_string_to_metric_families(text)}
    assert served["arcface_step"].samples[0].value == 7
    asked = {
        name
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel["targets"]
        for name in re.findall(r"arcface_\w+", target["expr"])
    }
    assert len(asked) >= 9
    assert asked <= set(served)


def test_the_dashboard_can_be_imported() -> None:
    """What Grafana's import, or its sidecar, stumbles over; no id of another Grafana's database."""
    board = json.loads(DASHBOARD.read_text())
    assert board["id"] is None
    assert board["uid"]
    assert board["title"]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["pod"]["allValue"] == ".*"  # also where no pod is: a run on a machine of one's own
    places: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        source = {"type": "prometheus", "uid": "${datasource}"}
        assert panel["datasource"] == source
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for target in panel["targets"]:
            assert target["datasource"] == source
            assert set(re.findall(r"\$\{?(\w+)", target["expr"])) <= set(variables)
            assert len(re.findall(r"arcface_\w+", target["expr"])) == target["expr"].count('{pod=~"$pod"}')
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & places, panel["title"]
        places |= cells


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_pods_of_both_address_families_can_scrape() -> None:
    port = free_port()
    Metrics(port).set({"step": 7})
    for host in ("127.0.0.1", "[::1]"):
        assert b"arcface_step 7" in urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=5).read()


def test_a_port_in_use_is_a_warning() -> None:
    port = free_port()
    Metrics(port)
    with pytest.warns(UserWarning, match="metrics are not served"):
        Metrics(port)
