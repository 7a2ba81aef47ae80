"""Two releases of the chart in one cluster: what has no namespace belongs to one of them, and the other is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import helm_python
import pytest
import yaml
from helm_python import Config

from tests.k8s.test_chart import K8S, documents

OWNER = {"meta.helm.sh/release-name": "arcface", "meta.helm.sh/release-namespace": "faces"}
GROUPS = {
    "scheduling.k8s.io/v1": ("PriorityClass", "priorityclasses", ["arcface-train", "arcface-verify"]),
    "scheduling.volcano.sh/v1beta1": ("Queue", "queues", ["faces"]),
}


class Cluster(BaseHTTPRequestHandler):
    """Discovery, and the objects of the release ``arcface`` that have no namespace."""

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        found = self._find(self.path.partition("?")[0])
        body = json.dumps(found or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404}).encode()
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _find(self, path: str) -> dict[str, Any] | None:
        if path == "/version":
            return {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/api/v1":
            return {"kind": "APIResourceList", "groupVersion": "v1", "resources": []}
        if path == "/apis":
            versions = [{"groupVersion": each, "version": each.partition("/")[2]} for each in GROUPS]
            groups = [
                {"name": v["groupVersion"].partition("/")[0], "versions": [v], "preferredVersion": v} for v in versions
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        for version, (kind, plural, names) in GROUPS.items():
            if path == f"/apis/{version}":
                verbs = ["get", "list", "create"]
                resource = {"name": plural, "singularName": "", "namespaced": False, "kind": kind, "verbs": verbs}
                return {"kind": "APIResourceList", "groupVersion": version, "resources": [resource]}
            for name in names:
                if path == f"/apis/{version}/{plural}/{name}":
                    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "annotations": OWNER}}
        return None


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield yaml.safe_dump(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "t",
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
            "clusters": [{"name": "t", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "t", "user": {"token": "t"}}],
        }
    )
    server.shutdown()
    server.server_close()


def refusal(kubeconfig: str, name: str, values: dict[str, Any]) -> str:
    """What installing says; this cluster knows too little to take a chart, so it always says something."""
    namespace = values.get("namespace", {}).get("name", "faces")
    with pytest.raises(helm_python.HelmError) as refused:
        Config(kubeconfig_content=kubeconfig, namespace=namespace).install(
            str(K8S / "chart"), name, values, namespace=namespace, dry_run="server"
        )
    return str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"queue": {"name": "voices"}},
            "PriorityClass arcface-train is there already, made by release faces/arcface: set priorityClasses.create=",
        ),
        (
            {"priorityClasses": {"prefix": "voices"}},
            "Queue faces is there already, made by release faces/arcface: set queue.create=false to share it, or",
        ),
        ({"priorityClasses": {"create": False}}, "Queue faces is there already, made by release faces/arcface"),
    ],
)
def test_what_another_release_made_is_refused_with_what_to_do(
    cluster: str, values: dict[str, Any], message: str
) -> None:
    assert message in refusal(cluster, "arcface", {"namespace": {"name": "voices"}, **values})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("arcface", {}),  # an upgrade of the release itself
        ("second", {"namespace": {"name": "v"}, "queue": {"name": "v"}, "priorityClasses": {"prefix": "v"}}),
        ("second", {"namespace": {"name": "v"}, "queue": {"create": False}, "priorityClasses": {"create": False}}),
    ],
)
def test_what_is_ones_own_or_shared_is_not_refused(cluster: str, name: str, values: dict[str, Any]) -> None:
    said = refusal(cluster, name, values)
    assert "unable to build kubernetes objects" in said  # it was rendered: the next step is the cluster's


def test_a_second_release_has_no_name_in_common_with_the_first() -> None:
    second = {"namespace": {"name": "v"}, "queue": {"name": "v"}, "priorityClasses": {"prefix": "v"}}
    second["reverify"] = {"enabled": True, "model": "s3://r/x", "sets": "s3://f/x"}  # type: ignore[dict-item]
    names = [
        {(d["kind"], d["metadata"].get("namespace"), d["metadata"]["name"]) for d in documents(values)}
        for values in ({}, second)
    ]
    assert not names[0] & names[1]
    (cron,) = [d for d in documents(second) if d["kind"] == "CronJob"]
    assert cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]["priorityClassName"] == "v-verify"
