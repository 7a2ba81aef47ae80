"""The chart through a real Helm engine, and all of k8s/: valid, locked down, in step with its sources."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from helm_python import Chart

from scripts.render_k8s import main as render_all
from tests.components.api_server import KUBERNETES, problems_of_job
from tests.jobs import ROOT

K8S = ROOT / "k8s"
ON = {"enabled": True}
EVERYTHING: dict[str, Any] = {
    "podMonitor": ON,
    "dashboard": ON,
    "jobFlow": ON,
    "reverify": {**ON, "model": "s3://runs/x", "sets": "s3://faces/x", "floor": 0.98},
    "seaweedfs": ON,
    "queue": {"capability": {"huawei.com/Ascend910": 32}},
    "submitters": {"subjects": [{"kind": "Group", "name": "faces-team", "apiGroup": "rbac.authorization.k8s.io"}]},
    "workers": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/x"}},
}
EXTERNAL: dict[str, Any] = {"s3": {"externalSecret": {**ON, "store": "vault"}}}
# Names that YAML would read as something else, numbers that Go prints as floats, words with marks of YAML in them.
ODD: dict[str, Any] = {
    **EVERYTHING,
    "namespace": {"name": "123"},
    "queue": {"name": "true", "weight": 2000000, "capability": {"huawei.com/Ascend910": 32, "memory": 2000000000000}},
    "workers": {"serviceAccount": "1e3", "annotations": {"a.b/c": "yes: no"}},
    "submitters": {"serviceAccount": "null"},
    "s3": {"secret": "0x10", "cidrs": ["::/0", "10.0.0.0/8"], "ports": [8333]},
    "image": {"repository": "registry.example:5000/a", "tag": "1.0", "pullSecrets": ["007"]},
    "networkPolicy": {
        "prometheusNamespace": "on",
        "dns": {"namespaces": ["openshift-dns"], "cidrs": ["169.254.20.10/32"], "port": 5353},
    },
    "podMonitor": {**ON, "labels": {"release": "on"}},
    "reverify": {**ON, "model": "s3://runs/a: b #c$(HOME)", "sets": "s3://faces/{x}$$", "floor": 1},
    "seaweedfs": {**ON, "bucket": "123", "storageClass": "no"},
}
BARE: dict[str, Any] = {
    "namespace": {"create": False},
    "queue": {"create": False},
    "priorityClasses": {"create": False},
    "networkPolicy": {"enabled": False},
}


def render(values: dict[str, Any] | None = None) -> dict[str, str]:
    found: dict[str, str] = Chart.load(str(K8S / "chart")).render(values, name="arcface", namespace="faces")
    return found


def documents(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    texts = [text for path, text in render(values).items() if not path.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def checked_in() -> list[tuple[str, dict[str, Any]]]:
    paths = sorted([*(K8S / "manifests").glob("*.yaml"), *(K8S / "jobs").glob("*.yaml")])
    return [
        (p.name, d) for p in paths if p.name != "kustomization.yaml" for d in yaml.safe_load_all(p.read_text()) if d
    ]


def pod_specs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Every pod spec inside a document, wherever it stands."""
    found = []
    if isinstance(document, dict):
        if "containers" in document:
            found.append(document)
        for value in document.values():
            found += pod_specs(value)
    elif isinstance(document, list):
        for value in document:
            found += pod_specs(value)
    return found


@pytest.mark.parametrize(
    "values",
    [None, EVERYTHING, EXTERNAL, BARE, ODD],
    ids=["defaults", "everything", "external", "bare", "odd"],
)
def test_what_the_chart_renders_is_valid(values: dict[str, Any] | None) -> None:
    custom = {"Queue", "PodMonitor", "ExternalSecret", "JobFlow", "JobTemplate"}
    seen = set()
    for document in documents(values):
        seen.add(document["kind"])
        if document["kind"] == "JobTemplate":
            name = {"name": document["metadata"]["name"]}
            job = {"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": name, "spec": document["spec"]}
            assert problems_of_job(job) == []
        elif document["kind"] not in custom:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    if values is EVERYTHING:
        assert seen >= {
            "Queue",
            "PodMonitor",
            "JobFlow",
            "CronJob",
            "StatefulSet",
            "ConfigMap",
            "Role",
            "NetworkPolicy",
        }


