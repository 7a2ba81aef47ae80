"""Partial FC against a plain softmax written from the papers, on 1 to 4 real processes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from app.head.class_shards import class_range, sample_classes
from app.head.margins import build_margin
from app.head.partial_fc import ABSENT, PartialFC, PartialFCConfig
from tests.ranks import run_ranks

B, D, SEED = 4, 8, 3  # a logical worker's micro-batch; 4 logical workers in all
WORKERS = 4

CASES: list[dict[str, Any]] = [
    {"margin": ("combined", 1.0, 0.5, 0.0), "classes": 13},
    {"margin": ("combined", 1.0, 0.0, 0.4), "classes": 13},
    {"margin": ("combined", 1.2, 0.3, 0.1), "classes": 14},
    {"margin": ("combined", 1.0, 0.5, 0.0), "classes": 15, "gradient": "straight-through"},
    {"margin": ("combined", 1.0, 0.5, 0.0), "classes": 13, "easy_margin": True},
    {"margin": ("combined", 1.0, 0.5, 0.0), "classes": 3},  # fewer classes than ranks
    {"margin": ("combined", 1.0, 0.0, 0.4), "classes": 17, "interclass_filtering": 0.2},
    {"margin": ("combined", 1.0, 0.0, 0.4), "classes": 40, "sample_rate": 0.3},
    {"margin": ("combined", 1.0, 0.0, 0.4), "classes": 20, "sample_rate": 0.1},  # more positives than that
    {"margin": ("adaface", 1.0, 0.0, 0.4), "classes": 13},
    {"margin": ("magface", 1.0, 0.0, 0.0), "classes": 13},
]


def inputs(classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes)
    embeddings = torch.randn(WORKERS * B, D, generator=generator) * 7
    return embeddings, torch.randint(0, classes, (WORKERS * B,), generator=generator)


def target_logit(case: dict[str, Any], cosine: Tensor, norm: Tensor) -> Tensor:
    """The margin in terms of the angle, from the papers; theta by arccos."""
    name, m1, m2, m3 = case["margin"]
    theta = torch.acos(cosine)
    if name == "adaface":
        quality = ((norm.detach().clamp(1e-3, 100) - 20) / (100 + 1e-3) * 0.333).clamp(-1, 1)
        return torch.cos((theta - 0.4 * quality).clamp(1e-3, math.pi - 1e-3)) - 0.4 - 0.4 * quality
    if name == "magface":
        m2 = 0.45 + (0.8 - 0.45) * (norm.clamp(10, 110) - 10) / 100
    theta = m1 * theta
    moved = torch.cos(theta + m2) - m3
    if case.get("gradient") == "straight-through":
        return cosine + (moved - cosine).detach()
    if case.get("easy_margin"):
        return torch.where(torch.cos(theta) > 0, moved, torch.cos(theta) - m3)
    m2 = torch.as_tensor(m2)
    return torch.where(theta + m2 < math.pi, moved, torch.cos(theta) - m2 * torch.sin(math.pi - m2) - m3)


def oracle(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients (embeddings, centres) of the whole batch in one process, with the full logits matrix."""
    classes, rate = case["classes"], case.get("sample_rate", 1.0)
    embeddings, labels = inputs(classes)
    embeddings = embeddings.double().requires_grad_()
    config = PartialFCConfig(D, classes, seed=SEED)
    centres = PartialFC(config, build_margin("none", 1, 0, 0)).centres.detach().double().requires_grad_()
    chosen = torch.arange(classes)
    if rate < 1:
        chosen = sample_classes(labels, classes, rate, WORKERS, SEED, 0, 0, classes)
    norms = embeddings.norm(dim=1)
    cosine = (embeddings / norms[:, None]) @ torch.nn.functional.normalize(centres).T
    own = torch.nn.functional.one_hot(labels, classes).bool()
    if threshold := case.get("interclass_filtering"):
        cosine = torch.where((cosine > threshold) & ~own, 0, cosine)
    target = target_logit(case, cosine[own], norms)
    logits = torch.where(own, target[:, None], cosine)[:, chosen] * 64
    place = torch.searchsorted(chosen, labels)
    loss = torch.nn.functional.cross_entropy(logits, place)
    if case["margin"][0] == "magface":
        a = norms.clamp(10, 110)
        loss = loss + 35 * (a / 110**2 + 1 / a).mean()
    loss.backward()
    assert embeddings.grad is not None
    assert centres.grad is not None
    return loss.detach().float(), embeddings.grad.float(), centres.grad.float()


