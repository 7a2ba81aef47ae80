"""A key of its own for the rendezvous of each elastic job: a Secret that is made with the job and goes with it.

Whoever reaches the rendezvous' port could otherwise end the job. The key is random, stands in no manifest, argument or
log, and who submits cannot read it back. The pods ask for it, so none starts without: the kubelet waits until it is
there. A submitter who may not create Secrets gets a warning, and the key that the Secret of the team may hold.
"""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

from torchx_plugins.schedulers._cluster import explain

if TYPE_CHECKING:
    from kubernetes.client import V1Secret

_VARIABLE = "ARCFACE_RDZV_TOKEN"
_KEY_BYTES = 32
_MODULES = ("app.elastic.rendezvous", "app.elastic.launch")


class RunKey:
    """The key of one job."""

    def __init__(self, client: Any, namespace: str, resource: dict[str, Any]) -> None:
        from kubernetes import client as kubernetes

        self._core = kubernetes.CoreV1Api(client)
        self._host = client.configuration.host
        self._namespace, self._resource = namespace, resource
        self.name = f"{resource['metadata']['name']}-rdzv"

    def require(self) -> bool:
        """Let the job's pods ask for the key; False where they have no rendezvous, or nobody may make it.

        Raises:
            ClusterError: the API server does not answer.
        """
        from kubernetes.client import V1EnvFromSource, V1SecretEnvSource
        from kubernetes.client.rest import ApiException

        tasks = self._resource["spec"]["tasks"]
        containers = [container for task in tasks for container in task["template"].spec.containers]
        asking = [container for container in containers if set(_MODULES) & set(container.command or [])]
        if not asking:
            return False
        try:
            self._core.create_namespaced_secret(self._namespace, self._secret(None), dry_run="All")
        except ApiException as error:
            if error.status != 403:
                raise explain(error, self._namespace, self._host) from error
            print(
                "warning: the job's rendezvous has no key of its own: you may not create Secrets in namespace "
                f"{self._namespace!r}; unless <secret>-rdzv has one, whoever reaches it can end the job",
                file=sys.stderr,
            )
            return False
        except Exception as error:
            raise explain(error, self._namespace, self._host) from error
        for container in asking:
            # The last of several sources of a variable wins.
            source = V1EnvFromSource(secret_ref=V1SecretEnvSource(name=self.name, optional=False))
            container.env_from = [*(container.env_from or []), source]
        return True

    def create(self, owner_uid: str) -> None:
        """Make the Secret; the job with this UID owns it."""
        self._core.create_namespaced_secret(self._namespace, self._secret(owner_uid))

    def _secret(self, owner_uid: str | None) -> V1Secret:
        from kubernetes.client import V1ObjectMeta, V1OwnerReference, V1Secret

        job = self._resource["metadata"]["name"]
        owner = V1OwnerReference(api_version="batch.volcano.sh/v1alpha1", kind="Job", name=job, uid=owner_uid or "-")
        metadata = V1ObjectMeta(
            name=self.name,
            labels={"app.kubernetes.io/part-of": "arcface"},
            owner_references=[owner] if owner_uid else None,
        )
        return V1Secret(metadata=metadata, string_data={_VARIABLE: secrets.token_hex(_KEY_BYTES)})
