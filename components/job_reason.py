"""Why a Volcano job is where it is, in one line, from what the cluster knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torchx_plugins.schedulers._pods import remedy_for

_WAITING = (
    "ErrImagePull",
    "ImagePullBackOff",
    "InvalidImageName",
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "ErrImageNeverPull",
    "RegistryUnavailable",
    "ImageInspectError",
    "PreCreateHookError",
    "PreStartHookError",
    "PostStartHookError",
)
# What the kubelet tells of a pod whose container it is still making, a big image among it.
_MAKING = (
    "FailedMount",
    "FailedAttachVolume",
    "FailedMapVolume",
    "FailedCreatePodSandBox",
    "FailedCreatePodContainer",
    "NetworkNotReady",
    "Pulling",
)
_NEVER_RAN = ("StartError", "ContainerCannotRun")
_LONGEST = 400  # characters of a message
_MOST_PODS = 6


@dataclass(frozen=True)
class JobFacts:
    """A Volcano job, its PodGroup, its pods and its events, as the API server gives them."""

    job: dict[str, Any]
    pod_groups: list[dict[str, Any]] = field(default_factory=list)
    pods: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the job, without its namespace."""
        return str(self.job["metadata"]["name"])

    @property
    def phase(self) -> str:
        """Of the job, as Volcano says it; Pending where it says nothing yet."""
        return str(self.job.get("status", {}).get("state", {}).get("phase") or "Pending")


def replica(pod: str, job: str) -> str:
    """``orl-x1-trainer-2-0`` of the job ``orl-x1`` is ``trainer/2``, as ``torchx log`` takes it."""
    role, _, index = pod.removeprefix(f"{job}-").rpartition("-")[0].rpartition("-")
    return f"{role}/{index}" if role else pod


def reason(facts: JobFacts) -> str:
    """What holds the job up or ended it; empty when nothing is known to be wrong."""
    if facts.phase in ("Pending", "Inqueue", "Restarting"):
        return next(filter(None, _why_pending(facts)), "no event tells why yet")
    if facts.phase in ("Failed", "Terminated", "Terminating", "Aborted", "Aborting"):
        state = facts.job.get("status", {}).get("state", {})
        return next(
            filter(None, [*_lost_containers(facts), _clean(state.get("message")), _clean(state.get("reason"))]), ""
        )
    said = [*_waiting(facts), *_making(facts), *_lost_containers(facts)]
    more = [f"and {len(said) - _MOST_PODS} more"] if len(said) > _MOST_PODS else []
    return "; ".join([*said[:_MOST_PODS], *more])


def _why_pending(facts: JobFacts) -> Iterable[str]:
    wanted = sum(task.get("replicas", 1) for task in facts.job.get("spec", {}).get("tasks", []))
    if len(facts.pods) < wanted:  # else what refused them once has passed
        yield from _warnings(facts, "FailedCreate")
    yield from _waiting(facts)
    for group in facts.pod_groups:
        status = group.get("status", {})
        yield _why_unschedulable(status.get("conditions") or [])
        if status.get("phase") == "Pending":
            queue = group.get("spec", {}).get("queue", "default")
            yield f"the queue {queue!r} has no room for its least number of pods yet"
    yield from _making(facts)
    yield from _warnings(facts, "FailedScheduling", "Unschedulable")


def _why_unschedulable(conditions: list[dict[str, Any]]) -> str:
    """What the scheduler says; empty once it has placed the pods: Volcano leaves the older condition there, true."""
    said = [c for c in conditions if c.get("type") in ("Unschedulable", "Scheduled") and c.get("status") != "False"]
    said.sort(key=lambda condition: str(condition.get("lastTransitionTime") or ""))
    return _clean(said[-1].get("message")) if said and said[-1]["type"] == "Unschedulable" else ""


def _making(facts: JobFacts) -> list[str]:
    """The latest word on each pod that has a node and no container yet."""
    found = []
    for pod in facts.pods:
        containers, name = pod.get("status", {}).get("containerStatuses") or [], pod["metadata"]["name"]
        placed = any(c.get("type") == "PodScheduled" and c.get("status") == "True" for c in _conditions(pod))
        if not placed or any("waiting" not in (container.get("state") or {}) for container in containers):
            continue
        said = [event for event in facts.events if (event.get("involvedObject") or {}).get("name") == name]
        if said and (last := max(said, key=_time)).get("reason") in _MAKING:
            found.append(f"{replica(name, facts.name)}: {last['reason']}: {_clean(last.get('message'))}")
    return found


def _conditions(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod.get("status", {}).get("conditions") or []


def _time(event: dict[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")


def _warnings(facts: JobFacts, *reasons: str) -> list[str]:
    """The latest events first."""
    found = [event for event in facts.events if event.get("reason") in reasons]
    found.sort(key=_time, reverse=True)
    return [_clean(event.get("message")) for event in found]


def _waiting(facts: JobFacts) -> list[str]:
    found = []
    for pod in facts.pods:
        for container in pod.get("status", {}).get("containerStatuses") or []:
            waiting = container.get("state", {}).get("waiting") or {}
            if waiting.get("reason") in _WAITING:
                who = replica(pod["metadata"]["name"], facts.name)
                found.append(f"{who}: {waiting['reason']}: {_clean(waiting.get('message'))}")
    return found


def _lost_containers(facts: JobFacts) -> list[str]:
    """Containers that ended badly, and pods that their nodes failed."""
    found = []
    for pod in facts.pods:
        who, status = replica(pod["metadata"]["name"], facts.name), pod.get("status", {})
        if status.get("phase") == "Failed" and status.get("reason"):
            found.append(f"{who}: {status['reason']}: {_clean(status.get('message'))}")
        for container in status.get("containerStatuses") or []:
            for moment in ("state", "lastState"):
                ended = container.get(moment, {}).get("terminated") or {}
                if ended.get("exitCode"):
                    why = ended.get("reason") or "Error"
                    times = f", {container['restartCount']} restarts" if container.get("restartCount") else ""
                    # What the runtime says of a container that it could not start, as one for another processor.
                    said = f": {_clean(ended.get('message'))}" if why in _NEVER_RAN and ended.get("message") else ""
                    found.append(f"{who}: {why}, exit code {ended['exitCode']}{times}{said}")
                    break
    return found


def _clean(message: Any) -> str:
    text = " ".join(str(message or "").split())[:_LONGEST]
    return f"{text}{remedy_for(text)}"
