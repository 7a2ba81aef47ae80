"""A Kubernetes API server over HTTP for tests: stateful, validating, and able to fail on demand.

It knows Volcano jobs and queues, pods with logs, namespaces and Secrets. Pod templates are validated against the real
OpenAPI schema (kubernetes-validate), Volcano jobs against ``volcano_job.schema.json``, a description of the fields that
we emit written from Volcano's documentation.
"""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import jsonschema
import kubernetes_validate
import yaml

SCHEMA = json.loads((Path(__file__).parent / "volcano_job.schema.json").read_text())
KUBERNETES = "1.31"


def problems_of_job(job: dict[str, Any]) -> list[str]:
    """What is wrong with a Volcano job, as its webhook would see it."""
    validator = jsonschema.Draft202012Validator(SCHEMA)
    found = [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in validator.iter_errors(job)]
    if found:
        return found
    spec = job["spec"]
    names = [task["name"] for task in spec["tasks"]]
    replicas = sum(task["replicas"] for task in spec["tasks"])
    if len(set(names)) != len(names):
        found.append("spec.tasks: names repeat")
    if spec.get("minAvailable", 0) > replicas:
        found.append(f"spec.minAvailable: {spec['minAvailable']} is more than all {replicas} replicas")
    for task in spec["tasks"]:
        if len(f"{job['metadata']['name']}-{task['name']}-0") > 63:
            found.append(f"spec.tasks {task['name']}: the pod name is too long")
        template = task["template"]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "x", **template.get("metadata", {})},
            "spec": template["spec"],
        }
        try:
            kubernetes_validate.validate(_without_none(pod), KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"spec.tasks {task['name']}: {error}")
    return found


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


class ApiServer:
    """Start it in a ``with`` block; ``url`` and ``kubeconfig`` lead to it.

    ``failures`` maps (method, part of the path) to a status and a message that are answered instead.
    """

    def __init__(self, folder: Path) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.failures: dict[tuple[str, str], tuple[int, str]] = {}
        self.pod_refusals: dict[str, str] = {}  # part of a pod's name, and why it is refused
        self.refuse_secrets: tuple[int, str] | None = None  # when they are really made
        self.requests: list[tuple[str, str]] = []
        self.logs: dict[str, str] = {}
        self.lock = threading.Lock()
        server = self
        handler = type("Handler", (_Handler,), {"state": server})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self.kubeconfig = folder / "kubeconfig"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": "t"}}],
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.put("/api/v1/namespaces/default", {"metadata": {"name": "default"}})
        self.put("/apis/scheduling.volcano.sh/v1beta1/queues/default", {"status": {"state": "Open"}})
        self.put("/api/v1/namespaces/default/secrets/arcface-s3", {"metadata": {"name": "arcface-s3"}})

    def put(self, path: str, value: dict[str, Any]) -> None:
        """Make an object exist."""
        self.objects[path] = value

    def jobs(self) -> list[dict[str, Any]]:
        """All Volcano jobs."""
        return [value for path, value in self.objects.items() if "/jobs/" in path]

    def __enter__(self) -> ApiServer:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    state: ApiServer

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""

    def _answer(self, status: int, value: Any) -> None:
        text = isinstance(value, str)
        body = value.encode() if text else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _fail(self, status: int, message: str) -> None:
        self._answer(status, {"kind": "Status", "status": "Failure", "message": message, "code": status})

    def _handle(self) -> None:
        url = urlparse(self.path)
        query = parse_qs(url.query)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        with self.state.lock:
            self.state.requests.append((self.command, self.path))
            for (method, part), (status, message) in self.state.failures.items():
                if method == self.command and part in self.path:
                    self._fail(status, message)
                    return
            if self.command == "POST":
                self._post(url.path, dry_run="dryRun" in query, body=body)
            elif self.command == "PUT":
                self.state.put(url.path.removesuffix("/status"), body or {})
                self._answer(200, body)
            elif self.command == "DELETE":
                self._delete(url.path)
            else:
                self._get(url.path)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def _get(self, path: str) -> None:
        objects = self.state.objects
        if path.endswith("/log"):
            self._answer(200, self.state.logs.get(path.split("/")[-2], ""))
        elif path.removesuffix("/status") in objects:
            self._answer(200, objects[path.removesuffix("/status")])
        elif path.endswith(("/jobs", "/pods", "/events", "/podgroups")):
            items = [value for key, value in objects.items() if key.rpartition("/")[0] == path]
            self._answer(200, {"kind": "List", "items": items, "metadata": {}})
        else:
            self._fail(404, f"{path} not found")

    def _post(self, path: str, *, dry_run: bool, body: Any) -> None:
        key = f"{path}/{body['metadata']['name']}"
        if path.endswith("/pods"):
            self._admit(body)
        elif path.endswith("/secrets"):
            if refusal := None if dry_run else self.state.refuse_secrets:
                self._fail(*refusal)
                return
            if not dry_run:
                self.state.put(key, body)
            self._answer(201, body)
        elif problems := problems_of_job(body):
            self._fail(422, "; ".join(problems))
        elif key in self.state.objects:
            self._fail(409, f"jobs {body['metadata']['name']} already exists")
        else:
            if not dry_run:
                made = body["metadata"] | {"uid": f"uid-of-{body['metadata']['name']}"}
                self.state.put(key, body | {"metadata": made, "status": {"state": {"phase": "Pending"}}})
            self._answer(201, body)

    def _admit(self, pod: dict[str, Any]) -> None:
        """Answer as the admission of pods does: after the schema the service account, then ``pod_refusals``."""
        name = pod["metadata"]["name"]
        try:
            kubernetes_validate.validate(_without_none(pod), KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            self._fail(422, str(error))
            return
        refused = [why for part, why in self.state.pod_refusals.items() if part in name]
        if refused:
            self._fail(403, f'pods "{name}" is forbidden: {refused[0]}')
        else:
            self._answer(201, pod)

    def _delete(self, path: str) -> None:
        if self.state.objects.pop(path, None) is None:
            self._fail(404, f"{path} not found")
        else:
            self._answer(200, {"kind": "Status", "status": "Success"})
