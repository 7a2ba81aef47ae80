"""The components: TorchX's own linter, golden manifests, what arguments turn into, and what is refused."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import os
import re
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.components.component_test_base import ComponentTestCase
from torchx.schedulers.kubernetes_scheduler import Opts
from torchx.specs import AppDef
from torchx.specs.finder import get_component

from app.config.options import parse_arguments
from app.device import detect_device
from app.training.build import make_plan
from app.world import World
from components.jobs import PrepareJob, TrainJob, VerifyJob
from tests.components.api_server import problems_of_job
from tests.jobs import ROOT
from torchx_plugins.schedulers.elastic_kubernetes import create_scheduler

FILE = str(ROOT / "components.py")
GOLDEN = Path(__file__).parent / "golden"
MODULE: Any = types.SimpleNamespace(__file__=FILE)
IMAGE = "registry.example/arcface:1.0"


def build(name: str, /, *args: str, **options: Any) -> AppDef:
    given = {"image": IMAGE} | ({"data": "s3://faces/x"} if name == "arcface_dist" else {}) | options
    app: AppDef = get_component(f"{FILE}:{name}").fn(*args, **given)
    return app


def manifest(app: AppDef) -> str:
    """The Volcano job as YAML, with what is random in it replaced."""
    scheduler = create_scheduler("test")
    info = scheduler.submit_dryrun(
        app, Opts(queue="training", namespace="faces", validate_spec=False, reserved_millicpu=0, reserved_memmb=0)
    )
    text = str(info)
    unique = re.search(r"^  name: (\S+)$", text, re.M)
    assert unique is not None
    text = text.replace(unique[1], f"{app.name}-UNIQUE")
    text = re.sub(r"(name: TORCHX_INTERNAL_SESSION_ID\n\s+value:) \S+", r"\1 SESSION", text)
    return re.sub(r"(torchx.pytorch.org/version:) \S+", r"\1 VERSION", text)


PROFILES = ["ascend-910", "ascend-910b", "ascend-a3", "ascend-910b-host", "nvidia", "cpu"]


def cases() -> dict[str, Any]:
    places = {"data": "s3://faces/glint360k", "output": "s3://runs", "recipe": "glint360k_r100"}
    found: dict[str, Any] = {}
    for profile in PROFILES:
        found[f"dist-{profile}-4"] = ("arcface_dist", {"nnodes": "4", "hardware": profile, **places})
    found["dist-ascend-910b-elastic"] = (
        "arcface_dist",
        {"nnodes": "2:4", "hardware": "ascend-910b", "preemptible": "True", **places},
    )
    found["dist-ascend-910b-1-device"] = (
        "arcface_dist",
        {"nnodes": "1", "nproc_per_node": 1, "hardware": "ascend-910b", **places},
    )
    model = {"model": "s3://runs/glint360k_r100", "sets": "s3://faces/glint360k", "floor": 0.98}
    found["verify-ascend-910b"] = ("arcface_verify", {"hardware": "ascend-910b", **model})
    found["prepare-cpu"] = ("arcface_prepare", {"kind": "orl", "output": "s3://faces/orl"})
    return found


@pytest.mark.parametrize("case", cases())
def test_manifests_are_the_golden_ones_and_valid(case: str) -> None:
    name, options = cases()[case]
    text = manifest(build(name, **options))
    path = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    expected = path.read_text()
    difference = "\n".join(difflib.unified_diff(expected.splitlines(), text.splitlines(), lineterm=""))
    assert text == expected, f"make golden renews them:\n{difference}"
    job = yaml.safe_load(text.replace("-UNIQUE", "-unique"))
    assert problems_of_job(job) == []


@pytest.mark.parametrize("case", cases())
def test_every_pod_meets_the_security_level_restricted(case: str) -> None:
    name, options = cases()[case]
    job = yaml.safe_load(manifest(build(name, **options)))
    for task in job["spec"]["tasks"]:
        spec = task["template"]["spec"]
        host = [volume for volume in spec["volumes"] if "hostPath" in volume]
        assert bool(host) == (case == "dist-ascend-910b-host-4" and task["name"].startswith("trainer"))
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert security["readOnlyRootFilesystem"] is True
            assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
            assert not container["image"].endswith(":latest")


class TestLinter(ComponentTestCase):
    """What TorchX itself checks: annotations, docstrings, defaults."""

    def test_arcface_dist(self) -> None:
        self.validate(MODULE, "arcface_dist")

    def test_arcface_verify(self) -> None:
        self.validate(MODULE, "arcface_verify")

    def test_arcface_prepare(self) -> None:
        self.validate(MODULE, "arcface_prepare")


def trainer_args(**options: Any) -> list[str]:
    app_args = options.pop("app_args", ())
    return build("arcface_dist", *app_args, hardware="cpu", **options).roles[1].args


@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({"nnodes": "4", "nproc_per_node": 8, "recipe": "glint360k_r100"}, 32),
        ({"nnodes": "2:4", "nproc_per_node": 8, "recipe": "glint360k_r100"}, 32),
        ({"nnodes": "1", "nproc_per_node": 8, "recipe": "wf42m_pfc03_40epoch_8gpu_vit_b"}, 96),
        ({"nnodes": "2", "recipe": "orl", "app_args": ["--train.gradient-accumulation=3"]}, 6),
        ({"nnodes": "2", "recipe": "orl", "app_args": ["--train.gradient_accumulation", "3"]}, 6),
    ],
)
def test_logical_workers_follow_the_largest_world_and_the_recipe(options: dict[str, Any], workers: int) -> None:
    assert planned_workers(trainer_args(**options)) == workers


def test_a_recipe_file_of_ones_own_keeps_its_gradient_accumulation(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text("[train]\ngradient_accumulation = 5\n")
    assert planned_workers(trainer_args(nnodes="1:2", recipe=str(path))) == 10


def planned_workers(args: list[str]) -> int:
    """What the app makes of a trainer's arguments when one process starts."""
    recipe = parse_arguments(args[args.index("--") + 1 :])
    return make_plan(recipe, World(0, 1, 0, detect_device()), None).logical_workers