def test_odd_values_arrive_as_they_are() -> None:
    found = {(d["kind"], d["metadata"]["name"]): d for d in documents(ODD)}
    assert all(d["metadata"].get("namespace", "123") == "123" for d in found.values())
    queue = found["Queue", "true"]["spec"]
    assert queue["weight"] == 2000000
    assert float(queue["capability"]["memory"]) == 2e12
    assert found["ServiceAccount", "1e3"]["imagePullSecrets"] == [{"name": "007"}]
    assert found["ServiceAccount", "1e3"]["metadata"]["annotations"] == {"a.b/c": "yes: no"}
    cron = found["CronJob", "arcface-reverify"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert cron["containers"][0]["args"][1:4:2] == [
        "s3://runs/a: b #c$$(HOME)",
        "s3://faces/{x}$$$$",
    ]  # the kubelet halves them
    assert cron["containers"][0]["image"] == "registry.example:5000/a:1.0"
    assert found["PodMonitor", "arcface"]["metadata"]["labels"]["release"] == "on"
    store, trial = found["NetworkPolicy", "arcface-object-store"]["spec"]["egress"]
    assert [block["ipBlock"]["cidr"] for block in store["to"]] == ["::/0", "10.0.0.0/8"]
    assert trial["ports"] == [{"protocol": "TCP", "port": 8333}]
    (dns,) = found["NetworkPolicy", "arcface-dns"]["spec"]["egress"]
    assert len(dns["to"]) == 2
    assert {port["port"] for port in dns["ports"]} == {5353}


@pytest.mark.parametrize("values", [None, EVERYTHING, ODD], ids=["defaults", "everything", "odd"])
def test_helm_lint_has_no_warning(values: dict[str, Any] | None) -> None:
    report = helm_python.lint(K8S / "chart", values, strict=True)
    assert report["errors"] == []
    assert [message for message in report["messages"] if message["severity"] >= 2] == []


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"image": {"tag": "latest"}}, "image"),
        ({"queue": {"weight": 0}}, "weight"),
        ({"s3": {"cidrs": ["everywhere"]}}, "cidrs"),
        ({"namespace": {"podSecurity": "none"}}, "podSecurity"),
        ({"namspace": {"name": "x"}}, "namspace"),
        ({"reverify": {"floor": 98}}, "floor"),
        ({"seaweedfs": {"image": "chrislusf/seaweedfs:latest"}}, "seaweedfs"),
    ],
)
def test_wrong_values_are_refused_with_their_path(values: dict[str, Any], where: str) -> None:
    chart = Chart.load(str(K8S / "chart"))
    with pytest.raises(helm_python.HelmError, match=where):
        chart.validate_schema(chart.merge_values(values))


def test_what_a_feature_needs_is_asked_for() -> None:
    with pytest.raises(helm_python.HelmError, match=r"reverify\.model: the URL of a run folder is needed"):
        render({"reverify": ON})
    with pytest.raises(helm_python.HelmError, match=r"s3\.externalSecret\.store"):
        render({"s3": {"externalSecret": ON}})


def everything_that_runs() -> list[tuple[str, dict[str, Any]]]:
    rendered = [(d["kind"], d) for d in documents(EVERYTHING)]
    return [*rendered, *checked_in()]


def test_every_pod_meets_the_level_restricted_and_names_a_fixed_image() -> None:
    count = 0
    for name, document in everything_that_runs():
        for spec in pod_specs(document):
            count += 1
            assert spec["securityContext"]["runAsNonRoot"] is True, name
            assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
            assert spec["automountServiceAccountToken"] is False, name
            assert not any("hostPath" in volume for volume in spec["volumes"]), name
            for container in spec["containers"]:
                security = container["securityContext"]
                assert security["allowPrivilegeEscalation"] is False, name
                assert security["capabilities"]["drop"] == ["ALL"], name
                assert security["readOnlyRootFilesystem"] is True, name
                assert set(container["resources"]["limits"]) >= {"cpu", "memory"}, name
                tag = container["image"].rsplit("/", 1)[-1].partition(":")[2]
                assert tag not in ("", "latest"), name
    assert count > 10


def test_no_secret_value_is_written_down() -> None:
    secrets = [document for _, document in everything_that_runs() if document["kind"] == "Secret"]
    # Only the trial store's, whose keys are drawn when it is installed: two renderings differ.
    assert len(secrets) == 1
    again = next(document for document in documents(EVERYTHING) if document["kind"] == "Secret")
    assert secrets[0]["stringData"]["AWS_SECRET_ACCESS_KEY"] != again["stringData"]["AWS_SECRET_ACCESS_KEY"]
    for path in K8S.rglob("*"):
        if path.is_file() and "seaweedfs" not in path.name:
            text = path.read_text()
            assert "AWS_SECRET_ACCESS_KEY:" not in text, path


