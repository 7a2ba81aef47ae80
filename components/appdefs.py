"""The jobs: what runs where. ``components.py`` gives them their command line."""

from __future__ import annotations

import re

from torchx import specs
from torchx.specs import macros

from components.hardware import HardwareProfile, load_profile
from components.image_registry import split_reference
from components.overlays import mark_preemptible, overlay_job, overlay_pod
from components.recipes import default_run_name, known_recipe

PYTHON = "python"
_NODES = re.compile(r"(\d+)(?::(\d+))?")
_WRITABLE_HOME = {"HOME": "/tmp"}  # the root file system is read-only
METRICS_PORT = 9400
TTL_SECONDS = 7 * 24 * 3600  # finished jobs are kept a week, for torchx status and log
_FIELD_PATH = "[FIELD_PATH]"  # TorchX's mark for the downward API


class ComponentError(ValueError):
    """An argument of a component that does not fit; says what it takes."""


def parse_nodes(text: str) -> tuple[int, int]:
    """``"4"`` -> (4, 4), ``"2:4"`` -> (2, 4).

    Raises:
        ComponentError: it is neither.
    """
    match = _NODES.fullmatch(text)
    if match is None:
        raise ComponentError(f"--nnodes must be N or MIN:MAX, as in 4 or 2:4; got {text!r}")
    least = int(match[1])
    most = int(match[2]) if match[2] else least
    if not 1 <= least <= most:
        raise ComponentError(f"--nnodes {text}: the least number must be at least 1 and not above the most")
    return least, most


def train_app(
    app_args: list[str],
    *,
    nnodes: str,
    nproc_per_node: int,
    recipe: str,
    data: str,
    output: str,
    name: str,
    hardware: str,
    image: str,
    cpu: int,
    mem_mb: int,
    env: dict[str, str],
    secret: str,
    service_account: str,
    max_restarts: int,
    rdzv_port: int,
    preemptible: bool,
    ttl_seconds: int,
) -> specs.AppDef:
    """A rendezvous process and elastic trainers; see ``arcface_dist``."""
    least, most = parse_nodes(nnodes)
    check_image(image)
    known_recipe(recipe)
    profile = load_profile(hardware)
    processes = nproc_per_node or profile.devices
    profile = profile.with_devices(processes)
    run_name = name or default_run_name(recipe)
    rendezvous = specs.Role(
        name="rdzv",  # no dash: it becomes part of a variable's name
        image=image,
        entrypoint=PYTHON,
        args=["-m", "app.elastic.rendezvous", "--port", str(rdzv_port), "--rdzv-id", macros.app_id],
        num_replicas=1,
        env=dict(_WRITABLE_HOME),
        resource=specs.Resource(cpu=1, gpu=0, memMB=1024),
        port_map={"rdzv": rdzv_port},
    )
    trainer = specs.Role(
        name="trainer",
        image=image,
        entrypoint=PYTHON,
        args=[
            *("-m", "app.elastic.launch", "--nnodes", nnodes, "--nproc-per-node", str(processes)),
            *("--rdzv-id", macros.app_id, "--rdzv-host-env", macros.rank0_env, "--rdzv-port", str(rdzv_port)),
            *("--max-restarts", str(max_restarts)),
            *("--", "--output.prometheus-port", str(METRICS_PORT), "--recipe", recipe, "--name", run_name),
            *(("--data.url", data) if data else ()),
            *(("--output.url", output) if output else ()),
            *largest_world(app_args, most * processes),
            *app_args,
        ],
        env={**_WRITABLE_HOME, **profile.env, "POD_IP": f"{_FIELD_PATH}status.podIP", **env},
        num_replicas=most,
        port_map={"metrics": METRICS_PORT},
        min_replicas=least if least < most else None,
        resource=_resource(profile, cpu, mem_mb),
    )
    overlay_pod(
        rendezvous,
        secret="",
        service_account=service_account,
        profile=None,
        grace_seconds=30,
        shm_mb=64,
        restart_policy="Never",
    )
    overlay_pod(
        trainer,
        secret=secret,
        service_account=service_account,
        profile=profile,
        grace_seconds=profile.grace_seconds,
        shm_mb=profile.shm_mb,
        restart_policy="OnFailure",
        spread=True,
    )
    overlay_job(rendezvous, least_pods=1 + least, ttl_seconds=ttl_seconds)
    if preemptible:
        mark_preemptible(trainer)  # not the rendezvous: losing it would restart all trainers
    return specs.AppDef(name=job_name(run_name), roles=[rendezvous, trainer])


