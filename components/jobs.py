"""What can be asked of a job: one typed value a component, its fields those of the component's command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Job:
    """What every component takes; ``components.py`` says what each argument means."""

    app_args: tuple[str, ...] = ()
    image: str = ""
    cpu: int = 0
    memMB: int = 0
    env: dict[str, str] = field(default_factory=dict)
    secret: str = "arcface-s3"
    service_account: str = ""


@dataclass(frozen=True)
class TrainJob(Job):
    """Arguments of ``arcface_dist``."""

    nnodes: str = "1"
    nproc_per_node: int = 0
    recipe: str = "glint360k_r100"
    data: str = ""
    output: str = ""
    name: str = ""
    hardware: str = "ascend-910b"
    max_restarts: int = 100
    rdzv_port: int = 29500
    preemptible: bool = False
    ttl_seconds: int = 604800


@dataclass(frozen=True)
class VerifyJob(Job):
    """Arguments of ``arcface_verify``."""

    model: str = ""
    sets: str = ""
    set_names: str = ""
    report: str = ""
    floor: float = 0.0
    hardware: str = "ascend-910b"


@dataclass(frozen=True)
class PrepareJob(Job):
    """Arguments of ``arcface_prepare``."""

    cpu: int = 8
    memMB: int = 16384
    kind: str = "folder"
    output: str = ""
