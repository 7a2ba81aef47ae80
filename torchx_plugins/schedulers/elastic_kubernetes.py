"""TorchX's Kubernetes scheduler, with what its AppDef cannot say about a Volcano job, and with plain error messages.

A role carries the missing fields as overlays of the scheduler ``volcano``: ``Job`` is merged into the job, ``Task``
into each of the role's tasks. The stock scheduler does not look at them, so components work without this extension;
their jobs then do not end while an extra elastic replica is pending, and are not cleaned up.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from torchx.plugins import register
from torchx.schedulers.api import AppDryRunInfo, DescribeAppResponse, ListAppResponse, Stream
from torchx.schedulers.kubernetes_scheduler import KubernetesJob, KubernetesScheduler, Opts
from torchx.specs import AppDef, AppState, CfgVal
from torchx.specs.overlays import JOIN, apply_overlay, get_overlay
from torchx.util.strings import normalize_str
from yaml import YAMLError

from torchx_plugins.schedulers._cluster import ClusterError, NoClusterError, check_cluster, explain
from torchx_plugins.schedulers._command_line import speak_plainly, subcommand
from torchx_plugins.schedulers._deadlines import bound, follow
from torchx_plugins.schedulers._pods import ask_pods, check_places
from torchx_plugins.schedulers._run_key import RunKey

_GROUP = {"group": "batch.volcano.sh", "version": "v1alpha1", "plural": "jobs"}
MAX_NAME = 63
MAX_BYTES = 1_500_000  # etcd's default limit of a request
PATIENCE_SECONDS, PAUSE_SECONDS = 1800.0, 5.0

T = TypeVar("T")

speak_plainly()


class ElasticKubernetesScheduler(KubernetesScheduler):
    """Schedules AppDefs as Volcano jobs; see the module."""

    def _submit_dryrun(self, app: AppDef, cfg: Opts) -> AppDryRunInfo[KubernetesJob, Opts]:
        info = super()._submit_dryrun(app, dataclasses.replace(cfg, validate_spec=False))
        resource = info.request.resource
        complete_job(app, resource)
        add_pod_address(resource)
        name_namespace(resource, cfg.namespace or "default")
        keep_dollars(app, resource)
        check_names(resource)
        check_size(resource)
        if cfg.validate_spec:
            try:
                self.validate(resource, cfg, strict=False)
            except NoClusterError as error:
                # A dry run shows the manifest all the same; a submission fails with these words.
                print(f"warning: nobody looked at the job: {error}", file=sys.stderr)
        return info

    def validate(self, resource: dict[str, Any], cfg: Opts, *, strict: bool) -> None:
        """Let the cluster look at a job without creating it.

        Args:
            strict: also refuse what only time can mend, such as a quota that others have used up.

        Raises:
            ClusterError: it would refuse the job or its pods, or they could never start.
        """
        namespace = cfg.namespace or "default"
        check_places(resource)
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
        ask_pods(client, namespace, resource, strict=strict)

    def dryrun_push_images(self, app: AppDef, cfg: Mapping[str, CfgVal]) -> dict[str, tuple[str, str]]:
        """As TorchX does; then the roles' overlays, which find the container by its image, follow the new one."""
        pushed = super().dryrun_push_images(app, cfg)
        for role in app.roles:
            spec = get_overlay(role, "kubernetes", "V1Pod").get("spec", {})
            for container in spec.get(JOIN("containers", on="image"), [])[:1]:
                container["image"] = role.image
        return pushed

    def schedule(self, dryrun_info: AppDryRunInfo[KubernetesJob, Opts]) -> str:  # type: ignore[override]
        """Create the job, and the key of its rendezvous; returns ``namespace:name``."""
        namespace = dryrun_info.cfg.namespace or "default"
        key = RunKey(self._client_or_explain(), namespace, dryrun_info.request.resource)
        required = key.require()
        name = dryrun_info.request.resource["metadata"]["name"]
        left = f"the job may be there all the same: torchx delete kubernetes://torchx/{namespace}:{name}"
        try:
            app_id = self._call(namespace, lambda: super(ElasticKubernetesScheduler, self).schedule(dryrun_info))
        except NoClusterError as error:
            raise NoClusterError(f"{error}; {left}", transient=True) from error
        if required:
            try:
                self._call(namespace, lambda: key.create(self._uid(namespace, name)))
            except ClusterError as error:
                try:
                    self._delete_existing(app_id)  # its pods would wait for the key for ever
                except ClusterError:
                    raise ClusterError(f"{error}; {left}") from error
                raise
        return app_id

    def _uid(self, namespace: str, name: str) -> str:
        api = self._custom_objects_api()
        job: Any = api.get_namespaced_custom_object(**_GROUP, namespace=namespace, name=name)  # type: ignore[arg-type]
        return str(job["metadata"]["uid"])

    def describe(self, app_id: str) -> DescribeAppResponse | None:
        """State of a job, or None where it is gone; to ask for such a one on the command line is an error.

        Who waits for a job asks for days: a server that is away is asked again for ``PATIENCE_SECONDS``.

        Raises:
            ClusterError: the handle names none, or the cluster does not answer.
        """
        namespace, name = _split(app_id)
        asked = subcommand() in ("cancel", "delete", "describe", "log", "status")
        deadline = 0.0
        while True:
            try:
                found = self._call(namespace, lambda: self._describe(app_id))
                break
            except ClusterError as error:
                if asked or not error.transient or (deadline and time.monotonic() > deadline):
                    raise
                if not deadline:
                    deadline = time.monotonic() + PATIENCE_SECONDS
                    print(f"warning: {error}; asking again for {PATIENCE_SECONDS / 60:.0f} min", file=sys.stderr)
                time.sleep(PAUSE_SECONDS)
        if found is None and asked:
            raise ClusterError(
                f"there is no job {name!r} in namespace {namespace!r}: torchx list -s kubernetes shows what there is"
            )
        return found

    def _describe(self, app_id: str) -> DescribeAppResponse | None:
        try:
            return super().describe(app_id)
        except (LookupError, StopIteration):  # a job that was just made has no phase yet, or one that TorchX knows not
            return DescribeAppResponse(app_id=app_id, state=AppState.UNKNOWN)

    def list(self, cfg: Mapping[str, CfgVal] | None = None) -> list[ListAppResponse]:
        """Jobs of the namespace."""
        namespace = str((cfg or {}).get("namespace") or "default")
        return self._call(namespace, lambda: super(ElasticKubernetesScheduler, self).list(cfg))

    def log_iter(
        self,
        app_id: str,
        role_name: str,
        k: int = 0,
        regex: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        should_tail: bool = False,
        streams: Stream | None = None,
    ) -> Iterable[str]:
        """Lines of a pod's log."""
        namespace, name = _split(app_id)
        client = self._client_or_explain()

        def read() -> Iterable[str]:
            return super(ElasticKubernetesScheduler, self).log_iter(
                app_id, role_name, k, regex, since, until, should_tail, streams
            )

        def still_there() -> object:
            from kubernetes.client import CoreV1Api

            return CoreV1Api(client).read_namespaced_pod(normalize_str(f"{name}-{role_name}-{k}-0"), namespace)

        try:
            yield from follow(read, still_there) if should_tail else read()
        except Exception as error:
            if getattr(error, "status", None) == 404:
                raise ClusterError(
                    f"there is no pod of {role_name}/{k} of job {name!r} in namespace {namespace!r}: it has not "
                    "started, or went with its job; python -m components.status tells which"
                ) from error
            raise explain(error, namespace, client.configuration.host) from error

    def _cancel_existing(self, app_id: str) -> None:
        self._call(_split(app_id)[0], lambda: super(ElasticKubernetesScheduler, self)._cancel_existing(app_id))

    def _delete_existing(self, app_id: str) -> None:
        self._call(_split(app_id)[0], lambda: super(ElasticKubernetesScheduler, self)._delete_existing(app_id))

    def _api_client(self) -> Any:
        return bound(super()._api_client())

    def _client_or_explain(self) -> Any:
        """The API client; a kubeconfig that is missing or cannot be used is said in words."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # TorchX warns of a kubeconfig that cannot be used, and goes on
            try:
                client = self._api_client()
            except (YAMLError, OSError, TypeError, KeyError, AttributeError, ValueError) as error:
                raise NoClusterError(_no_cluster(f"{type(error).__name__}: {error}")) from error
        if client.configuration.host in ("", None, "http://localhost", "https://localhost"):
            raise NoClusterError(_no_cluster(*(str(warning.message) for warning in said)))
        return client

    def _call(self, namespace: str, call: Callable[[], T]) -> T:
        """Run a request; what the API server or the network says becomes one plain message."""
        client = self._client_or_explain()
        try:
            return call()
        except ClusterError:
            raise
        except Exception as error:
            raise explain(error, namespace, client.configuration.host) from error


def _no_cluster(*reasons: str) -> str:
    why = " ".join(" ".join(reasons).removeprefix("failed to load kube config: ").split())
    return "no Kubernetes cluster is configured: set KUBECONFIG or ~/.kube/config" + (f" ({why})" if why else "")


def _split(app_id: str) -> tuple[str, str]:
    namespace, _, name = app_id.partition(":")
    if not namespace or not name:
        raise ClusterError(f"{app_id!r} names no job: a handle is kubernetes://torchx/NAMESPACE:NAME, as run prints it")
    return namespace, name


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


def name_namespace(resource: dict[str, Any], namespace: str) -> None:
    """Tell the pods the job's handle as ``torchx run`` prints it: TorchX leaves the namespace out of TORCHX_JOB_ID."""
    name = resource["metadata"]["name"]
    for task in resource["spec"]["tasks"]:
        for container in task["template"].spec.containers:
            for variable in container.env or []:
                if variable.name == "TORCHX_JOB_ID" and variable.value.endswith(f"/{name}"):
                    variable.value = f"{variable.value.removesuffix(name)}{namespace}:{name}"


