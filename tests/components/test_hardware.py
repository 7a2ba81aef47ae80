"""Hardware profiles of one's own: what a team's nodes have beside the published ones."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.plan import load_node
from components.hardware import HardwareError, load_profile, profile_names
from tests.components.api_server import problems_of_job
from tests.components.test_appdefs import build, manifest

OURS = """
base = "ascend-910b"
resource = "huawei.com/npu"
devices = 16
memory_mb = 400000
shm_mb = 8192

[labels]
team = "faces"

[node_selector]
accelerator-type = "module-910b-16"
pool = "faces"

[[tolerations]]
key = "dedicated"
operator = "Equal"
value = "faces"
effect = "NoSchedule"

[env]
HCCL_SOCKET_IFNAME = "bond0"
"""


@pytest.fixture
def ours(tmp_path: Path) -> str:
    path = tmp_path / "ours.toml"
    path.write_text(OURS)
    return str(path)


def test_a_profile_of_ones_own_says_what_differs(ours: str) -> None:
    options: dict[str, Any] = {"nnodes": "2:4", "recipe": "glint360k_r100", "hardware": ours}
    job = yaml.safe_load(manifest(build("arcface_dist", **options)).replace("-UNIQUE", "-unique"))
    assert problems_of_job(job) == []
    template = job["spec"]["tasks"][1]["template"]
    spec, (container,) = template["spec"], template["spec"]["containers"]
    assert spec["nodeSelector"] == {
        "accelerator": "huawei-Ascend910",
        "accelerator-type": "module-910b-16",
        "pool": "faces",
    }
    assert [toleration["key"] for toleration in spec["tolerations"]] == ["huawei.com/Ascend910", "dedicated"]
    assert container["resources"]["limits"] == {"cpu": "160000m", "memory": "400000M", "huawei.com/npu": "16"}
    assert next(v for v in spec["volumes"] if v["name"] == "dshm")["emptyDir"]["sizeLimit"] == "8192Mi"
    env = {item["name"]: item.get("value") for item in container["env"]}
    assert (env["HCCL_SOCKET_IFNAME"], env["GLOO_SOCKET_IFNAME"]) == ("bond0", "eth0")
    assert template["metadata"]["labels"]["team"] == "faces"
    command = container["command"]
    assert command[command.index("--nproc-per-node") + 1] == "16"


def test_the_plan_knows_it_too(ours: str) -> None:
    node = load_node(ours)
    assert (node.devices, node.device_mb, node.host_mb) == (16, 65536, 400000 * 10**6 >> 20)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "base = '' must be one of ascend-910"),
        ('base = "ascend"', "base = 'ascend' must be one of"),
        ('base = "cpu"\ndevcies = 2', "unknown field 'devcies': did you mean 'devices'?"),
        ('base = "cpu"\ndevices = 0', "devices must be a whole number of at least 1; got 0"),
        ('base = "cpu"\nmemory_mb = "4G"', "memory_mb must be a whole number of at least 1; got '4G'"),
        ('base = "cpu"\ngrace_seconds = 5', "grace_seconds must be a whole number of at least 30; got 5"),
        ('base = "cpu"\n[env]\nA = 1', "[env] must be a table of texts"),
        ('base = "cpu"\nnode_selector = "pool=a"', "[node_selector] must be a table of texts"),
        ('base = "cpu"\ntolerations = "all"', "tolerations must be a list of tables"),
        ('base = "cpu"\n[env]\nHF_TOKEN = "x"', "HF_TOKEN: the value would stand in the job for all to read"),
        ("base =", "Invalid value"),
    ],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "ours.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        build("arcface_dist", nnodes="1", recipe="orl", hardware=str(path))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="No such file"):
        load_profile(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", profile_names())
def test_a_whole_node_is_a_number_of_devices_that_it_gives(name: str) -> None:
    profile = load_profile(name)
    profile.check_devices(profile.devices)
    profile.check_devices(1)  # arcface_verify's
