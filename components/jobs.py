"""What can be asked of a job: one typed value a component, its fields those of the component's command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainJob:
    """Arguments of ``arcface_dist``; ``components.py`` says what each means."""

    app_args: tuple[str, ...] = ()
    nnodes: str = "1"
    nproc_per_node: int = 0
    recipe: str = "glint360k_r100"
    data: str = ""
    output: str = ""
    name: str = ""
    hardware: str = "ascend-910b"
    image: str = ""
    cpu: int = 0
    memMB: int = 0
    env: dict[str, str] = field(default_factory=dict)
    secret: str = "arcface-s3"
    service_account: str = ""
    max_restarts: int = 100
    rdzv_port: int = 29500
    preemptible: bool = False
    ttl_seconds: int = 604800


@dataclass(frozen=True)
class VerifyJob:
    """Arguments of ``arcface_verify``."""

    app_args: tuple[str, ...] = ()
    model: str = ""
    sets: str = ""
    set_names: str = ""
    report: str = ""
    floor: float = 0.0
    hardware: str = "ascend-910b"
    image: str = ""
    cpu: int = 0
    memMB: int = 0
    env: dict[str, str] = field(default_factory=dict)
    secret: str = "arcface-s3"
    service_account: str = ""


@dataclass(frozen=True)
class PrepareJob:
    """Arguments of ``arcface_prepare``."""

    app_args: tuple[str, ...] = ()
    kind: str = "folder"
    output: str = ""
    image: str = ""
    cpu: int = 8
    memMB: int = 16384
    env: dict[str, str] = field(default_factory=dict)
    secret: str = "arcface-s3"
    service_account: str = ""
