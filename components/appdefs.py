"""The jobs: what runs where. ``components.py`` gives them their command line."""

from __future__ import annotations

import contextlib
import math
from typing import Any

from torchx import specs
from torchx.specs import macros

from components.app_options import AppMissing, check_model, check_options, recipe_arguments, settings, without_replaced
from components.arguments import (
    ComponentError,
    check_app_options,
    check_environment,
    check_image,
    check_no_password,
    check_number,
    check_object_name,
    check_run_name,
    check_url,
    job_name,
    note,
    parse_nodes,
    verbatim,
)
from components.hardware import HardwareProfile, load_profile
from components.jobs import Job, PrepareJob, TrainJob, VerifyJob
from components.overlays import overlay_elastic_job, overlay_pod, overlay_single_job
from components.recipes import data_of, default_run_name, known_recipe

PYTHON = "python"
_WRITABLE_HOME = {"HOME": "/tmp"}  # the root file system is read-only
_LEAVE_SECONDS = 20
_MOST_PROCESSES = 256  # a node without devices
_LEAST_MEMORY_MB = 256
_FIRST_PORT = 1024  # those below are root's
_MOST_SECONDS = 2**31 - 1  # Volcano counts them in 32 bits
METRICS_PORT = 9400
TTL_SECONDS = 7 * 24 * 3600  # finished jobs are kept a week, for torchx status and log


def train_app(job: TrainJob) -> specs.AppDef:
    """A rendezvous process and elastic trainers; see ``arcface_dist``."""
    least, most = parse_nodes(job.nnodes)
    _check(job, job.recipe, data=job.data, output=job.output)
    _check_numbers(job)
    known_recipe(job.recipe)
    check_app_options(job.app_args)
    profile = _profile(job.hardware)
    check_number("--nproc_per_node", job.nproc_per_node, 0, profile.devices if profile.resource else _MOST_PROCESSES)
    processes = job.nproc_per_node or profile.devices
    profile.check_devices(processes)
    profile = profile.with_devices(processes)
    run_name = job.name or default_run_name(job.recipe)
    check_run_name(run_name)
    recipe = recipe_arguments(job.recipe)
    _check_data(job, recipe)
    app_args = [*recipe, "--name", run_name, *job.app_args]
    asked = ask_app(app_args, most * processes) if job.app_args or "--recipe" not in app_args else {}
    rendezvous = _rendezvous(job)
    trainer = specs.Role(
        name="trainer",
        image=job.image,
        entrypoint=PYTHON,
        args=[
            *("-m", "app.elastic.launch", "--nnodes", job.nnodes, "--nproc-per-node", str(processes)),
            *("--rdzv-id", macros.app_id, "--rdzv-host-env", macros.rank0_env, "--rdzv-port", str(job.rdzv_port)),
            *("--max-restarts", str(job.max_restarts)),
            # What a pod has from SIGTERM to SIGKILL, less what its agent needs to leave.
            *("--shutdown-timeout", str(profile.grace_seconds - _LEAVE_SECONDS)),
            *("--", *map(verbatim, _app_words(job, recipe, run_name, most * processes))),
        ],
        env=_environment(job, profile),
        num_replicas=most,
        port_map={"metrics": METRICS_PORT},
        min_replicas=least if least < most else None,
        resource=_resource(profile, job.cpu, job.memMB),
    )
    overlay_pod(
        trainer,
        secret=job.secret,
        key_secret=_key_secret(job),
        service_account=job.service_account,
        profile=profile,
        grace_seconds=profile.grace_seconds,
        shm_mb=profile.shm_mb,
        restart_policy="OnFailure",
        preemptible=job.preemptible,
        spread=True,
        cache_gb=_cache_gb(asked),
    )
    overlay_elastic_job(rendezvous, trainer, least_pods=1 + least, ttl_seconds=job.ttl_seconds)
    return specs.AppDef(name=job_name(run_name), roles=[rendezvous, trainer])


def _app_words(job: TrainJob, recipe: list[str], run_name: str, most: int) -> list[str]:
    given = [
        *("--output.prometheus-port", str(METRICS_PORT), "--name", run_name),
        *(("--data.url", job.data) if job.data else ()),
        *(("--output.url", job.output) if job.output else ()),
        # The logical workers follow from the largest world and the recipe.
        *("--train.max-processes", str(most)),
        *job.app_args,
    ]
    return [*without_replaced(recipe, given), *given]


def _check_data(job: TrainJob, recipe: list[str]) -> None:
    """Refuse a job without data; say so where ``--data``, which .torchxconfig may set, replaces the recipe's."""
    own = data_of(job.recipe, recipe)
    if not job.data and own == "":
        raise ComponentError("no --data: URL of the folder with train.rec and train.idx; .torchxconfig may set it")
    if job.data and own and own != job.data:
        note(f"--data {job.data} takes the place of the recipe's own, {own[:200]}: --data '' keeps it")


def _profile(hardware: str) -> HardwareProfile:
    profile = load_profile(hardware)
    check_environment(profile.env)
    return profile


def _check_numbers(job: TrainJob) -> None:
    check_number("--max_restarts", job.max_restarts, 0)
    check_number("--rdzv_port", job.rdzv_port, _FIRST_PORT, 65535)
    check_number("--ttl_seconds", job.ttl_seconds, 0, _MOST_SECONDS)
    if job.rdzv_port == METRICS_PORT:
        raise ComponentError(f"--rdzv_port {METRICS_PORT} is that of the metrics: take another")


def _key_secret(job: TrainJob) -> str:
    """The Secret with the key of the rendezvous, beside that of the store: the rendezvous needs no other."""
    return f"{job.secret}-rdzv" if job.secret else ""


