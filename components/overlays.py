"""What TorchX's AppDef cannot say about a pod, as an overlay on the pods that its Kubernetes scheduler emits."""

from __future__ import annotations

from typing import Any

from torchx import specs
from torchx.specs.overlays import JOIN, PUT, set_overlay

from components.hardware import HardwareProfile

USER_ID = 1000  # HwHiAiUser in the npu image, who owns the device nodes

CA_FOLDER = "/etc/arcface/ca"  # AWS_CA_BUNDLE=/etc/arcface/ca/ca.crt in the Secret points to its own key ca.crt

_TMP_GB = 20  # of temporary files, without a dataset's cache

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
# How an elastic job ends, tried on a control plane: with the rendezvous' verdict only. 65 says that starting again
# cannot help, success completes the job though trainers may be pending; a rendezvous lost otherwise is made anew.
_EXIT_VERDICT = 65
_RENDEZVOUS_POLICIES = [
    {"exitCode": _EXIT_VERDICT, "action": "TerminateJob"},
    {"event": "TaskCompleted", "action": "CompleteJob"},
    {"event": "PodFailed", "action": "RestartPod"},
    {"event": "PodEvicted", "action": "RestartPod"},
]
# A container that fails restarts in its pod; this is for pods that are lost as a whole: a node that was shut down,
# eviction by the kubelet, a device plugin that gave no device.
_TRAINER_POLICIES = [{"event": "PodFailed", "action": "RestartPod"}]
# Every RestartPod counts as a retry of the whole job, and the last one ends it.
_MANY_RETRIES = 1000
# The only pod of a job decides how it ends.
_SINGLE_POLICIES = [
    {"event": "TaskCompleted", "action": "CompleteJob"},
    {"event": "PodFailed", "action": "TerminateJob"},
]
_PREEMPTABLE = "volcano.sh/preemptable"


def overlay_pod(
    role: specs.Role,
    *,
    secret: str,
    service_account: str,
    profile: HardwareProfile | None,
    grace_seconds: int,
    shm_mb: int,
    restart_policy: str,
    preemptible: bool = False,
    spread: bool = False,
    key_secret: str = "",
    cache_gb: int = 0,
) -> specs.Role:
    """Attach the overlay to a role and return it.

    Args:
        secret: Secret whose keys become environment variables, its ``ca.crt`` a file in ``CA_FOLDER``; or empty.
        profile: of the node, or None for a pod that runs anywhere.
        preemptible: whether Volcano may take the pods away for a queue with a better claim.
        spread: prefer nodes of their own for the replicas of this role.
        key_secret: Secret with ARCFACE_RDZV_TOKEN, the key of the rendezvous; pods start without it too.
        cache_gb: GiB of the dataset that /tmp keeps; a pod whose /tmp grows beyond its size is evicted.
    """
    spec = _pod_spec(role, secret, key_secret, profile, grace_seconds, shm_mb, restart_policy, _TMP_GB + cache_gb)
    if service_account:
        spec["serviceAccountName"] = service_account
    if profile is not None:
        spec["nodeSelector"] = dict(profile.node_selector)
        spec["tolerations"] = [dict(toleration) for toleration in profile.tolerations]
    if spread:
        spec["topologySpreadConstraints"] = [_own_nodes(role)]
    set_overlay(role, "kubernetes", "V1Pod", {"metadata": _metadata(profile, preemptible=preemptible), "spec": spec})
    return role


def _pod_spec(
    role: specs.Role,
    secret: str,
    key_secret: str,
    profile: HardwareProfile | None,
    grace_seconds: int,
    shm_mb: int,
    restart_policy: str,
    tmp_gb: int,
) -> dict[str, Any]:
    """What every pod of a job has, whatever runs in it."""
    host_paths = profile.host_paths if profile is not None else ()
    sources: list[dict[str, Any]] = [{"secretRef": {"name": secret}}] if secret else []
    if key_secret:
        sources.append({"secretRef": {"name": key_secret, "optional": True}})
    # fmt: off
    return {
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
            **({"envFrom": sources} if sources else {}),
        }],
        PUT("volumes"): [
            {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shm_mb}Mi"}},
            {"name": "tmp", "emptyDir": {"sizeLimit": f"{tmp_gb}Gi"}},
            *([_authority(secret)] if secret else []),
            *({"name": f"host-{number}", "hostPath": {"path": path}} for number, path in enumerate(host_paths)),
        ],
    }
    # fmt: on


def _metadata(profile: HardwareProfile | None, *, preemptible: bool) -> dict[str, dict[str, str]]:
    """Labels and annotations of a pod, with those of its node's profile."""
    labels = {"app.kubernetes.io/part-of": "arcface"}
    # Without the annotation Volcano takes a pod for preemptable, since its version 1.8.
    annotations = {_PREEMPTABLE: "true" if preemptible else "false"}
    if profile is not None:
        labels |= profile.labels
        annotations |= profile.annotations
    return {"labels": labels, "annotations": annotations}


def _own_nodes(role: specs.Role) -> dict[str, Any]:
    """Prefer nodes of their own for the replicas of a role."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"torchx.pytorch.org/role-name": role.name}},
    }


def _authority(secret: str) -> dict[str, Any]:
    """Of the Secret, its ``ca.crt`` alone and only where it has one: the keys stay out of the file system."""
    source = {"secretName": secret, "optional": True, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    return {"name": "store-ca", "secret": source}


def overlay_elastic_job(rendezvous: specs.Role, trainer: specs.Role, *, least_pods: int, ttl_seconds: int) -> None:
    """What makes the Volcano job elastic; read by the scheduler extension in ``torchx_plugins``.

    The job starts when any ``least_pods`` of its pods fit, the rendezvous among them. It ends with the rendezvous'
    verdict; whichever pod is lost otherwise is made again, and no other with it.
    """
    _overlay_job(rendezvous, least_pods=least_pods, ttl_seconds=ttl_seconds, max_retry=_MANY_RETRIES)
    set_overlay(rendezvous, "volcano", "Task", {PUT("policies"): _RENDEZVOUS_POLICIES})
    # TorchX asks for the first MIN trainers by name, each a task that must run; any MIN will do.
    set_overlay(trainer, "volcano", "Task", {"minAvailable": 0, PUT("policies"): _TRAINER_POLICIES})


def overlay_single_job(role: specs.Role, *, ttl_seconds: int) -> None:
    """A Volcano job of one pod, which ends as the pod does."""
    _overlay_job(role, least_pods=1, ttl_seconds=ttl_seconds, max_retry=1)
    set_overlay(role, "volcano", "Task", {PUT("policies"): _SINGLE_POLICIES})


def _overlay_job(role: specs.Role, *, least_pods: int, ttl_seconds: int, max_retry: int) -> None:
    job: dict[str, Any] = {
        "metadata": {"labels": {"app.kubernetes.io/part-of": "arcface"}},
        "spec": {"minAvailable": least_pods, "maxRetry": max_retry, "ttlSecondsAfterFinished": ttl_seconds},
    }
    set_overlay(role, "volcano", "Job", job)
