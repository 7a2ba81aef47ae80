"""insightface's lines of progress, and training.log over several starts."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from app import storage
from app.observe.progress import Progress
from app.observe.training_log import TrainingLog, reference_line, stamp
from tests.observe.test_progress import Terminal

STAMP = r"Training: \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}-"


def test_a_line_is_the_references() -> None:
    """utils_callbacks.py: "Speed %.2f samples/sec   Loss %.4f   LearningRate %.6f   Epoch: %d   Global Step: %d "."""
    told: dict[str, Any] = {"speed": 2594.046, "loss": 5.20134, "lr": 0.05, "epoch": 3, "step": 37370}
    assert reference_line(**told, seconds_left=35000, scale=65536.0) == (
        "Speed 2594.05 samples/sec   Loss 5.2013   LearningRate 0.050000   Epoch: 3   Global Step: 37370   "
        "Fp16 Grad Scale: 65536   Required: 10 hours"
    )
    assert reference_line(**told, seconds_left=1e4, scale=None).endswith("Global Step: 37370   Required: 3 hours")


def test_what_the_ascend_scripts_do_with_a_line_finds_the_speed() -> None:
    line = stamp(reference_line(speed=123.4, loss=1.0, lr=0.1, epoch=0, step=10, seconds_left=0, scale=None))
    assert re.fullmatch(f"{STAMP}Speed .*", line)
    # grep 'Speed' | awk -F 'Speed ' '{print $2}' | awk '{print $1}', and the loss likewise
    assert line.split("Speed ")[1].split()[0] == "123.40"
    assert line.split("Loss ")[1].split()[0] == "1.0000"


def test_training_log_goes_on_where_the_last_start_left_it(bucket_url: str, tmp_path: Path) -> None:
    for url in (bucket_url, str(tmp_path)):
        for start in range(2):
            log = TrainingLog(url, enabled=True)
            log.add(f"start {start}\nmore")
            log.flush()
            log.add("end")
            log.flush()
        lines = storage.read_bytes(f"{url}/training.log").decode().splitlines()
        assert [re.sub(STAMP, "", line) for line in lines] == ["start 0", "more", "end", "start 1", "more", "end"]
    silent = TrainingLog(str(tmp_path / "other"), enabled=False)
    silent.add("x")
    silent.flush()
    assert not (tmp_path / "other").exists()


def test_stamped_lines_are_plain_on_a_terminal_too() -> None:
    kept: list[str] = []
    terminal = Terminal(80)
    progress = Progress(10, enabled=True, out=terminal.out, log=kept.append, stamped=True)
    progress.report(1, "Speed 1.00 samples/sec   Loss 2.0000")
    progress.say("[lfw][10]XNorm: 1.0")
    progress.close()
    text = terminal.text()
    assert kept == ["Speed 1.00 samples/sec   Loss 2.0000", "[lfw][10]XNorm: 1.0"]
    assert "\x1b" not in text
    lines = text.splitlines()
    assert [re.sub(STAMP, "", line) for line in lines] == kept
    plain = io.StringIO()
    Progress(10, enabled=True, out=plain, log=kept.append).report(5, "five")
    assert "50%  five" in plain.getvalue()
    assert kept[-1] == "five"