def _rendezvous(job: TrainJob) -> specs.Role:
    """The meeting point: one CPU, no device, no keys."""
    role = specs.Role(
        name="rdzv",  # no dash: it becomes part of a variable's name
        image=job.image,
        entrypoint=PYTHON,
        args=[
            *("-m", "app.elastic.rendezvous", "--port", str(job.rdzv_port), "--rdzv-id", macros.app_id),
            *("--listen", "all"),  # the pods' network is trusted, or the Secret <secret>-rdzv has a key
        ],
        num_replicas=1,
        env=dict(_WRITABLE_HOME),
        resource=specs.Resource(cpu=1, gpu=0, memMB=1024),
        port_map={"rdzv": job.rdzv_port},
    )
    return overlay_pod(
        role,
        secret="",
        key_secret=_key_secret(job),
        service_account=job.service_account,
        profile=None,
        grace_seconds=30,
        shm_mb=64,
        restart_policy="Never",
    )


def verify_app(job: VerifyJob) -> specs.AppDef:
    """One process on one device; see ``arcface_verify``."""
    if not job.model or not job.sets:
        raise ComponentError("arcface_verify needs --model (URL of a run folder) and --sets (URL of the .bin files)")
    _check(job, model=job.model, sets=job.sets, report=job.report)
    check_number("--floor", job.floor, 0, 1)
    profile = _profile(job.hardware).with_devices(1)
    arguments = [
        *("--model", job.model, "--sets-url", job.sets),
        *(("--sets", job.set_names) if job.set_names else ()),
        *(("--report", job.report) if job.report else ()),
        *(("--floor", str(job.floor)) if job.floor else ()),
        *job.app_args,
    ]
    if job.app_args:
        _check_command("verify", arguments)
    role = specs.Role(
        name="verify",
        image=job.image,
        entrypoint=PYTHON,
        args=["-m", "app.verify", *map(verbatim, arguments)],
        env=_environment(job, profile),
        resource=_resource(profile, job.cpu, job.memMB),
    )
    return _single_role_app("verify-" + job.model.rstrip("/").rsplit("/", 1)[-1], role, job, profile)


def prepare_app(job: PrepareJob) -> specs.AppDef:
    """One process without a device; see ``arcface_prepare``."""
    if not job.output:
        raise ComponentError("arcface_prepare needs --output (URL of the dataset's folder)")
    _check(job, output=job.output)
    profile = load_profile("cpu")
    arguments = [job.kind, "--output", job.output, *job.app_args]
    _check_command("prepare", arguments)
    role = specs.Role(
        name="prepare",
        image=job.image,
        entrypoint=PYTHON,
        args=["-m", "app.prepare", *map(verbatim, arguments)],
        env=_environment(job, None),
        resource=_resource(profile, job.cpu, job.memMB),
    )
    return _single_role_app(f"prepare-{job.kind}", role, job, profile)


def _check(job: Job, *texts: str, **urls: str) -> None:
    """What every component refuses."""
    check_image(job.image)
    check_environment(job.env)
    check_object_name("--secret", job.secret)
    check_object_name("--service_account", job.service_account)
    check_number("--cpu", job.cpu, 0)
    check_number("--memMB", job.memMB, 0)
    if 0 < job.memMB < _LEAST_MEMORY_MB:
        raise ComponentError(f"--memMB {job.memMB}: Python with torch alone takes {_LEAST_MEMORY_MB}; was GB meant?")
    for text in (*texts, *urls.values(), *job.app_args):
        check_no_password("an argument", text)
    for name, url in urls.items():
        check_url(f"--{name}", url)


def _environment(job: Job, profile: HardwareProfile | None) -> dict[str, str]:
    given = {**(profile.env if profile else {}), **job.env}
    return {**_WRITABLE_HOME, **{name: verbatim(value) for name, value in given.items()}}


def _single_role_app(
    name: str, role: specs.Role, job: VerifyJob | PrepareJob, profile: HardwareProfile
) -> specs.AppDef:
    overlay_pod(
        role,
        secret=job.secret,
        service_account=job.service_account,
        profile=profile,
        grace_seconds=30,
        shm_mb=profile.shm_mb,
        restart_policy="Never",
    )
    overlay_single_job(role, ttl_seconds=TTL_SECONDS)
    return specs.AppDef(name=job_name(name), roles=[role])


def _resource(profile: HardwareProfile, cpu: int, mem_mb: int) -> specs.Resource:
    gpus, devices = profile.as_torchx()
    return specs.Resource(cpu=cpu or profile.cpu, gpu=gpus, memMB=mem_mb or profile.memory_mb, devices=devices)


def _cache_gb(recipe: dict[str, Any]) -> int:
    """What the node's disk keeps of the dataset beside the rest of /tmp, GiB."""
    data = recipe.get("data", {})
    return math.ceil(data["cache_gb"]) if data.get("cache") else 0


def ask_app(app_args: list[str], most: int) -> dict[str, Any]:
    """Let the app look at its options; returns the recipe as tables, empty where nobody can be asked.

    Raises:
        ComponentError: it refuses one, or fewer logical workers were chosen than the largest world has processes.
    """
    try:
        recipe = settings(app_args)
        check_model(app_args)
    except AppMissing:
        return {}  # a submitter may have nothing but TorchX; preflight says that nobody looked
    chosen = recipe["train"]["logical_workers"]
    if 0 < chosen < most:
        raise ComponentError(f"--train.logical-workers {chosen} cannot feed {most} processes: each needs one")
    return recipe


def _check_command(module: str, arguments: list[str]) -> None:
    with contextlib.suppress(AppMissing):
        check_options(module, arguments)
