"""The soak's own parts: the same seed disturbs alike, logs are read as they grow, the figures are those of the run."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import torch

from tests.faults.proxy import Proxy
from tests.soak.disturbances import KINDS, Disturbance, draw
from tests.soak.job import Incident, Job
from tests.soak.report import compare_losses, compare_weights, make_table
from tests.soak.report import draw as draw_picture
from tests.soak.watch import Watch


def test_a_seed_gives_one_sequence_and_every_kind_comes_up() -> None:
    first, second = (list(itertools.islice(draw(3), 200)) for _ in range(2))
    assert first == second != list(itertools.islice(draw(4), 200))
    assert {item.kind for item in first} == set(KINDS)


def test_lines_are_read_once_whole_and_from_files_that_come_later(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    (tmp_path / "a.log").write_text(
        "orl: from the beginning of 50, 4 processes on cpu for 4 logical workers x 6\nnoise\n  1"
    )
    watch.read()
    with (tmp_path / "a.log").open("a") as file:
        file.write("%  12.1 img/s | loss   8.5000 | ETA 1m00s | step 7 | lr 0.1 | epoch 0\n")
    (tmp_path / "b.log").write_text("orl: from step 5 of 50, 3 processes on cpu for 4 logical workers x 6, attempt 1\n")
    watch.read()
    watch.read()
    assert [(seen.step, seen.world, seen.loss) for seen in watch.seen] == [(0, 4, None), (7, 4, 8.5), (5, 3, None)]
    draw_picture(watch.seen, [Incident("node lost", 0.0, 7, False, 1.0)], tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 1000


def test_one_bit_is_a_difference() -> None:
    one = {"w": torch.ones(3)}
    other = {"w": torch.tensor([1.0, 1.0, 1.0 + 2**-23])}
    assert compare_weights(one, one) == {"entries_that_differ": 0, "largest_relative_difference": 0.0}
    assert compare_weights(other, one)["entries_that_differ"] == 1
    assert compare_losses({1: 2.0, 2: 3.0}, {2: 3.0, 3: 1.0}) == {"steps": 1, "steps_that_differ": 0, "largest": 0.0}


def test_the_table_has_medians_and_extremes() -> None:
    incidents = [Incident("a", 0.0, 1, False, t, lost_steps=int(t), restarted=True) for t in (1.0, 2.0, 9.0)]
    assert make_table(incidents).splitlines()[-1] == "| all | 3 | 3 | 2 | 9 | 9 |"


def test_what_cannot_happen_is_not_counted(tmp_path: Path) -> None:
    """With as many nodes as must be there none is lost; without a worker none is killed."""

    class Nodes:
        rendezvous = None

        def __init__(self, number: int) -> None:
            self.nodes = [subprocess.Popen(["sleep", "600"]) for _ in range(number)]

    cluster: Any = Nodes(2)
    job = Job(cluster, Watch(tmp_path), Proxy("http://127.0.0.1:9"), 1)
    try:
        for kind in ("node lost", "node leaves", "worker killed", "worker hangs", "rendezvous killed"):
            assert not job.disturb(Disturbance(kind, 0.0, False, 0.5, 1.0)), kind
        assert not job.incidents
        cluster.nodes.append(subprocess.Popen(["sleep", "600"]))
        assert job.disturb(Disturbance("node lost", 0.0, False, 0.99, 1.0))
        assert job.disturb(Disturbance("store away", 0.0, False, 0.5, 1.0))
        assert [incident.kind for incident in job.incidents] == ["node lost", "store away"]
        assert cluster.nodes[2].wait(30) != 0
    finally:
        for node in cluster.nodes:
            node.kill()
            node.wait()
