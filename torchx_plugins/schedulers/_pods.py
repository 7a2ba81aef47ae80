"""Would the pods of a job be admitted? A job is accepted long before its pods are made, and tells nothing of them."""

from __future__ import annotations

import re
import sys
from typing import Any

from torchx_plugins.schedulers._cluster import ClusterError, _detail, explain

# What admission says, and what to do about it.
_REMEDIES = (
    ("violates PodSecurity", "take a hardware profile without -host, or a namespace of the level that it needs"),
    ("no PriorityClass with name", "create it, or name another with -cfg priority_class="),
    ("service account", "create it, or name another with --service_account"),
    ("serviceaccount", "create it, or name another with --service_account"),
    ("must specify", "a quota counts what our pods leave out: give the namespace a LimitRange with defaults for it"),
    ("exceeded quota", "wait until others have ended, ask for less, or have the quota raised"),
    ("maximum", "ask for less with --cpu and --memMB, or have the limit raised"),
    ("minimum", "ask for more with --cpu and --memMB (rdzv always asks for 1 CPU, 1024 MB), or have the limit lowered"),
    (
        "insufficient quota to match",
        "the quota is for other priority classes: name one of them with -cfg priority_class=",
    ),
)
_PLACES = (
    *("--data.url", "--output.url", "--model", "--sets-url", "--report", "--output", "--source", "--verify.url"),
    *("--model.init", "--model.init-names", "--head.init", "--distill.teacher", "--distill.teacher-names"),
    *("--weights-names", "--data", "--pairs", "--landmarks"),
)
_OF_THIS_MACHINE = ("file", "local", "memory")  # schemes of what no other pod sees
_IMAGE = re.compile(r"[^\sA-Z]+|[^\s/]+/[^\sA-Z]+")  # capitals are for the registry's name, the tag and the digest


def remedy_for(text: str) -> str:
    """What to do about a refusal, to be put behind it; empty where nothing is known."""
    return next((f": {what}" for sign, what in _REMEDIES if sign in text), "")


def ask_pods(client: Any, namespace: str, resource: dict[str, Any], *, strict: bool) -> None:
    """Let the API server admit one pod a role without creating it: Pod Security, quota, accounts, priority classes.

    A submitter who may not create pods cannot ask; the job's controller may, and the job will tell.

    Raises:
        ClusterError: a pod is refused; what time can mend only when ``strict``.
    """
    from kubernetes import client as kubernetes
    from kubernetes.client.rest import ApiException

    core = kubernetes.CoreV1Api(client)
    asked: set[str] = set()
    for task in resource["spec"]["tasks"]:
        role = task["name"].rpartition("-")[0] or task["name"]
        if role in asked:
            continue
        asked.add(role)
        pod = client.sanitize_for_serialization(task["template"])
        pod |= {"apiVersion": "v1", "kind": "Pod"}
        pod["metadata"]["name"] = f"{resource['metadata']['name']}-{task['name']}-0"
        if name := resource["spec"].get("priorityClassName"):
            pod["spec"]["priorityClassName"] = name
        try:
            core.create_namespaced_pod(namespace, pod, dry_run="All")
        except ApiException as error:
            text = _detail(error)
            if error.status == 409 or 'cannot create resource "pods"' in text:
                continue
            if error.status not in (400, 403, 422):
                raise explain(error, namespace, client.configuration.host) from error
            message = f"the cluster would refuse the pods of {role}: {text}{remedy_for(text)}"
            if "exceeded quota" in text and not strict:
                print(f"warning: {message}", file=sys.stderr)
                continue
            raise ClusterError(message) from error
        except Exception as error:
            raise explain(error, namespace, client.configuration.host) from error


def _is_local(place: str) -> bool:
    scheme, found, _ = place.partition("://")
    if place.isdigit():
        return False  # app.prepare split --pairs is how many
    return bool(place) and place != "synthetic" and (not found or scheme in _OF_THIS_MACHINE)


def check_places(resource: dict[str, Any]) -> None:
    """Refuse what no pod can reach: folders of this machine, and images that are no registry's.

    Raises:
        ClusterError: names the option.
    """
    for task in resource["spec"]["tasks"]:
        for container in task["template"].spec.containers:
            repository = re.sub(r"(:[^:/]*)?(@.*)?$", "", container.image)
            if container.image.startswith(("/", ".", "~")) or not _IMAGE.fullmatch(repository):
                raise ClusterError(f"image {container.image!r} is in no registry: REGISTRY/NAME:TAG in small letters")
            command = [str(word) for word in container.command or []]
            if command[1:2] != ["-m"] or not command[2].startswith("app."):
                continue
            if command[2] == "app.elastic.launch" and not any(w.partition("=")[0] == "--output.url" for w in command):
                raise ClusterError("no --output: a pod's own folder goes with the pod; give a URL, as in s3://runs")
            for position, word in enumerate(command):
                option, equals, rest = word.partition("=")
                value = rest if equals else "".join(command[position + 1 : position + 2])
                if option == "--data.cache" and not f"{value}/".startswith("/tmp/"):
                    raise ClusterError(f"{option} {value}: a pod may write below /tmp only, as in /tmp/cache")
                places = [part.strip() for part in value.split(",")]  # datasets may be several
                local = any(map(_is_local, places))
                if option.replace("_", "-") in _PLACES and local:
                    raise ClusterError(
                        f"{option} {value}: no pod has this folder; put it into a bucket and give its URL, as in "
                        "s3://bucket/folder"
                    )