def test_the_users_logical_workers_stand_and_too_few_are_refused() -> None:
    assert planned_workers(trainer_args(nnodes="1:2", recipe="orl", app_args=["--train.logical-workers", "6"])) == 6
    with pytest.raises(ValueError, match=r"--train\.logical-workers 3 cannot feed 4 processes"):
        trainer_args(nnodes="4", recipe="orl", app_args=["--train.logical-workers", "3"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nnodes": "four"}, "--nnodes must be N or MIN:MAX"),
        ({"nnodes": "4:2"}, "least number must be at least 1 and not above the most"),
        ({"nnodes": "0"}, "at least 1"),
        ({"hardware": "ascend-910c"}, "unknown hardware 'ascend-910c': did you mean"),
        ({"recipe": "glint360k_r10"}, "unknown recipe 'glint360k_r10': did you mean 'glint360k_r100'"),
        ({"image": ""}, "no image: pass --image, or set it in .torchxconfig"),
        ({"image": "registry.example/arcface:latest"}, "a tag that moves"),
        ({"image": "registry.example/ArcFace:1"}, "did you mean 'registry.example/arcface:1'"),
        ({"image": "registry.example/arc face:1"}, "is no image reference"),
        ({"image": "registry.example/arcface:1:2"}, "is no image reference"),
        ({"env": {"AWS_SECRET_ACCESS_KEY": "x"}}, "--env AWS_SECRET_ACCESS_KEY: the value would stand in the job"),
        ({"env": {"WANDB_API_KEY": "x"}}, "put it into the Secret that --secret names"),
        ({"env": {"HF_TOKEN": "x"}}, "--env HF_TOKEN"),
        ({"env": {"db_password": "x"}}, "--env db_password"),
        ({"env": {"aws_secret_access_key": "x"}}, "--env aws_secret_access_key: the value would stand in the job"),
        ({"env": {"FSSPEC_S3_KEY": "x"}}, "--env FSSPEC_S3_KEY: the value would stand in the job"),
        ({"env": {"MINIO_ACCESSKEY": "x"}}, "--env MINIO_ACCESSKEY: the value would stand in the job"),
        ({"env": {"DB_PASS": "x"}}, "--env DB_PASS: the value would stand in the job"),
        ({"env": {"FSSPEC_S3": '{"secret": "0123456789"}'}}, "--env FSSPEC_S3: a URL with a password, token or"),
        ({"env": {"A": "https://ghp_0123@host/a"}}, "--env A: a URL with a password, token or signature"),
        ({"data": "https://host/faces?X-Amz-Signature=0123"}, "a URL with a password, token or signature"),
        ({"data": "s3x://token0123@host/faces"}, "a URL with a password, token or signature"),
        ({"env": {"HTTPS_PROXY": "http://me:pw@proxy:3128"}}, "--env HTTPS_PROXY: a URL with a password"),
        ({"data": "https://me:pw@host/faces"}, "a URL with a password"),
        ({"nnodes": "٣"}, "--nnodes must be N or MIN:MAX"),
        ({"nnodes": "99999999"}, "more than 256"),
        ({"nnodes": "1:257"}, "more than 256"),
        ({"nproc_per_node": -3}, "--nproc_per_node must be from 0 to 256"),
        ({"nproc_per_node": 9, "hardware": "nvidia"}, "--nproc_per_node must be from 0 to 8; got 9"),
        ({"cpu": -1}, "--cpu must be at least 0"),
        ({"memMB": -5}, "--memMB must be at least 0"),
        ({"max_restarts": -1}, "--max_restarts must be at least 0"),
        ({"rdzv_port": 0}, "--rdzv_port must be from 1024 to 65535"),
        ({"rdzv_port": 80}, "--rdzv_port must be from 1024 to 65535"),
        ({"rdzv_port": 99999}, "--rdzv_port must be from 1024 to 65535"),
        ({"rdzv_port": 9400}, "is that of the metrics"),
        ({"ttl_seconds": -1}, "--ttl_seconds must be from 0 to 2147483647"),
        ({"ttl_seconds": 1 << 31}, "--ttl_seconds must be from 0 to 2147483647"),
        ({"memMB": 64}, "--memMB 64: Python with torch alone takes 256; was GB meant?"),
        ({"name": "--x"}, "--name '--x' is no name of a folder"),
        ({"name": " a"}, "--name ' a' is no name of a folder"),
        ({"secret": "a..b"}, "--secret 'a..b' is no name of an object"),
        ({"secret": "a" * 250}, "at most 240"),
        ({"data": "obs://b/x"}, "that store speaks S3: s3://b/x with its endpoint as AWS_ENDPOINT_URL"),
        ({"hardware": "910A"}, "unknown hardware '910A': did you mean 'ascend-910'?"),
        ({"hardware": "ASCEND-910B"}, "unknown hardware 'ASCEND-910B': did you mean 'ascend-910b'?"),
        ({"hardware": "ascend-910", "nproc_per_node": 3}, "a pod can have 1, 2, 4, 8 of a node of ascend-910"),
        ({"hardware": "ascend-a3", "nproc_per_node": 5}, "--nproc_per_node 5: a pod can have 1, 2, 4, 6, 8, 10, 12"),
        ({"name": "../up"}, "--name '../up' is no name of a folder"),
        ({"name": "a\nb"}, "is no name of a folder"),
        ({"name": "x" * 300}, "is no name of a folder: up to 200 characters"),
        ({"secret": "My Secret"}, "--secret 'My Secret' is no name of an object"),
        ({"service_account": "Bad_Name"}, "--service_account 'Bad_Name' is no name of an object"),
        ({"env": {"A B": "1"}}, "--env 'A B' is no name of a variable"),
        ({"env": {"RANK": "0"}}, "--env RANK: torchrun sets it for each process"),
        ({"env": {"TORCHELASTIC_RUN_ID": "x"}}, "--env TORCHELASTIC_RUN_ID"),
        ({"env": {"A": 'a"b,B=c"d'}}, "--env A: a quote in its value swallows the variables behind it"),
        ({"env": {"": "1"}}, "--env '' is no name of a variable"),
        ({"env": {"1A": "1"}}, "--env '1A' is no name of a variable"),
        ({"data": "s4://b/x"}, "--data s4://b/x: no storage is known as s4://; did you mean s3://?"),
        ({"output": "zz://b"}, "--output zz://b: no storage is known as zz://"),
        ({"output": "s3://"}, "--output s3://: no bucket behind s3://"),
        ({"data": "s3://b/x,s4://b/y"}, "no storage is known as s4://"),
        ({"data": ""}, "no --data: URL of the folder"),
        ({"preemptible": "maybe"}, "--preemptible must be True or False; got 'maybe'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build("arcface_dist", **({"nnodes": "2", "hardware": "cpu", "recipe": "orl"} | options))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--name", "give --name before the --"),
        ("--recipe", "give --recipe before the --"),
        ("--data.url", "give --data before the --"),
        ("--output.url", "give --output before the --"),
        ("--train.max-processes", "it follows from --nnodes and --nproc_per_node"),
        ("--output.prometheus-port", "the cluster looks for metrics at the component's"),
        ("--print-config", "is answered here, not by a job: python -m app.train --print-config"),
        ("--help", "is answered here, not by a job"),
    ],
)
@pytest.mark.parametrize("spelling", [str, lambda option: f"{option}=1", lambda option: option.replace("-", "_")[2:]])
def test_what_the_component_gives_the_app_cannot_be_given_again(option: str, message: str, spelling: Any) -> None:
    word = spelling(option)
    word = word if word.startswith("--") else f"--{word}"
    with pytest.raises(ValueError, match=re.escape(message.replace(option, word.partition("=")[0]))):
        build("arcface_dist", word, "1", nnodes="2", hardware="cpu", recipe="orl")


