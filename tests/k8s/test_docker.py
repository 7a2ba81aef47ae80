"""The image's build files, by rules in the manner of hadolint, and the SBOM against the lock file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest

from tests.jobs import ROOT

DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
INSTRUCTIONS = re.findall(
    r"^(?:FROM|RUN|COPY|ADD|ENV|USER|CMD|ENTRYPOINT|WORKDIR|LABEL|ARG)\b.*(?:\\\n.*)*", DOCKERFILE, re.M
)


def of(kind: str) -> list[str]:
    return [text for text in INSTRUCTIONS if text.startswith(kind + " ")]


def test_bases_are_an_argument_pinned_by_digest() -> None:
    assert of("FROM") == ["FROM ${BASE} AS build", "FROM ${BASE} AS runtime"]
    (default,) = [text for text in of("ARG") if text.startswith("ARG BASE=")]
    assert re.search(r"@sha256:[0-9a-f]{64}$", default)


def test_it_ends_as_a_user_that_is_not_root_with_an_exec_form_command() -> None:
    assert of("USER") == ["USER 1000:1000"]
    assert DOCKERFILE.rindex("USER 1000") > max(DOCKERFILE.rindex("\nRUN "), DOCKERFILE.rindex("\nCOPY "))
    (command,) = of("CMD")
    assert json.loads(command.removeprefix("CMD ")) == ["python", "-m", "app.selfcheck"]
    assert of("ENTRYPOINT") == []


def test_nothing_is_fetched_or_installed_without_a_version_and_a_hash() -> None:
    assert of("ADD") == []
    for run in of("RUN"):
        assert "curl" not in run
        assert "wget" not in run
        assert "sudo" not in run
        assert "apt-get" not in run
        for install in re.findall(r"pip install[^&]*", run):
            fixed = "--require-hashes" in install or "--no-index" in install or "==" in install or '"$TORCH"' in install
            assert fixed, install
    assert "ARG TORCH=torch==2.13.0" in DOCKERFILE


def test_index_settings_come_as_a_secret_and_caches_stay_out() -> None:
    assert all(
        "id=pip,target=/etc/pip.conf" in run for run in of("RUN") if "pip install" in run and "--no-index" not in run
    )
    assert "PIP_NO_CACHE_DIR=1" in DOCKERFILE
    assert not re.search(r"(?i)(password|token|secret_access|index-url=)", "\n".join(of("ENV") + of("ARG")))


def test_the_context_holds_only_what_is_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[0] == "*"
    admitted = {line[1:] for line in lines if line.startswith("!")}
    copied = {word for text in of("COPY") if "--from" not in text for word in re.sub(r"--\S+ ", "", text).split()[1:-1]}
    assert copied == admitted


def test_the_lock_of_the_image_is_hashed_and_agrees_with_the_other() -> None:
    def versions(name: str) -> set[str]:
        return set(re.findall(r"^([\w.-]+==\S+)", (ROOT / name).read_text(), re.M))

    image, whole = versions("docker/requirements.lock"), versions("requirements.lock")
    assert image < whole
    assert not any(name.startswith(("torchx", "kubernetes", "pytest", "seaweedfs")) for name in image)
    text = (ROOT / "docker" / "requirements.lock").read_text()
    assert text.count("--hash=sha256:") >= len(image)


def test_the_sbom_lists_torch_and_every_locked_package() -> None:
    sbom = json.loads((ROOT / "docker" / "sbom.cdx.json").read_text())
    listed = {f"{component['name'].lower()}=={component['version']}" for component in sbom["components"]}
    text = (ROOT / "docker" / "requirements.lock").read_text()
    # A package with a marker stands there once for each Python.
    locked = {match.lower() for match in re.findall(r"^([\w.-]+==[\w.+]+)", text, re.M)}
    assert listed == locked | {"torch==2.13.0"}, "make sbom"


def test_bake_covers_all_devices_and_both_architectures() -> None:
    bake = (ROOT / "docker" / "docker-bake.hcl").read_text()
    for target in ("cpu", "cuda", "npu"):
        assert f'target "{target}"' in bake
    assert '"linux/amd64", "linux/arm64"' in bake


@pytest.mark.parametrize(
    "script", ["docker/build_without_registry.sh", "docker/python.sh", "scripts/lock.sh", ".ci/run"]
)
def test_shell_scripts_parse(script: str) -> None:
    shell = "sh" if script.endswith("python.sh") else "bash"
    assert shutil.which(shell)
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)


def test_the_python_wrapper_loads_cann_where_it_is_and_passes_arguments(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("wrapper")
    script = (ROOT / "docker" / "python.sh").read_text()
    script = script.replace("/usr/local/Ascend", str(folder / "Ascend")).replace("/opt/venv/bin/python", "/usr/bin/env")
    wrapper = folder / "python"
    wrapper.write_text(script)
    environment = folder / "Ascend" / "cann"
    environment.mkdir(parents=True)
    (environment / "set_env.sh").write_text("export ASCEND_HOME_PATH=here\n")
    done = subprocess.run(
        ["sh", str(wrapper), "printenv", "ASCEND_HOME_PATH"], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "here"