def verify_app(
    app_args: list[str],
    *,
    model: str,
    sets: str,
    set_names: str,
    report: str,
    floor: float,
    hardware: str,
    image: str,
    cpu: int,
    mem_mb: int,
    env: dict[str, str],
    secret: str,
    service_account: str,
) -> specs.AppDef:
    """One process on one device; see ``arcface_verify``."""
    if not model or not sets:
        raise ComponentError("arcface_verify needs --model (URL of a run folder) and --sets (URL of the .bin files)")
    check_image(image)
    profile = load_profile(hardware).with_devices(1)
    role = specs.Role(
        name="verify",
        image=image,
        entrypoint=PYTHON,
        args=[
            *("-m", "app.verify", "--model", model, "--sets-url", sets),
            *(("--sets", set_names) if set_names else ()),
            *(("--report", report) if report else ()),
            *(("--floor", str(floor)) if floor else ()),
            *app_args,
        ],
        env={**_WRITABLE_HOME, **profile.env, **env},
        resource=_resource(profile, cpu, mem_mb),
    )
    return _single_role_app("verify-" + model.rstrip("/").rsplit("/", 1)[-1], role, secret, service_account, profile)


def prepare_app(
    app_args: list[str],
    *,
    kind: str,
    output: str,
    image: str,
    cpu: int,
    mem_mb: int,
    env: dict[str, str],
    secret: str,
    service_account: str,
) -> specs.AppDef:
    """One process without a device; see ``arcface_prepare``."""
    if not output:
        raise ComponentError("arcface_prepare needs --output (URL of the dataset's folder)")
    check_image(image)
    profile = load_profile("cpu")
    role = specs.Role(
        name="prepare",
        image=image,
        entrypoint=PYTHON,
        args=["-m", "app.prepare", kind, "--output", output, *app_args],
        env={**_WRITABLE_HOME, **env},
        resource=_resource(profile, cpu, mem_mb),
    )
    return _single_role_app(f"prepare-{kind}", role, secret, service_account, profile)


def _single_role_app(
    name: str, role: specs.Role, secret: str, service_account: str, profile: HardwareProfile
) -> specs.AppDef:
    overlay_pod(
        role,
        secret=secret,
        service_account=service_account,
        profile=profile,
        grace_seconds=30,
        shm_mb=profile.shm_mb,
        restart_policy="Never",
    )
    overlay_job(role, least_pods=1, ttl_seconds=TTL_SECONDS)
    return specs.AppDef(name=job_name(name), roles=[role])


def job_name(text: str) -> str:
    """A name that Kubernetes takes and that leaves room for what TorchX and Volcano append to it (63 characters)."""
    cleaned = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "arcface"
    return cleaned[:30].rstrip("-")


def _resource(profile: HardwareProfile, cpu: int, mem_mb: int) -> specs.Resource:
    devices = {profile.resource: profile.devices} if profile.resource else {}
    return specs.Resource(cpu=cpu or profile.cpu, gpu=0, memMB=mem_mb or profile.memory_mb, devices=devices)


def check_image(image: str) -> None:
    """Refuse an image that is not set or moves under a running job.

    Raises:
        ComponentError: it is empty, or of the tag latest, which no tag means too.
    """
    if not image:
        raise ComponentError("no image: pass --image, or set it in .torchxconfig under [component:components.py:...]")
    if split_reference(image)[2] == "latest":
        raise ComponentError(
            f"image {image!r}: a tag that moves gives nodes different code; name a version or a digest"
        )


def largest_world(app_args: list[str], most: int) -> list[str]:
    """The option that tells the app how many processes there may be: the logical workers follow from it and the recipe.

    Raises:
        ComponentError: the user chose fewer logical workers than the largest world has processes.
    """
    chosen = option_value(app_args, "train.logical-workers")
    if chosen is not None and int(chosen) < most:
        raise ComponentError(f"--train.logical-workers {chosen} cannot feed {most} processes: each needs one")
    return ["--train.max-processes", str(most)]


def option_value(app_args: list[str], name: str) -> str | None:
    """The last value of an app option, in any of the spellings the app takes."""
    value = None
    for position, word in enumerate(app_args):
        key, equals, rest = word.removeprefix("--").partition("=")
        if word.startswith("--") and key.replace("_", "-") == name:
            value = rest if equals else (app_args[position + 1] if position + 1 < len(app_args) else None)
    return value