@pytest.mark.parametrize("floor", [-0.1, 1.5, float("nan")])
def test_a_floor_that_no_accuracy_can_have_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match="--floor must be from 0 to 1"):
        build("arcface_verify", model="s3://runs/a", sets="s3://faces", floor=floor)


def test_data_may_come_from_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "ours.toml"
    path.write_text('[data]\nurl = "s3://faces/ours"\n')
    for recipe in ("3millions", str(path), "s3://recipes/ours.toml"):
        assert "--data.url" not in trainer_args(nnodes="1", recipe=recipe, data="")


def test_the_callers_environment_is_not_changed() -> None:
    env = {"A": "1"}
    app = build("arcface_dist", nnodes="1", hardware="cpu", recipe="orl", env=env)
    assert env == {"A": "1"}
    assert app.roles[1].env["A"] == "1"


DOLLARS = ["a$$b", "${app_id}", "$(HOME)", "$x", "cost$"]


@pytest.mark.parametrize("word", DOLLARS)
def test_neither_torchx_nor_kubernetes_fills_in_what_the_user_wrote(word: str) -> None:
    app = build("arcface_dist", nnodes="1", hardware="cpu", name=word, data=f"s3://b/{word}", env={"A": word})
    (container,) = yaml.safe_load(manifest(app))["spec"]["tasks"][1]["template"]["spec"]["containers"]
    command = [as_kubernetes_expands(part) for part in container["command"]]
    assert command[command.index("--name") + 1] == word
    assert command[command.index("--data.url") + 1] == f"s3://b/{word}"
    (value,) = [item["value"] for item in container["env"] if item["name"] == "A"]
    assert as_kubernetes_expands(value) == word
    assert command[command.index("--rdzv-id") + 1].endswith("-UNIQUE")


