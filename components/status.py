"""How a job is doing, in one line: ``python -m components.status HANDLE`` (as ``torchx run`` prints it).

State, what holds it up, and of a training job its step, speed, time to go and where rank 0 is, from the events in the
run's folder. Ends with 1 when the job failed or is not there.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from torchx.runner import get_runner
from torchx.specs.api import parse_app_handle

from app.command_line import CommandLine
from app.errors import printable, redact
from components.app_options import AppMissing, settings
from components.arguments import ComponentError, as_handed_on
from components.job_reason import JobFacts, reason, replica
from components.store import Skipped, StoreError, names_in, read_ends
from torchx_plugins.schedulers._command_line import REFUSALS, leave_usage_out

_VOLCANO = {"Completed": "SUCCEEDED", "Terminated": "FAILED", "Failed": "FAILED", "Aborted": "CANCELLED"}
_WINDOW = 64 << 10  # bytes of an event log that are looked at, at its beginning and at its end
_RANKS_SHOWN, _RANKS_READ = 4, 256


def main(arguments: list[str]) -> int:
    """Print the line."""
    parser = CommandLine("python -m components.status", description=__doc__)
    parser.add_argument("handle", help="kubernetes://torchx/NAMESPACE:NAME")
    handle = parser.parse_args(arguments).handle
    # It would tell of each of its attempts to reach a dead server.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    try:
        state, text = describe(handle)
    except REFUSALS as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"{state}: {text}" if text else state)
    return 1 if state == "FAILED" else 0


def describe(handle: str) -> tuple[str, str]:
    """State and the rest of the line.

    Raises:
        ValueError: there is no such job, or nobody answers.
    """
    scheduler, _, app_id = parse_app_handle(handle)
    with get_runner() as runner:
        if scheduler != "kubernetes":
            status = runner.status(handle)
            if status is None:
                raise ValueError(f"there is no job {handle}")
            return status.state.name, status.msg
        namespace, _, name = app_id.partition(":")
        facts = ask_cluster(runner._scheduler(scheduler), namespace, name)
    state = _VOLCANO.get(facts.phase, facts.phase.upper())
    parts = [reason(facts), *run_lines(facts, failed=state == "FAILED")]
    return state, printable(redact("; ".join(filter(None, parts))))  # of pods, events and files: anybody's words


def ask_cluster(scheduler: Any, namespace: str, name: str) -> JobFacts:
    """What the API server knows; what one may not look at is left out.

    Raises:
        ClusterError: the job is not there, or the server does not answer.
    """
    from kubernetes import client as kubernetes
    from kubernetes.client.rest import ApiException

    from torchx_plugins.schedulers._cluster import ClusterError, explain

    if not namespace or not name:
        raise ClusterError("a handle is kubernetes://torchx/NAMESPACE:NAME, as torchx run prints it")
    client = scheduler._client_or_explain()
    core, custom = kubernetes.CoreV1Api(client), kubernetes.CustomObjectsApi(client)

    def items(ask: Any, *arguments: str) -> list[dict[str, Any]]:
        try:
            answer = client.sanitize_for_serialization(ask(*arguments))
        except ApiException as error:
            if error.status in (403, 404):
                return []
            raise
        found: list[dict[str, Any]] = answer.get("items") or []
        return found

    try:
        job: Any = custom.get_namespaced_custom_object("batch.volcano.sh", "v1alpha1", namespace, "jobs", name)
        groups = items(custom.list_namespaced_custom_object, "scheduling.volcano.sh", "v1beta1", namespace, "podgroups")
        pods = items(core.list_namespaced_pod, namespace)
        events = items(core.list_namespaced_event, namespace)
    except ApiException as error:
        if error.status == 404:
            raise ClusterError(f"there is no job {name!r} in namespace {namespace!r}") from error
        raise explain(error, namespace, client.configuration.host) from error
    except Exception as error:
        raise explain(error, namespace, client.configuration.host) from error
    mine = [pod for pod in pods if pod["metadata"]["name"].startswith(f"{name}-")]
    names = {name, *(pod["metadata"]["name"] for pod in mine)}
    owned = [group for group in groups if group["metadata"]["name"].startswith(f"{name}-")]
    names |= {group["metadata"]["name"] for group in owned}
    told = [event for event in events if (event.get("involvedObject") or {}).get("name") in names]
    return JobFacts(job, owned, mine, told)


def run_lines(facts: JobFacts, *, failed: bool) -> list[str]:
    """What the run's folder tells: progress, and of a failed job the reason of each rank."""
    url = run_folder(facts.job)
    if not url:
        return []
    try:
        found = [progress(read_events(url), facts.name)]
        return [*found, *failures(url)] if failed else found
    except Skipped as why:
        return [f"the run's folder {url} was not looked at: {why}"]
    except StoreError as error:
        return [str(error)]
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):  # figures that are none
        return [f"{url}/events: not an event log of this program"]


