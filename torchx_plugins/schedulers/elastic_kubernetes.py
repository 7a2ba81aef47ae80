"""TorchX's Kubernetes scheduler, with what its AppDef cannot say about a Volcano job, and with plain error messages.

A role carries the missing fields as overlays of the scheduler ``volcano``: ``Job`` is merged into the job, ``Task``
into each of the role's tasks. The stock scheduler does not look at them, so components work without this extension;
their jobs then do not end while an extra elastic replica is pending, and are not cleaned up.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from torchx.plugins import register
from torchx.schedulers.api import AppDryRunInfo
from torchx.schedulers.kubernetes_scheduler import KubernetesJob, KubernetesScheduler, Opts
from torchx.specs import AppDef
from torchx.specs.overlays import apply_overlay, get_overlay

from torchx_plugins.schedulers._cluster import ClusterError, check_cluster, explain

_GROUP = {"group": "batch.volcano.sh", "version": "v1alpha1", "plural": "jobs"}
MAX_NAME = 63

T = TypeVar("T")


class ElasticKubernetesScheduler(KubernetesScheduler):
    """Schedules AppDefs as Volcano jobs; see the module."""

    def _submit_dryrun(self, app: AppDef, cfg: Opts) -> AppDryRunInfo[KubernetesJob, Opts]:
        info = super()._submit_dryrun(app, dataclasses.replace(cfg, validate_spec=False))
        resource = info.request.resource
        complete_job(app, resource)
        add_pod_address(resource)
        check_names(resource)
        if cfg.validate_spec:
            namespace = cfg.namespace or "default"
            client = self._client_or_explain()
            check_cluster(client, namespace, cfg.queue, _secrets(resource))
            self._call(
                namespace,
                lambda: self._custom_objects_api().create_namespaced_custom_object(
                    **_GROUP,  # type: ignore[arg-type]
                    namespace=namespace,
                    body=resource,
                    dry_run="All",
                ),
            )
        return info

    def schedule(self, dryrun_info: AppDryRunInfo[KubernetesJob, Opts]) -> str:  # type: ignore[override]
        """Create the job; returns ``namespace:name``."""
        namespace = dryrun_info.cfg.namespace or "default"
        return self._call(namespace, lambda: super(ElasticKubernetesScheduler, self).schedule(dryrun_info))

    def _client_or_explain(self) -> Any:
        """The API client; a missing kubeconfig is said in words."""
        client = self._api_client()
        if client.configuration.host in ("", None, "http://localhost", "https://localhost"):
            raise ClusterError(
                "no Kubernetes cluster is configured: set KUBECONFIG or ~/.kube/config, or add "
                "-cfg validate_spec=False to a --dryrun to only see the manifest"
            )
        return client

    def _call(self, namespace: str, call: Callable[[], T]) -> T:
        """Run a request; what the API server or the network says becomes one plain message."""
        try:
            return call()
        except ClusterError:
            raise
        except Exception as error:
            raise explain(error, namespace, self._api_client().configuration.host) from error


def complete_job(app: AppDef, resource: dict[str, Any]) -> None:
    """Merge the roles' ``volcano`` overlays into a Volcano job, in place."""
    for role in app.roles:
        if job := get_overlay(role, "volcano", "Job"):
            apply_overlay(resource, job)
        task_fields = get_overlay(role, "volcano", "Task")
        for task in resource["spec"]["tasks"]:
            if task_fields and task["name"].rpartition("-")[0] == role.name:
                apply_overlay(task, task_fields)
    spec = resource["spec"]
    # 0 would be Volcano's default of three.
    spec["maxRetry"] = max(1, int(spec.get("maxRetry") or 0))


def add_pod_address(resource: dict[str, Any]) -> None:
    """Tell each trainer its own address in ``POD_IP``, from the downward API; no other scheduler has such a thing."""
    from kubernetes.client import V1EnvVar, V1EnvVarSource, V1ObjectFieldSelector

    source = V1EnvVarSource(field_ref=V1ObjectFieldSelector(field_path="status.podIP"))
    for task in resource["spec"]["tasks"]:
        for container in task["template"].spec.containers:
            if "app.elastic.launch" in (container.command or []):
                container.env = [*(container.env or []), V1EnvVar(name="POD_IP", value_from=source)]


def check_names(resource: dict[str, Any]) -> None:
    """Refuse names that Kubernetes would.

    Raises:
        ClusterError: a pod's is longer than 63 characters, or the job's cannot be that of a Service.
    """
    job = resource["metadata"]["name"]
    if not job[:1].isalpha():
        raise ClusterError(f"the job name {job!r} must begin with a letter: Volcano makes a Service of that name")
    for task in resource["spec"]["tasks"]:
        name = f"{job}-{task['name']}-{task.get('replicas', 1) - 1}"
        if len(name) > MAX_NAME:
            raise ClusterError(
                f"the pod name {name!r} has {len(name)} characters, {MAX_NAME} are allowed: shorten --name"
            )


def _secrets(resource: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for task in resource["spec"]["tasks"]:
        for container in task["template"].spec.containers:
            names += [source.secret_ref.name for source in container.env_from or [] if source.secret_ref]
    return sorted(set(names))


@register.scheduler(name="kubernetes")
def create_scheduler(
    session_name: str, client: Any = None, docker_client: Any = None, **_: Any
) -> ElasticKubernetesScheduler:
    """Takes the place of TorchX's ``kubernetes`` scheduler."""
    return ElasticKubernetesScheduler(session_name, client=client, docker_client=docker_client)
