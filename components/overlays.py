"""What TorchX's AppDef cannot say about a pod, as an overlay on the pods that its Kubernetes scheduler emits."""

from __future__ import annotations

from typing import Any

from torchx import specs
from torchx.specs.overlays import JOIN, PUT, set_overlay

from components.hardware import HardwareProfile

USER_ID = 1000  # HwHiAiUser in the npu image, who owns the device nodes

CA_FOLDER = "/etc/arcface/ca"  # AWS_CA_BUNDLE=/etc/arcface/ca/ca.crt in the Secret points to its own key ca.crt

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
# The role's pod decides how the job ends.
_VERDICT_POLICIES = [
    {"event": "TaskCompleted", "action": "CompleteJob"},
    {"event": "PodFailed", "action": "TerminateJob"},
]


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
        secret: Secret whose keys become environment variables, and its ``ca.crt``, where it has one, a file in
            ``CA_FOLDER``; empty for none.
        profile: of the node, or None for a pod that runs anywhere.
        spread: prefer nodes of their own for the replicas of this role.
    """
    host_paths = profile.host_paths if profile is not None else ()
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
            # A list in a joined container replaces TorchX's, so its /dev/shm stands here again.
            "volumeMounts": [
                {"name": "dshm", "mountPath": "/dev/shm"},
                {"name": "tmp", "mountPath": "/tmp"},
                *([{"name": "store-ca", "mountPath": CA_FOLDER, "readOnly": True}] if secret else []),
                *({"name": f"host-{number}", "mountPath": path, "readOnly": True}
                  for number, path in enumerate(host_paths)),
            ],
            **({"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}),
        }],
        PUT("volumes"): [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mb}Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}},
            *([_authority(secret)] if secret else []),
            *({"name": f"host-{number}", "hostPath": {"path": path}} for number, path in enumerate(host_paths)),
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


def _authority(secret: str) -> dict[str, Any]:
    """Of the Secret, its ``ca.crt`` alone and only where it has one: the keys stay out of the file system."""
    source = {"secretName": secret, "optional": True, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return {"name": "store-ca", "secret": source}


def overlay_job(deciding: specs.Role, *, least_pods: int, ttl_seconds: int) -> None:
    """What makes the Volcano job elastic; read by the scheduler extension in ``torchx_plugins``.

    The job starts when ``least_pods`` fit, and ends with the pod of the ``deciding`` role: complete when that succeeds,
    even if other pods are still pending, failed when that fails. All other pods restart in place.
    """
    job: dict[str, Any] = {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "arcface"}},
        "spec": {"minAvailable": least_pods, "ttlSecondsAfterFinished": ttl_seconds},
    }
    set_overlay(deciding, "volcano", "Job", job)
    set_overlay(deciding, "volcano", "Task", {"policies": _VERDICT_POLICIES})


def mark_preemptible(role: specs.Role) -> None:
    """Let Volcano take the role's pods away for a queue with a better claim."""
    annotations = {"metadata": {"annotations": {"volcano.sh/preemptable": "true"}}}
    set_overlay(role, "kubernetes", "V1Pod", annotations)
