"""The node check: what it finds, and what it says where something is missing."""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.elastic.launch import check_node
from app.errors import AppError
from app.selfcheck import SelfCheckError, check_devices, check_shared_memory, main


def test_this_machine_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "failed" not in out
    assert "is writable" in out
    assert list((tmp_path / "out").iterdir()) == []


def test_too_few_devices_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCFACE_DEVICE", raising=False)
    monkeypatch.setattr(
        glob, "glob", lambda pattern: ["/dev/davinci0", "/dev/davinci1"] if "davinci" in pattern else []
    )
    assert check_devices(2) == "2 x npu"
    with pytest.raises(SelfCheckError, match="8 processes, but only 2 npu devices are visible"):
        check_devices(8)


def test_a_small_shm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=1 << 20))
    with pytest.raises(SelfCheckError, match="/dev/shm has 1 MiB"):
        check_shared_memory()


def test_an_output_that_cannot_be_written_ends_the_launch(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AppError, match="write failed"):
        check_node(1, ["--output.url", str(tmp_path / "file" / "runs"), "--x"])


def test_checks_that_fail_say_so_under_optimisation_too() -> None:
    program = (
        "import numpy as np, app.data.decode as decode, app.selfcheck as selfcheck\n"
        "decode.decode_image = lambda data: np.zeros((16, 16, 3), dtype=np.uint8)\n"
        "raise SystemExit(selfcheck.main([]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "failed  decoder: a grey of 128 came back from JPEG as 0.0" in done.stdout


def test_the_quick_checks_load_no_torch() -> None:
    program = "import sys, app.selfcheck as s; s.quick_checks(1, ''); raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == 0
