"""The result of training does not depend on how many processes there are, or on stops between."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app.training.plan import ElasticPlan, PlanError
from tests.jobs import losses, train, weights, write_faces

WORKERS = ("--train.logical-workers", "4", "--train.epochs", "2")


@given(st.integers(1, 64), st.data())
def test_shares_cover_all_logical_workers_once_and_evenly(workers: int, data: st.DataObject) -> None:
    world = data.draw(st.integers(1, workers))
    plan = ElasticPlan(workers, world)
    shares = [plan.share(rank) for rank in range(world)]
    assert [w for share in shares for w in share] == list(range(workers))
    assert {len(share) for share in shares} <= {plan.rounds, plan.rounds - 1}


def test_more_processes_than_logical_workers_are_refused() -> None:
    with pytest.raises(PlanError, match=r"train\.logical_workers"):
        ElasticPlan(2, 3)


@pytest.fixture(scope="module")
def undisturbed(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = str(tmp_path_factory.mktemp("undisturbed"))
    train(1, data, output, *WORKERS)
    return output


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3, 4])
def test_the_number_of_processes_changes_rounding_only(
    data: str, undisturbed: str, tmp_path: Path, processes: int
) -> None:
    train(processes, data, str(tmp_path), *WORKERS)
    expected, found = losses(undisturbed), losses(str(tmp_path))
    assert len(expected) == 10
    # Sums in another order differ in the last bit, and training at this rate amplifies that about tenfold a step.
    first = range(1, 6)
    assert [found[step] for step in first] == pytest.approx([expected[step] for step in first], rel=1e-4)
    assert found == pytest.approx(expected, rel=5e-2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "stop", "options"),  # after a first step DistributedDataParallel would lay out its buckets anew
    [
        (1, 4, ()),
        (3, 1, ()),
        (3, 4, ("--train.gradient-compression", "bf16", "--head.sample-rate", "0.4")),
        (4, 1, ("--optim.name", "adamw", "--optim.lr", "0.001", "--model.gradient-checkpointing", "true")),
    ],
)
def test_a_stop_and_a_start_on_the_same_processes_change_no_bit(
    data: str, tmp_path: Path, processes: int, stop: int, options: tuple[str, ...]
) -> None:
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    train(processes, data, whole, *WORKERS, *options)
    train(processes, data, parts, *WORKERS, *options, "--train.last-step", str(stop))
    train(processes, data, parts, *WORKERS, *options)
    assert losses(parts) == losses(whole)
    for name, value in weights(whole).items():
        assert torch.equal(weights(parts)[name], value), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [("--head.sample-rate", "0.4", "--optim.lr", "0.01"), ("--optim.name", "adamw", "--optim.lr", "0.001")],
)  # rates at which training does not amplify rounding
def test_a_run_that_changes_its_world_in_the_middle_goes_on_as_if_nothing_happened(
    data: str, tmp_path: Path, options: tuple[str, ...]
) -> None:
    whole, changed = str(tmp_path / "whole"), str(tmp_path / "changed")
    train(2, data, whole, *WORKERS, *options)
    train(3, data, changed, *WORKERS, *options, "--train.last-step", "5")
    train(1, data, changed, *WORKERS, *options)
    assert losses(changed) == pytest.approx(losses(whole), rel=5e-3)


@pytest.mark.slow
def test_another_dataset_or_batch_size_is_refused_on_resume(data: str, undisturbed: str, tmp_path: Path) -> None:
    done = train(1, data, undisturbed, *WORKERS, "--train.batch-size", "3", check=False)
    assert done.returncode == 65
    assert "train.batch_size 6, this one has 3" in done.stderr
    done = train(1, data, undisturbed, *WORKERS, "--model.backbone", "mbf", check=False)
    assert done.returncode == 65
    assert "holds a run with model.backbone 'r10_small', this one has 'mbf'" in done.stderr
    other = str(tmp_path / "other")
    write_faces(other, per_class=13)
    done = train(1, other, undisturbed, *WORKERS, check=False)
    assert done.returncode == 65
    assert "data_tag" in done.stderr
