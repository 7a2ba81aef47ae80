"""AdaFace and MagFace with other parameters than the default, against their papers' formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.head.config import HeadConfig
from app.head.margins import AdaFace, MarginError, make_margin

THETA = np.linspace(0.3, 1.8, 16)
NORMS = np.linspace(5.0, 60.0, 16)


def given(values: np.ndarray) -> torch.Tensor:  # type: ignore[type-arg]
    return torch.from_numpy(values).float()


def test_adaface_is_the_papers_formula() -> None:
    """g_angle = -m z, g_add = m z + m with z = clip((|x| - mu) / (sigma / h), -1, 1) (arXiv:2204.00964, eq. 14-16)."""
    margin = make_margin(HeadConfig(margin="adaface", m3=0.3, adaface_h=0.5, adaface_t_alpha=0.2))
    assert isinstance(margin, AdaFace)
    mean, std = 20.0, 100.0
    z = np.clip((NORMS - mean) / (std + 1e-3) * 0.5, -1, 1)
    expected = np.cos(THETA - 0.3 * z) - (0.3 + 0.3 * z)
    found = margin(given(np.cos(THETA)), given(NORMS))
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)
    margin.observe(given(NORMS))
    assert float(margin.mean) == pytest.approx(0.8 * mean + 0.2 * NORMS.mean())
    assert float(margin.std) == pytest.approx(0.8 * std + 0.2 * NORMS.std(ddof=1))


def test_magface_is_the_papers_formula() -> None:
    """m(a) is linear between the norms' bounds, g(a) = a / u_a^2 + 1 / a (arXiv:2103.06627, section 3.2 and eq. 9)."""
    margin = make_margin(
        HeadConfig(
            margin="magface",
            magface_lower=8.0,
            magface_upper=50.0,
            magface_lower_margin=0.2,
            magface_upper_margin=0.6,
            magface_weight=20.0,
        )
    )
    a = np.clip(NORMS, 8.0, 50.0)
    angle = 0.2 + (0.6 - 0.2) * (a - 8.0) / (50.0 - 8.0)
    found = margin(given(np.cos(THETA)), given(NORMS))
    np.testing.assert_allclose(found.numpy(), np.cos(THETA + angle), atol=2e-6)
    term = margin.regularizer(given(NORMS))
    assert term is not None
    np.testing.assert_allclose(term.numpy(), 20.0 * (a / 50.0**2 + 1 / a), rtol=1e-5)
    with pytest.raises(MarginError, match="magface_lower must be below"):
        make_margin(HeadConfig(margin="magface", magface_lower=200.0))