def keep_dollars(app: AppDef, resource: dict[str, Any]) -> None:
    """Let the words of our roles reach the pods as they are: Kubernetes fills in ``$(NAME)`` and halves ``$$``."""
    ours = {role.name for role in app.roles if get_overlay(role, "volcano", "Task")}
    for task in resource["spec"]["tasks"]:
        if task["name"].rpartition("-")[0] not in ours:
            continue
        for container in task["template"].spec.containers:
            container.command = [str(word).replace("$", "$$") for word in container.command or []]
            for variable in container.env or []:
                variable.value = variable.value and variable.value.replace("$", "$$")


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


def check_size(resource: dict[str, Any]) -> None:
    """Refuse a job that no API server stores: each node is a task, with the recipe's options in it.

    Raises:
        ClusterError: it is larger than ``MAX_BYTES``.
    """
    from kubernetes.client import ApiClient

    size = len(json.dumps(ApiClient().sanitize_for_serialization(resource)))
    if size > MAX_BYTES:
        raise ClusterError(
            f"the job takes {size / 1e6:.1f} MB, and API servers store {MAX_BYTES / 1e6:.1f} MB: name the recipe by "
            "its URL, shorten --env, or take fewer nodes"
        )


def _needed(source: Any) -> bool:
    """Whether a pod cannot start without what its environment comes from."""
    return source.secret_ref is not None and not source.secret_ref.optional


def _secrets(resource: dict[str, Any]) -> list[str]:
    names: list[str] = []
    for task in resource["spec"]["tasks"]:
        for container in task["template"].spec.containers:
            names += [source.secret_ref.name for source in container.env_from or [] if _needed(source)]
    return sorted(set(names))


@register.scheduler(name="kubernetes")
def create_scheduler(
    session_name: str, client: Any = None, docker_client: Any = None, **_: Any
) -> ElasticKubernetesScheduler:
    """Takes the place of TorchX's ``kubernetes`` scheduler."""
    return ElasticKubernetesScheduler(session_name, client=client, docker_client=docker_client)
