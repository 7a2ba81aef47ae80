"""AdaFace and MagFace with other parameters than the default, against their papers' formulas written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from app.head.config import HeadConfig
from app.head.margins import AdaFace, MarginError, make_margin
from app.head.partial_fc import HeadShape, PartialFC
from tests.ranks import run_ranks

THETA = np.linspace(0.3, 1.8, 16)
NORMS = np.linspace(5.0, 60.0, 16)


def given(values: np.ndarray) -> torch.Tensor:
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


def test_a_batch_of_one_sample_leaves_adafaces_deviation_alone() -> None:
    margin = make_margin(HeadConfig(margin="adaface"))
    assert isinstance(margin, AdaFace)
    margin.observe(torch.tensor([30.0]))
    assert float(margin.mean) == pytest.approx(20.1)
    assert float(margin.std) == 100.0


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


@pytest.mark.parametrize(("m2", "m3"), [(0.5, 0.0), (0.0, 0.35)])
def test_elasticface_is_the_papers_formula(m2: float, m3: float) -> None:
    """cos(theta + E(m, sigma)), or cos(theta) - E(m, sigma), E normal (arXiv:2109.09416, eq. 4 and 5)."""
    margin = make_margin(HeadConfig(margin="elastic", m2=m2, m3=m3, elastic_std=0.1))
    draws = margin.draw(len(THETA))
    assert draws is not None
    margin.take_draws(draws)
    drawn = (m2 or m3) + 0.1 * draws.numpy()
    expected = np.cos(THETA + drawn) if m2 else np.cos(THETA) - drawn
    np.testing.assert_allclose(margin(given(np.cos(THETA)), given(NORMS)).numpy(), expected, atol=2e-6)
    many = margin.draw(100_000)
    assert many is not None
    assert abs(float(many.mean())) < 0.02
    assert float(many.std()) == pytest.approx(1, abs=0.02)


def test_plain_softmax_leaves_the_cosine() -> None:
    """NormFace (arXiv:1704.06369): features and weights are normalised, no margin."""
    assert torch.equal(make_margin(HeadConfig(margin="none"))(given(THETA), given(NORMS)), given(THETA))


def elastic_loss(rank: int, world: int, std: float) -> list[float]:
    """Losses of two steps of two logical workers, shared out over the ranks, each seeded as the trainer does."""
    head = PartialFC(
        HeadConfig(margin="elastic", scale=16.0, elastic_std=std), HeadShape(8, 11, logical_shards=2, seed=3)
    )
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(8, 8, generator=generator)
    labels = torch.randint(0, 11, (8,), generator=generator)
    losses = []
    for step in range(2):
        head.begin_step(step, labels)
        total = 0.0
        for worker in range(2) if world == 1 else [rank]:
            torch.manual_seed(10 * step + worker)
            part = slice(4 * worker, 4 * worker + 4)
            total += float(head(embeddings[part].clone(), labels[part], 8).detach())
        losses.append(total)
    return losses


def test_elastic_margins_do_not_depend_on_the_number_of_processes() -> None:
    alone = elastic_loss(0, 1, 0.2)
    for found in run_ranks(elastic_loss, 2, 0.2):
        assert found == pytest.approx(alone, rel=1e-5)
    assert elastic_loss(0, 1, 0.0) != pytest.approx(alone, rel=1e-3)
