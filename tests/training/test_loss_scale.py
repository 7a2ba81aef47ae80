"""fp16 that recovers goes on, fp16 that cannot ends with what to change."""

from __future__ import annotations

import pytest

from app.training.loss_scale import LossScale, NotRecoveringError


def test_overflow_is_counted_and_the_scale_falls_to_its_floor_and_then_the_run_ends() -> None:
    scale = LossScale(enabled=True)
    for _ in range(16):
        scale.update(finite=False)
    assert scale.scale == 1.0
    assert scale.skipped == 16
    for _ in range(19):
        scale.update(finite=False)
    scale.update(finite=True)  # one good step in time
    for _ in range(19):
        scale.update(finite=False)
    with pytest.raises(NotRecoveringError, match="bf16"):
        scale.update(finite=False)


def test_without_scaling_nothing_is_counted() -> None:
    scale = LossScale(enabled=False)
    for _ in range(100):
        scale.update(finite=False)
    assert scale.skipped == 0


def test_a_run_that_changes_to_fp16_begins_with_its_first_scale_and_one_at_the_floor_stays_there() -> None:
    scale = LossScale(enabled=True)
    scale.load_state_dict(LossScale(enabled=False).state_dict())
    assert scale.scale == 65536
    scale.load_state_dict(LossScale(enabled=True, initial=1.0).state_dict())
    assert scale.scale == 1