def as_kubernetes_expands(text: str) -> str:
    """Of kubelet's rules, for names that are set: ``$$`` is a dollar, ``$(NAME)`` a value."""
    return re.sub(r"\$(\$|\((\w+)\))", lambda found: "$" if found[1] == "$" else f"VALUE OF {found[2]}", text)


@pytest.mark.parametrize(
    "image",
    ["/images/arcface", "./arcface", ".", "~/arcface", "arcface:1", "Registry.Example:5000/a/b__c@sha256:" + "a" * 64],
)
def test_images_of_every_scheduler_are_taken(image: str) -> None:
    app = build("arcface_dist", nnodes="2", hardware="cpu", recipe="orl", image=image)
    assert {role.image for role in app.roles} == {image}


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "AWS_CA_BUNDLE", "NCCL_KEY", "AWS_WEB_IDENTITY_TOKEN_FILE"])
def test_variables_that_are_no_secrets_pass(name: str) -> None:
    assert build("arcface_dist", nnodes="1", hardware="cpu", recipe="orl", env={name: "/x"}).roles[1].env[name] == "/x"


def test_no_schedulers_mark_is_in_the_environment_that_all_get() -> None:
    for role in build("arcface_dist", nnodes="2", hardware="cpu", recipe="orl").roles:
        assert not any("[" in value for value in role.env.values())


@pytest.mark.parametrize(
    ("component", "job"), [("arcface_dist", TrainJob), ("arcface_verify", VerifyJob), ("arcface_prepare", PrepareJob)]
)
def test_a_components_arguments_are_one_typed_value_with_the_same_defaults(component: str, job: Any) -> None:
    parameters = inspect.signature(get_component(f"{FILE}:{component}").fn).parameters
    assert {field.name for field in dataclasses.fields(job)} == set(parameters)
    for name, parameter in parameters.items():
        if name != "app_args":
            assert str(getattr(job(), name)) == str(parameter.default), name


@pytest.mark.parametrize(
    "name", ["glint360k_r100", "A Name With Spaces!", "x" * 90, "3millions", "20240101", "-9-", "Ünïcode", "1" * 40]
)
def test_job_names_leave_room_for_what_is_appended(name: str) -> None:
    app = build("arcface_dist", nnodes="1:16", hardware="cpu", recipe="orl", name=name)
    assert problems_of_job(yaml.safe_load(manifest(app).replace("-UNIQUE", "-" + "u" * 14))) == []