def test_submitters_may_do_what_torchx_asks_and_workers_nothing() -> None:
    bindings = [d for d in documents() if d["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    subjects = {subject["name"] for binding in bindings for subject in binding["subjects"]}
    assert subjects == {"arcface-submitter"}
    (role,) = [d for d in documents() if d["kind"] == "Role"]
    allowed = {(r, verb) for rule in role["rules"] for r in rule["resources"] for verb in rule["verbs"]}
    assert {("jobs", "create"), ("jobs", "delete"), ("jobs/status", "update"), ("pods/log", "get")} <= allowed
    assert {("pods", "create"), ("events", "list"), ("podgroups", "list")} <= allowed  # preflight and status
    # A key for each job's rendezvous; the store's is not theirs to read.
    assert {verb for resource, verb in allowed if resource == "secrets"} == {"create"}
    assert not any("*" in pair for pair in allowed)


def test_the_jobflow_follows_every_value_of_the_chart() -> None:
    values = {
        "jobFlow": ON,
        "workers": {"serviceAccount": "our-worker"},
        "s3": {"secret": "our-keys"},
        "namespace": {"name": "ours"},
        "queue": {"name": "fast"},
    }
    flow = [d for d in documents(values) if d["kind"] in ("JobTemplate", "JobFlow")]
    assert len(flow) == 3
    text = yaml.safe_dump(flow)
    for default in ("arcface-worker", "arcface-s3", "@"):
        assert default not in text, default
    assert text.count("TASK_QUEUE_ENABLE") == 5  # a variable of the devices, not the queue
    for template in flow[:2]:
        assert template["spec"]["queue"] == "fast"
        for spec in pod_specs(template):
            assert spec["serviceAccountName"] == "our-worker"
            for container in spec["containers"]:
                keys = {"secretRef": {"name": "our-keys"}}
                rendezvous = {"secretRef": {"name": "our-keys-rdzv", "optional": True}}
                assert container.get("envFrom", []) in ([rendezvous], [keys], [keys, rendezvous])


def test_helm_test_writes_to_the_store() -> None:
    for values, url in (
        ({}, "s3://runs/.helm-test"),
        ({"seaweedfs": ON}, "s3://faces/.helm-test"),
        ({"s3": {"testUrl": "s3://ours/x$(A)"}}, "s3://ours/x$$(A)"),
    ):
        (pod,) = [d for d in documents(values) if d["kind"] == "Pod"]
        (container,) = pod["spec"]["containers"]
        assert container["command"][-2:] == ["--output", url]
        assert container["envFrom"] == [{"secretRef": {"name": "arcface-s3"}}]


@pytest.mark.parametrize("create", [True, False])
def test_the_sample_names_what_the_chart_makes(create: bool) -> None:
    values = {"priorityClasses": {"create": create}, "workers": {"serviceAccount": "our-worker"}}
    (notes,) = [text for path, text in render(values).items() if path.endswith("NOTES.txt")]
    assert "service_account = our-worker" in notes
    assert ("priority_class = arcface-train" in notes) == create


def test_network_is_denied_by_default_and_prometheus_is_let_in() -> None:
    policies = {d["metadata"]["name"]: d["spec"] for d in documents() if d["kind"] == "NetworkPolicy"}
    assert policies["arcface-deny-by-default"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    # Volcano's svc plugin lets pods of the same job in; anything here would let in those of other jobs too.
    assert policies["arcface-within-jobs"]["policyTypes"] == ["Egress"]
    (store,) = policies["arcface-object-store"]["egress"]
    assert [block["ipBlock"]["cidr"] for block in store["to"]] == ["0.0.0.0/0", "::/0"]  # clusters of IPv6 alone too
    (rule,) = policies["arcface-prometheus"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 9400}]


def test_what_is_checked_in_is_what_its_sources_render(tmp_path: Path) -> None:
    render_all(["--output", str(tmp_path)])
    for folder in ("manifests", "jobs", "chart/files"):
        for path in sorted((tmp_path / folder).iterdir()):
            checked = K8S / folder / path.name
            assert checked.exists(), f"{checked}: run make k8s"
            assert checked.read_text() == path.read_text(), f"{checked} is not in step: run make k8s"
    for folder in ("manifests", "jobs"):
        assert {p.name for p in (K8S / folder).iterdir()} == {p.name for p in (tmp_path / folder).iterdir()}


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_the_manifests() -> None:
    built = subprocess.run(["kubectl", "kustomize", K8S / "manifests"], capture_output=True, text=True, check=True)
    chart = {(d["kind"], d["metadata"]["name"]) for d in documents() if "helm.sh/hook" not in str(d["metadata"])}
    assert {(d["kind"], d["metadata"]["name"]) for d in yaml.safe_load_all(built.stdout)} == chart


def test_the_jobs_for_kubectl_are_valid_volcano_jobs() -> None:
    jobs = [document for name, document in checked_in() if document["kind"] == "Job"]
    assert len(jobs) >= 5
    for job in jobs:
        assert problems_of_job(job) == []