def one_rank(rank: int, world: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same step spread over ranks, with uneven shares of the four logical workers where the world is 3."""
    results = []
    for case in CASES:
        classes = case["classes"]
        embeddings, labels = inputs(classes)
        margin = build_margin(
            *case["margin"], easy_margin=case.get("easy_margin", False), gradient=case.get("gradient", "exact")
        )
        config = PartialFCConfig(
            D,
            classes,
            sample_rate=case.get("sample_rate", 1.0),
            interclass_filtering=case.get("interclass_filtering", 0.0),
            logical_shards=WORKERS,
            seed=SEED,
        )
        head = PartialFC(config, margin)
        head.begin_step(0, labels)
        mine = range(rank * WORKERS // world, (rank + 1) * WORKERS // world)
        rounds = -(-WORKERS // world)
        total, gradient = torch.zeros(()), torch.zeros_like(embeddings)
        for number in range(rounds):
            rows = slice(mine[number] * B, (mine[number] + 1) * B) if number < len(mine) else None
            part = embeddings[rows].clone() if rows else torch.ones(B, D)
            own = labels[rows] if rows else torch.full((B,), ABSENT)
            part.requires_grad_()
            loss = head(part, own, len(labels))
            loss.backward()
            total += loss.detach()
            if rows:
                assert part.grad is not None
                gradient[rows] = part.grad / world  # as DistributedDataParallel's average
            else:
                assert part.grad is not None
                assert not part.grad.any()
        centres = torch.zeros_like(head.centres)
        if head.active.grad is not None:
            centres[slice(None) if head.active_rows is None else head.active_rows] = head.active.grad
        results.append((total, gradient, centres))
    return results


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_loss_and_gradients_equal_the_plain_formula(world: int) -> None:
    ranks = run_ranks(one_rank, world)
    for number, case in enumerate(CASES):
        loss, to_embeddings, to_centres = oracle(case)
        spread = [rank[number] for rank in ranks]
        for result in spread:
            torch.testing.assert_close(result[0], loss, rtol=1e-5, atol=1e-5, msg=lambda m, c=case: f"{c}: {m}")
        torch.testing.assert_close(
            sum(result[1] for result in spread), to_embeddings, rtol=1e-5, atol=1e-5, msg=lambda m, c=case: f"{c}: {m}"
        )
        # Centres start at length 0.03, which scales their gradients up: the tolerance follows the largest.
        scale = float(to_centres.abs().max())
        torch.testing.assert_close(
            torch.cat([result[2] for result in spread]) / scale,
            to_centres / scale,
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, c=case: f"{c}: {m}",
        )


def adaface_statistics(rank: int, world: int) -> tuple[float, float]:
    embeddings, labels = inputs(13)
    head = PartialFC(PartialFCConfig(D, 13, logical_shards=WORKERS), build_margin("adaface", 1, 0, 0.4))
    head.begin_step(0)
    for worker in range(rank * WORKERS // world, (rank + 1) * WORKERS // world):
        rows = slice(worker * B, (worker + 1) * B)
        head(embeddings[rows], labels[rows], len(labels))
    head.end_step()
    return float(head.margin.mean), float(head.margin.std)  # type: ignore[arg-type]


def test_adaface_follows_the_norms_of_the_whole_batch_on_any_number_of_ranks() -> None:
    norms = inputs(13)[0].norm(dim=1).clamp(1e-3, 100)
    expected = (20 + 0.01 * (float(norms.mean()) - 20), 100 + 0.01 * (float(norms.std()) - 100))
    for world in (1, 2):
        for found in run_ranks(adaface_statistics, world):
            assert found == pytest.approx(expected, rel=1e-6)


def test_small_blocks_change_nothing() -> None:
    embeddings, labels = inputs(5000)
    results = []
    for block_bytes in (1, 1 << 30):
        head = PartialFC(PartialFCConfig(D, 5000, block_bytes=block_bytes), build_margin("combined", 1, 0.5, 0))
        part = embeddings.clone().requires_grad_()
        head.begin_step(0)
        loss = head(part, labels, len(labels))
        loss.backward()
        results.append((loss.detach(), part.grad, head.active.grad))
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("classes", [1, 5, 12, 13])
@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_cover_all_classes_once(classes: int, shards: int) -> None:
    ranges = [class_range(classes, shards, shard) for shard in range(shards)]
    assert [c for start, stop in ranges for c in range(start, stop)] == list(range(classes))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_sampling_keeps_positives_fills_up_and_does_not_depend_on_the_processes() -> None:
    labels = torch.tensor([0, 7, 7, 99, 41])
    whole = sample_classes(labels, 100, 0.2, 4, 1, 5, 0, 100)
    assert set(labels.tolist()) <= set(whole.tolist())
    assert len(whole) == 4 * 5
    parts = [sample_classes(labels, 100, 0.2, 4, 1, 5, *class_range(100, 3, rank)) for rank in range(3)]
    assert torch.cat(parts).tolist() == whole.tolist()
    assert sample_classes(labels, 100, 0.2, 4, 1, 6, 0, 100).tolist() != whole.tolist()
    assert sample_classes(labels, 100, 0.01, 1, 1, 5, 0, 100).tolist() == [0, 7, 41, 99]


def test_initial_centres_do_not_depend_on_the_number_of_ranks() -> None:
    whole = PartialFC(PartialFCConfig(4, 9000), build_margin("none", 1, 0, 0)).centres.detach()
    parts = run_ranks(_centres, 3)
    assert torch.equal(torch.cat(parts), whole)
    assert abs(float(whole.std()) - 0.01) < 1e-3


def _centres(rank: int, world: int) -> Tensor:  # noqa: ARG001
    return PartialFC(PartialFCConfig(4, 9000), build_margin("none", 1, 0, 0)).centres.detach()
