"""A model of Volcano's job controller and gang scheduler, as far as it was measured on a real one (2026-11-25).

It starts jobs, answers pods that end, and counts retries. What it knows of Volcano:

- A job starts when ``minAvailable`` of its pods fit. When the tasks' own ``minAvailable`` (their replicas where none is
  given) add up to no more than that, each task must have its number too.
- A pod that is deleted or evicted is made again, alone. A pod of phase Failed stays, unless a policy says otherwise.
- Of a task's policies the first that matches counts; RestartPod counts as a retry of the job, whose last one ends it.
- A pod without the annotation ``volcano.sh/preemptable`` may be taken by reclaim.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any


class VolcanoJob:
    """One job in a cluster; ``phase`` is the job's, ``pods`` maps a task's name to (uid, phase)."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.spec = job["spec"]
        self.tasks = {task["name"]: task for task in self.spec["tasks"]}
        self.phase, self.retries = "Pending", 0
        self._uids = itertools.count(1)
        self.pods = {name: (next(self._uids), "Pending") for name in self.tasks}

    def offer(self, fitting: Sequence[str]) -> None:
        """Let the pods of these tasks fit, and start the job when the gang is complete."""
        running = {name for name, (_, phase) in self.pods.items() if phase == "Running"}
        placed = running | set(fitting)
        least = {name: task.get("minAvailable", task["replicas"]) for name, task in self.tasks.items()}
        if len(placed) < self.spec["minAvailable"]:
            return
        if self.spec["minAvailable"] >= sum(least.values()) and any(
            (name in placed) < number for name, number in least.items()
        ):
            return
        self.phase = "Running"
        for name in placed:
            self.pods[name] = (self.pods[name][0], "Running")

    def end(self, name: str, code: int) -> None:
        """The pod's container ended for good (restartPolicy Never), or the pod was failed by its node."""
        self.pods[name] = (self.pods[name][0], "Failed" if code else "Succeeded")
        self._apply(name, "PodFailed" if code else "TaskCompleted", code)

    def evict(self, name: str) -> None:
        """The pod is deleted under the job."""
        if not self._apply(name, "PodEvicted", 143):
            self._make_again(name)

    def reclaimable(self) -> list[str]:
        """Tasks whose pods a queue with a better claim may take."""
        key = "volcano.sh/preemptable"
        found = []
        for name, task in self.tasks.items():
            annotations = task["template"]["metadata"].get("annotations") or {}
            if annotations.get(key, "true") == "true":
                found.append(name)
        return found

    def _apply(self, name: str, event: str, code: int) -> bool:
        for policy in self.tasks[name].get("policies") or []:
            if policy.get("exitCode") == code if "exitCode" in policy else policy.get("event") == event:
                self._act(name, policy["action"])
                return True
        return False

    def _act(self, name: str, action: str) -> None:
        if action == "RestartPod":
            self.retries += 1
            if self.retries >= self.spec.get("maxRetry", 3):
                self.phase, self.pods = "Failed", {}
            else:
                self._make_again(name)
        else:
            self.phase = {"CompleteJob": "Completed", "TerminateJob": "Terminated"}[action]
            self.pods = {}

    def _make_again(self, name: str) -> None:
        self.pods[name] = (next(self._uids), "Running")
