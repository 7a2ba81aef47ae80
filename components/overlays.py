"""What TorchX's AppDef cannot say about a pod, as an overlay on the pods that its Kubernetes scheduler emits."""

from __future__ import annotations

from typing import Any

from torchx import specs
from torchx.specs.overlays import JOIN, PUT, set_overlay

from components.hardware import HardwareProfile

USER_ID = 1000  # HwHiAiUser in the npu image, who owns the device nodes

# Pod Security level "restricted".
_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "privileged": False,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def overlay_pod(
    role: specs.Role,
    *,
    secret: str,
    service_account: str,
    profile: HardwareProfile | None,
    grace_seconds: int,
    shm_mb: int,
    restart_policy: str,
    spread: bool = False,
) -> specs.Role:
    """Attach the overlay to a role and return it.

    Args:
        secret: Secret whose keys become environment variables; empty for none.
        profile: of the node, or None for a pod that runs anywhere.
        spread: prefer nodes of their own for the replicas of this role.
    """
    # fmt: off
    spec: dict[str, Any] = {
        "restartPolicy": restart_policy,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": _POD_SECURITY,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # The image is what TorchX gives every container of the role: the one key to find it by.
        JOIN("containers", on="image"): [{
            "image": role.image,
            "securityContext": _CONTAINER_SECURITY,
            "workingDir": "/tmp",
            **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        }],
        PUT("volumes"): [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mb}Mi"}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    # fmt: on
    if service_account:
        spec["serviceAccountName"] = service_account
    metadata: dict[str, Any] = {"labels": {"app.kubernetes.io/part-of": "arcface"}}
    if profile is not None:
        metadata["labels"] |= profile.labels
        metadata["annotations"] = dict(profile.annotations)
        spec["nodeSelector"] = dict(profile.node_selector)
        spec["tolerations"] = [dict(toleration) for toleration in profile.tolerations]
    if spread:
        spec["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {"torchx.pytorch.org/role-name": role.name}},
            }
        ]
    set_overlay(role, "kubernetes", "V1Pod", {"metadata": metadata, "spec": spec})
    return role
