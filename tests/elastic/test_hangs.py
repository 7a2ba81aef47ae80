"""A hang in every section of a start, of a step and of the end has a name: two real processes, a real run.

One of them is held up in one place after the other. Where the alarm would end both, it lets the culprit go on here, so
that one run goes through all of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import storage
from app.data.bin_sets import dump_set
from app.data.decode import encode_jpeg
from app.elastic.watchdog import SECTIONS
from demo.object_store import free_port
from tests.jobs import ROOT, SMALL, environment, write_faces

HELD = """
import contextlib, importlib, io, os, sys, time
from pathlib import Path
from app.elastic import watchdog
from app import train

folder, rank = Path(sys.argv.pop(1)), int(os.environ["RANK"])
PLACES = {  # section: who hangs, where, and in which step
    "join": (1, "torch.distributed", "init_process_group", None),
    "dataset": (0, "app.training.start", "open_source", None),
    "resume": (1, "app.checkpoint.manager", "CheckpointManager.load_latest", None),
    "model": (0, "app.training.start", "make_trainer", None),
    "sets": (0, "app.training.start", "load_sets", None),
    "begin": (0, "app.training.start", "resume", None),
    "data": (1, "app.data.loader", "Loader.steps", None),
    "forward": (1, "app.training.trainer", "Trainer._forward", 1),
    "head": (0, "app.head.partial_fc", "PartialFC.forward", 2),
    "backward": (1, "torch", "Tensor.backward", 3),
    "update": (0, "app.training.trainer", "Trainer._update", 4),
    "log": (0, "app.observe.figures", "Reporter.report", 5),
    "checkpoint": (0, "app.checkpoint.manager", "CheckpointManager.advance", None),
    "verification": (1, "app.training.verifier", "verify_set", None),
    "results": (0, "app.training.finish", "save_model", None),
    "close": (0, "app.checkpoint.manager", "CheckpointManager.close", None),
}
now = [-1]

def hold(section, module, name, step):
    owner = importlib.import_module(module)
    *classes, name = name.split(".")
    for part in classes:
        owner = getattr(owner, part)
    whole, done = getattr(owner, name), []

    def held(*arguments, **options):
        if name == "step":
            now[0] = arguments[1]
        elif not done and step in (None, now[0]):
            done.append(section)
            (folder / "held").write_text(section)
            waits = ["0", "1"] if section not in ("results", "close") else [str(rank)]
            print("held in", section, flush=True)
            while not all((folder / f"{section}-{other}").exists() for other in waits):
                time.sleep(0.02)
        return whole(*arguments, **options)

    setattr(owner, name, held)

hold("", "app.training.trainer", "Trainer.step", None)
for section, (who, *place) in PLACES.items():
    if who == rank:
        hold(section, *place)

class Patient(watchdog.Watchdog):
    "Says what it finds, and lets who was named rightly go on."

    def __init__(self, *arguments):
        super().__init__(*arguments, interval=0.1, give_up=lambda code: None)

    def _report(self):
        words = io.StringIO()
        with contextlib.redirect_stderr(words):
            super()._report()
        text, held = words.getvalue(), folder / "held"
        section = held.read_text() if held.exists() else ""
        who = f"rank {PLACES[section][0]} is behind, at step" if section and not self.alone else "it is"
        if who in text and f" in {section}" in text.partition(who)[2]:
            print(text, flush=True)
            (folder / f"{section}-{rank}").touch()
        return False

watchdog.Watchdog = Patient
watchdog.faulthandler.dump_traceback = lambda file: None
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_hang_in_every_section_names_rank_and_section(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "data"))
    picture = encode_jpeg(np.zeros((32, 32, 3), np.uint8))
    storage.write_bytes(str(tmp_path / "data" / "pairs.bin"), dump_set([picture] * 40, [i % 2 == 0 for i in range(20)]))
    options = ("--data.url", str(tmp_path / "data"), "--output.url", str(tmp_path), "--train.last-step", "8")
    more = ("--verify.sets", "pairs", "--output.onnx", "false", "--train.step-timeout", "1.2")
    port, texts = str(free_port()), []
    ranks = []
    for rank in "01":
        log = (tmp_path / f"rank-{rank}").open("w")
        variables = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        command = [sys.executable, "-c", HELD, str(tmp_path), *SMALL, *options, *more]
        variables = {**environment(), **variables, "LOCAL_RANK": rank}
        ranks.append(subprocess.Popen(command, env=variables, cwd=ROOT, stdout=log, stderr=log))
    try:
        codes = [rank.wait(360) for rank in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
        texts = [(tmp_path / f"rank-{rank}").read_text() for rank in "01"]
    assert codes == [0, 0], texts
    for section in SECTIONS:
        assert f"held in {section}\n" in texts[0] + texts[1], section
        where = r"behind, at step \d+" if section not in ("results", "close") else "it is"
        assert re.search(f"{where} in {section}", "".join(texts)), section