def run_folder(job: dict[str, Any]) -> str:
    """URL of a training job's run folder, from its command; empty for other jobs."""
    for task in job["spec"]["tasks"]:
        for container in task["template"]["spec"]["containers"]:
            command = container.get("command") or []
            if "app.elastic.launch" in command and "--" in command:
                words = [as_handed_on(word) for word in command[command.index("--") + 1 :]]
                names = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "--name"]
                names += [word.partition("=")[2] for word in words if word.startswith("--name=")]
                try:
                    return f"{settings(words)['output']['url'].rstrip('/')}/{names[-1]}"
                except (AppMissing, ComponentError, LookupError):
                    return ""
    return ""


def read_events(url: str) -> list[dict[str, Any]]:
    """Beginning and end of the latest attempt's event log."""
    names = [name for name in names_in(f"{url}/events") if name.endswith(".jsonl")]
    if not names:
        return []
    events = []
    for line in b"\n".join(read_ends(f"{url}/events/{names[-1]}", _WINDOW)).decode(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut off by the window
        if isinstance(event, dict):
            events.append(event)
    return events


def progress(events: list[dict[str, Any]], job: str) -> str:
    """``step 300 of 1000, 512.0 img/s, ETA 5 min, rank 0 is trainer/2``."""
    start = next((event for event in events if event.get("kind") == "start"), {})
    last: dict[str, Any] = next((event for event in reversed(events) if event.get("kind") == "train"), {})
    step, total, rate = last.get("step", start.get("step")), start.get("total_steps"), last.get("images_per_second")
    parts = []
    if step is not None:
        parts.append(f"step {step} of {total}" if total else f"step {step}")
    if rate:
        parts.append(f"{rate:.1f} img/s")
    if rate and total and start.get("global_batch"):
        parts.append(f"ETA {duration((total - step) * start['global_batch'] / rate)}")
    if str(start.get("host", "")).startswith(f"{job}-"):
        parts.append(f"rank 0 is {replica(start['host'], job)}")
    return ", ".join(parts) or "no step yet"


def failures(url: str) -> list[str]:
    """The first line of each rank's last words."""
    names = names_in(f"{url}/failures")
    lines = []
    for name in names[:_RANKS_READ]:
        text = read_ends(f"{url}/failures/{name}", 1 << 10)[0].decode(errors="replace")
        lines.append(f"{name.removesuffix('.txt')}: {text.splitlines()[0] if text else ''}")
    # Those that were stopped since another failed tell nothing.
    lines.sort(key=lambda line: ": stopped by " in line)
    return [*lines[:_RANKS_SHOWN], f"{url}/failures has the last lines of {len(names)} ranks"] if names else []


def duration(seconds: float) -> str:
    """``3 d 4 h``, ``2 h 5 min``, ``3 min``."""
    minutes = int(seconds // 60)
    if minutes >= 24 * 60:
        return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


if __name__ == "__main__":
    leave_usage_out()
    sys.exit(main(sys.argv[1:]))
