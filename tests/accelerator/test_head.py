"""Partial FC on an accelerator against the plain formula in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from app.device import detect_device
from tests.head.oracle import Case
from tests.head.test_partial_fc import CASES, HALF_CHANGES, MARGINS, compare, train

DEVICE = detect_device()
pytestmark = pytest.mark.skipif(DEVICE.kind == "cpu", reason="needs an accelerator")


def test_float32_losses_gradients_and_updates_equal_the_plain_formula() -> None:
    for case in CASES:
        compare(case, [train(case, 0, 1, 3, device=DEVICE.torch_device)], 3, 5e-5)


@pytest.mark.parametrize("change", [{}, {"rate": 0.5}, {"filtering": 0.3}, {"scale": 100.0}, {"sub_centres": 3}])
def test_blocks_that_do_not_divide_the_classes_change_nothing(change: dict[str, Any]) -> None:
    case = Case(classes=1100, **change)
    compare(case, [train(case, 0, 1, 3, block_bytes=300 << 10, device=DEVICE.torch_device)], 3, 5e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_products_differ_by_a_hundredth_at_most(dtype: torch.dtype) -> None:
    for margin in MARGINS:
        for change in HALF_CHANGES:
            case = Case(classes=600, size=512, **margin, **change)
            compare(case, [train(case, 0, 1, 3, matmul_dtype=dtype, device=DEVICE.torch_device)], 3, 1e-2)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_centres_and_momentum_in_bfloat16(optimizer: str) -> None:
    case = Case(classes=600, size=512, rate=0.5, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 2e-4)
    stored: dict[str, Any] = {"centre_dtype": "bfloat16", "momentum_dtype": torch.bfloat16}
    compare(case, [train(case, 0, 1, 3, device=DEVICE.torch_device, **stored)], 3, 1e-2)


def test_fp16_products_keep_a_million_small_terms_and_do_not_overflow() -> None:
    case = Case(classes=1_000_000, size=16, batch=2, margin=("none", 1, 0, 0))
    exact, half = (
        train(case, 0, 1, 1, matmul_dtype=dtype, device=DEVICE.torch_device) for dtype in (torch.float32, torch.float16)
    )
    for (loss, gradient), (other, other_gradient) in zip(exact[0], half[0], strict=True):
        assert float(other) == pytest.approx(float(loss), rel=1e-3)
        assert (other_gradient - gradient).norm() < 1e-2 * gradient.norm()
    assert all(torch.isfinite(value).all() for value in (half[1], *half[2].values()))
