"""TorchX components: ``torchx run components.py:NAME``. Thin: ``components/`` does the work."""

from pathlib import Path

from torchx import specs

# TorchX loads this file as a module named "components", which would hide the package of that name beside it.
__path__ = [str(Path(__file__).with_suffix(""))]

from components.appdefs import prepare_app, train_app, verify_app
from components.arguments import parse_switch
from components.jobs import PrepareJob, TrainJob, VerifyJob


def arcface_dist(
    *app_args: str,
    nnodes: str = "1",
    nproc_per_node: int = 0,
    recipe: str = "glint360k_r100",
    data: str = "",
    output: str = "",
    name: str = "",
    hardware: str = "ascend-910b",
    image: str = "",
    cpu: int = 0,
    memMB: int = 0,
    env: dict[str, str] = {},
    secret: str = "arcface-s3",
    service_account: str = "",
    max_restarts: int = 100,
    rdzv_port: int = 29500,
    preemptible: str = "False",
    ttl_seconds: int = 604800,
) -> specs.AppDef:
    """Trains a face-recognition model on elastic nodes, straight from object storage.

    For example, on four nodes, or on two to four, whatever is free:

        torchx run -s kubernetes components.py:arcface_dist --nnodes 4
        torchx run -s kubernetes components.py:arcface_dist --nnodes 2:4 --recipe glint360k_r50 -- --train.epochs 10

    Args:
        app_args: options of the app, behind ``--``: ``--section.field VALUE`` (``--print-config`` lists them)
        nnodes: number of nodes, or ``MIN:MAX`` for an elastic job
        nproc_per_node: processes a node; 0: as many as the hardware profile has devices
        recipe: a published recipe, or the URL of a TOML file
        data: URL of the folder with train.rec and train.idx
        output: URL under which the run's folder is written
        name: of the run; its folder and its job are called so; default: the recipe's name
        hardware: profile of the nodes: ascend-910, ascend-910b, ascend-a3, nvidia, cpu, or a .toml file of your own
        image: container image
        cpu: CPU cores a node; 0: the profile's
        memMB: memory a node in MB; 0: the profile's
        env: environment variables of the trainers, KEY=VALUE,...
        secret: Kubernetes Secret with the object store's keys and endpoint; never pass keys as arguments
        service_account: Kubernetes service account of the pods
        max_restarts: how often the job may start again after a failed worker or a changed number of nodes
        rdzv_port: port of the rendezvous process
        preemptible: True or False: may a queue with a better claim take nodes away (down to the least number)
        ttl_seconds: seconds that a finished job is kept for status and logs
    """
    return train_app(TrainJob(**locals() | {"preemptible": parse_switch("--preemptible", preemptible)}))


def arcface_verify(
    *app_args: str,
    model: str = "",
    sets: str = "",
    set_names: str = "",
    report: str = "",
    floor: float = 0.0,
    hardware: str = "ascend-910b",
    image: str = "",
    cpu: int = 0,
    memMB: int = 0,
    env: dict[str, str] = {},
    secret: str = "arcface-s3",
    service_account: str = "",
) -> specs.AppDef:
    """Verifies the result of a run on one device and writes a report beside it.

    For example:

        torchx run -s kubernetes components.py:arcface_verify --model s3://runs/glint360k_r100 --sets s3://faces/glint360k

    Args:
        app_args: further options of ``python -m app.verify``, behind ``--``
        model: URL of a run folder
        sets: URL of the folder with the verification sets (.bin)
        set_names: names of the sets, comma separated; default: every .bin there
        report: URL of the report's folder; default: verification/ in the run folder
        floor: the job fails when an accuracy is below it
        hardware: profile of the node; one device of it is asked for
        image: container image
        cpu: CPU cores; 0: the profile's
        memMB: memory in MB; 0: the profile's
        env: environment variables, KEY=VALUE,...
        secret: Kubernetes Secret with the object store's keys and endpoint
        service_account: Kubernetes service account of the pod
    """
    return verify_app(VerifyJob(**locals()))


def arcface_prepare(
    *app_args: str,
    kind: str = "folder",
    output: str = "",
    image: str = "",
    cpu: int = 8,
    memMB: int = 16384,
    env: dict[str, str] = {},
    secret: str = "arcface-s3",
    service_account: str = "",
) -> specs.AppDef:
    """Prepares a dataset as a job: photographs become train.rec and train.idx in the bucket.

    For example:

        torchx run -s kubernetes components.py:arcface_prepare --kind orl --output s3://faces/orl

    Args:
        app_args: options of ``python -m app.prepare KIND``, behind ``--``
        kind: what is prepared; ``python -m app.prepare --help`` lists the kinds
        output: URL of the folder to write to
        image: container image
        cpu: CPU cores
        memMB: memory in MB
        env: environment variables, KEY=VALUE,...
        secret: Kubernetes Secret with the object store's keys and endpoint
        service_account: Kubernetes service account of the pod
    """
    return prepare_app(PrepareJob(**locals()))
