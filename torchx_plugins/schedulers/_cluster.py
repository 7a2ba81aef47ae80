"""Questions to a cluster before a job goes there, and its answers in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

_TOO_MANY, _SERVERS_FAULT = 429, 500  # HTTP's codes


class ClusterError(ValueError):
    """The cluster will not take the job; says why and what to do.

    Args:
        transient: the same question may be answered later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class NoClusterError(ClusterError):
    """There is no cluster to ask: none is configured, or its API server does not answer."""


def check_cluster(client: Any, namespace: str, queue: str, secrets: Sequence[str]) -> None:
    """Look whether namespace, Volcano, queue and Secrets are there; what one may not look at is passed over.

    Raises:
        ClusterError: one of them is missing, the queue is closed, or the cluster does not answer.
    """
    from kubernetes import client as kubernetes
    from kubernetes.client.rest import ApiException

    host = client.configuration.host
    core, custom = kubernetes.CoreV1Api(client), kubernetes.CustomObjectsApi(client)
    questions: list[tuple[str, Any]] = [
        (
            f"namespace {namespace!r} does not exist: kubectl create namespace {namespace}, or set another with "
            "-cfg namespace=",
            lambda: core.read_namespace(namespace),
        ),
        (
            f"queue {queue!r} does not exist, or Volcano is not installed: install Volcano, create the queue, or name "
            "another with -cfg queue=",
            lambda: custom.get_cluster_custom_object("scheduling.volcano.sh", "v1beta1", "queues", queue),
        ),
    ]
    questions += [
        (
            f"Secret {name!r} does not exist in namespace {namespace!r}: kubectl -n {namespace} create secret generic "
            f"{name} --from-literal=AWS_ENDPOINT_URL=… --from-literal=AWS_ACCESS_KEY_ID=… "
            "--from-literal=AWS_SECRET_ACCESS_KEY=…, or name another with --secret",
            lambda name=name: core.read_namespaced_secret(name, namespace),
        )
        for name in secrets
    ]
    for missing, ask in questions:
        try:
            answer = ask()
        except ApiException as error:
            if error.status == 404:
                raise ClusterError(missing) from error
            if error.status == 403:
                continue  # a submitter need not be allowed to look; the job itself will tell
            raise explain(error, namespace, host) from error
        except Exception as error:
            raise explain(error, namespace, host) from error
        if isinstance(answer, dict) and answer.get("status", {}).get("state") in ("Closed", "Closing"):
            raise ClusterError(f"queue {queue!r} is closed: open it, or name another with -cfg queue=")


def explain(error: Exception, namespace: str, host: str) -> ClusterError:
    """One plain message for what the API server or the network said."""
    from kubernetes.client.rest import ApiException
    from urllib3.exceptions import ReadTimeoutError

    if isinstance(error, ReadTimeoutError):
        return NoClusterError(
            f"the API server {host} does not answer: it took the request and stays silent; try again later, and look "
            "at the load balancer or proxy in front of it",
            transient=True,
        )
    if not isinstance(error, ApiException):
        reason = str(getattr(error, "reason", error) or error).splitlines()[0]
        return NoClusterError(
            f"the API server {host} does not answer: {reason}; check KUBECONFIG and the network", transient=True
        )
    detail = _detail(error)
    known = {
        401: "it does not know you: your kubeconfig's credentials have run out or are wrong; log in again",
        403: f"you may not do this in namespace {namespace!r}: {detail}",
        404: f"it does not know Volcano jobs, or the object is gone: {detail}; is Volcano installed?",
        409: f"there is such a job already: {detail}; submit again",
        422: f"it refuses the job: {detail}",
        400: f"it refuses the job: {detail}",
    }
    text = known.get(error.status or 0, f"it failed with {error.status} {error.reason}: {detail}; try again later")
    status = error.status or 0
    return ClusterError(f"the API server {host}: {text}", transient=status == _TOO_MANY or status >= _SERVERS_FAULT)


def _detail(error: Any) -> str:
    """The message inside a Kubernetes Status object."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError):
        return str(error.reason)
