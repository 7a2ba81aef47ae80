"""Extensions of TorchX's schedulers: images patched by a workspace, names, and the interpreter of local jobs."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client as kubernetes
from torchx.schedulers import docker_scheduler
from torchx.schedulers.docker_scheduler import Opts as DockerOpts
from torchx.schedulers.kubernetes_scheduler import Opts
from torchx.schedulers.local_scheduler import Opts as LocalOpts
from torchx.specs import AppDef, Role

from app import prepare, verify
from app.config.recipe import all_settings
from tests.components.test_appdefs import build
from torchx_plugins.schedulers import local_interpreter
from torchx_plugins.schedulers._pods import check_places
from torchx_plugins.schedulers.elastic_kubernetes import ClusterError, create_scheduler

OPTIONS: dict[str, Any] = {
    "queue": "q",
    "namespace": "faces",
    "validate_spec": False,
    "reserved_millicpu": 0,
    "reserved_memmb": 0,
}


def pods(app: AppDef, **options: Any) -> list[Any]:
    given: Any = {**OPTIONS, **options}  # a dict, as TorchX's runner hands it over
    request = create_scheduler("test").submit_dryrun(app, given).request
    return [task["template"].spec for task in request.resource["spec"]["tasks"]]


@pytest.mark.parametrize("component", ["arcface_dist", "arcface_verify"])
def test_a_job_survives_an_image_that_a_workspace_build_changed(component: str) -> None:
    options = {"nnodes": "2"} if component == "arcface_dist" else {"model": "s3://r/x", "sets": "s3://f"}
    app = build(component, hardware="cpu", **options)
    for role in app.roles:
        role.image = "sha256:0123456789abcdef"  # what the build leaves in the role
    for spec in pods(app, image_repo="reg.example/team/patched"):
        (container,) = spec.containers
        assert container.image == "reg.example/team/patched:0123456789abcdef"
        assert container.command
        assert container.security_context.read_only_root_filesystem


def test_the_pods_know_the_handle_that_run_prints() -> None:
    app = build("arcface_dist", hardware="cpu", nnodes="1", recipe="orl")
    for role in app.roles:
        role.env["TORCHX_JOB_ID"] = "kubernetes://torchx/${app_id}"
    for spec in pods(app):
        (value,) = [item.value for item in spec.containers[0].env if item.name == "TORCHX_JOB_ID"]
        assert value.startswith("kubernetes://torchx/faces:orl-")


def test_a_foreign_job_whose_name_no_service_can_have_is_refused() -> None:
    app = AppDef(name="3d", roles=[Role(name="x", image="a:1", entrypoint="true")])
    with pytest.raises(ClusterError, match="must begin with a letter"):
        pods(app)


@pytest.mark.parametrize("image", ["/images/arcface", "reg.example/ArcFace:1"])
def test_an_image_that_no_node_can_pull_is_refused(image: str) -> None:
    app = AppDef(name="x", roles=[Role(name="x", image=image, entrypoint="true")])
    resource = create_scheduler("test").submit_dryrun(app, Opts(**OPTIONS)).request.resource
    with pytest.raises(ClusterError, match="is in no registry"):
        check_places(resource)


def test_local_jobs_use_the_python_that_runs_torchx_not_the_first_in_the_path() -> None:
    app = build("arcface_dist", hardware="cpu", nnodes="1", recipe="orl")
    scheduler = local_interpreter.create_scheduler("test")
    try:
        request = scheduler.submit_dryrun(app, LocalOpts()).request
    finally:
        scheduler.close()
    for replicas in request.role_params.values():
        assert {replica.args[0] for replica in replicas} == {sys.executable}
    assert {role.entrypoint for role in app.roles} == {"python"}


def test_a_job_that_no_api_server_stores_is_refused(tmp_path: Path) -> None:
    recipe = tmp_path / "long.toml"
    recipe.write_text(f'[data]\nurl = "s3://b/{"x" * 8000}"\n')
    with pytest.raises(
        ClusterError, match=r"the job takes 2\.\d MB, and API servers store 1\.5 MB: name the recipe by"
    ):
        pods(build("arcface_dist", hardware="cpu", nnodes="256", recipe=str(recipe), data=""))
    assert len(pods(build("arcface_dist", nnodes="256", recipe="glint360k_r100"))) == 257


def options_with_places() -> list[tuple[str, str]]:
    """Every option of the three programs whose meaning is a URL, with the program that has it."""
    of_train = [name for name, field in all_settings() if "URL" in field.meaning or "init_names" in field.meaning]
    found = [("app.elastic.launch", f"--{name.replace('_', '-')}") for name in [*of_train, "verify.url"]]
    programs: list[tuple[Any, list[str]]] = [(verify, [])]
    programs += [(prepare, [kind]) for kind in ("folder", "pairs", "merge", "mend", "orl")]
    for program, kind in programs:
        told = io.StringIO()
        with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
            program.parse([*kind, "--help"])
        for option, meaning in re.findall(r"^  (--[a-z-]+)(.*(?:\n    .*)*)", told.getvalue(), re.MULTILINE):
            if "URL" in meaning or "init_names" in meaning:
                found.append((program.__name__, option))
    return found


def test_no_option_leads_pods_to_a_folder_of_this_machine() -> None:
    options = options_with_places()
    assert {"--landmarks", "--pairs", "--data", "--weights-names", "--distill.teacher-names"} <= {o for _, o in options}
    for module, option in options:
        for words in ([option, "/home/me/x"], [f"{option}=./x"]):
            job = job_of("python", "-m", module, "--output.url", "s3://runs", *words)
            with pytest.raises(ClusterError, match=r"no pod has this folder"):
                check_places(job)
    check_places(job_of("python", "-m", "app.prepare", "split", "--data", "s3://x", "--pairs", "500"))


def job_of(*command: str) -> dict[str, Any]:
    pod = kubernetes.V1PodSpec(containers=[kubernetes.V1Container(name="x", image="a/b:1", command=list(command))])
    return {"spec": {"tasks": [{"name": "x-0", "template": kubernetes.V1PodTemplateSpec(spec=pod)}]}}


def test_a_container_on_a_machine_with_gpus_gets_them() -> None:
    app = build("arcface_dist", hardware="nvidia", nnodes="1", recipe="orl")
    request = docker_scheduler.create_scheduler("test").submit_dryrun(app, DockerOpts()).request
    (trainer,) = [c.kwargs for c in request.containers if "app.elastic.launch" in c.command]
    (wanted,) = trainer["device_requests"]
    assert wanted["Count"] == 8


def test_a_cache_of_the_dataset_has_room_and_a_place_where_pods_may_write() -> None:
    def job(*words: str) -> Any:
        app = build("arcface_dist", *words, hardware="cpu", nnodes="1", recipe="orl", output="s3://runs")
        return create_scheduler("test").submit_dryrun(app, Opts(**OPTIONS)).request.resource

    def room(resource: Any) -> str:
        (tmp,) = [v for v in resource["spec"]["tasks"][1]["template"].spec.volumes if v.name == "tmp"]
        return str(tmp.empty_dir.size_limit)

    assert room(job()) == "20Gi"
    cached = job("--data.cache", "/tmp/cache", "--data.cache-gb=150.5")
    assert room(cached) == "171Gi"
    check_places(cached)
    with pytest.raises(ClusterError, match=r"--data\.cache /cache: a pod may write below /tmp only"):
        check_places(job("--data.cache", "/cache"))
