"""Partial FC against a plain softmax written from the papers, on 1 to 4 real processes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from app.errors import AppError
from app.head.class_shards import class_range, mark_at_random, sample_classes
from app.head.config import HeadConfig
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import ABSENT, HeadShape, PartialFC, product_dtype
from tests.head.oracle import SEED, Case, Oracle, start
from tests.ranks import run_ranks

MARGINS: list[dict[str, Any]] = [
    {},
    {"margin": ("none", 1.0, 0.0, 0.0)},
    {"margin": ("combined", 1.0, 0.0, 0.4)},
    {"margin": ("combined", 1.2, 0.3, 0.1)},
    {"gradient": "straight-through"},
    {"easy_margin": True},
    {"margin": ("adaface", 1.0, 0.0, 0.4)},
    {"margin": ("magface", 1.0, 0.0, 0.0)},
    {"margin": ("curricular", 1.0, 0.5, 0.0)},
    {"sub_centres": 3},
    {"margin": ("curricular", 1.0, 0.3, 0.0), "sub_centres": 2},
]
CASES = [
    *(Case(**margin, rate=rate, filtering=t, classes=29) for margin in MARGINS for rate in (1, 0.6) for t in (0, 0.2)),
    Case(classes=4),  # with four ranks a class each
    Case(classes=40, rate=0.0, labels=5),  # ranks without an active class
    Case(classes=40, rate=0.1),  # more positives than that
    Case(classes=40, rate=0.4, update="dense"),
    Case(classes=40, optimizer="adamw"),
    Case(classes=40, optimizer="adamw", rate=0.4),
    Case(classes=40, optimizer="adamw", rate=0.4, update="dense"),
    Case(classes=13, scale=200.0),  # needs the running maximum
    Case(classes=13, scale=200.0, filtering=0.2),
    Case(classes=40, rate=0.0, labels=5, sub_centres=2),
    Case(classes=40, optimizer="adamw", rate=0.4, update="dense", sub_centres=3),
    Case(classes=40, optimizer="adamw", rate=0.4, margin=("curricular", 1.0, 0.5, 0.0)),
    Case(classes=29, margin=("combined", 0.9, 0.4, 0.15)),  # of the paper's table 2
    Case(classes=29, margin=("combined", 2.0, 0.5, 0.1)),  # the angle passes pi, and the cosine does not tell
    Case(classes=29, margin=("combined", 3.0, 0.3, 0.0), easy_margin=True),
    Case(classes=4, batch=60, labels=1, rate=1e-9, margin=("combined", 2.0, 0.0, 0.2)),
]
HALF_CHANGES: list[dict[str, Any]] = [
    {},
    {"rate": 0.5},
    {"optimizer": "adamw", "lr": 2e-4},
    {"rate": 0.5, "update": "dense"},
    {"scale": 100.0},
]
STEPS = 3


def make(case: Case, workers: int, **options: Any) -> tuple[PartialFC, CentreOptimizer]:
    """A head that starts with the case's centres, and its optimizer."""
    momentum_dtype = options.pop("momentum_dtype", torch.float32)
    config = replace(case.config(), centre_dtype=options.pop("centre_dtype", "float32"))
    device = options.pop("device", "cpu")
    head = PartialFC(config, HeadShape(case.size, case.classes, workers, SEED, **options), device)
    start(head, case)
    weight_decay = {"weight_decay": 0.01, "update": case.update, "momentum_dtype": momentum_dtype}
    return head, CentreOptimizer(head, case.optimizer, **weight_decay)


def train(
    case: Case, rank: int, world: int, workers: int, **options: Any
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, dict[str, Tensor]]:
    """Loss and gradient of the embeddings of each step, then centres and state of this rank."""
    head, optimizer = make(case, workers, **options)
    results, device = [], head.centres.device
    size = case.batch // workers
    mine = range(rank * workers // world, (rank + 1) * workers // world)
    for step in range(STEPS):
        embeddings, labels = case.inputs(step)
        head.begin_step(step, labels)
        total, gradient = torch.zeros(()), torch.zeros_like(embeddings)
        for number in range(-(-workers // world)):
            rows = slice(mine[number] * size, (mine[number] + 1) * size) if number < len(mine) else None
            part = (embeddings[rows] if rows else torch.ones(size, case.size)).to(device, copy=True)
            own = (labels[rows] if rows else torch.full((size,), ABSENT)).to(device)
            part.requires_grad_()
            loss = head(part, own, len(labels))
            (loss * 4).backward()
            total += loss.detach().cpu()
            assert part.grad is not None
            if rows:
                gradient[rows] = part.grad.cpu() / world / 4  # as DistributedDataParallel's average
            else:
                assert not part.grad.any()
        assert head.finite()
        optimizer.step(case.lr, 1 / 4)
        head.end_step()
        results.append((total, gradient))
    return results, head.centres.cpu(), {key: value.cpu() for key, value in optimizer.state.items()}


def all_cases(rank: int, world: int, workers: int) -> list[Any]:
    return [train(case, rank, world, workers) for case in CASES]


def compare(case: Case, ranks: list[Any], workers: int, tolerance: float) -> None:
    """Every figure against the oracle: in float32 the largest error by the largest value, else norm by norm."""
    order = torch.inf if tolerance < 1e-4 else 2
    tolerance *= max(1.0, case.steepness / 64)  # a logit's rounding error grows with it, and exp hands it on
    oracle = Oracle(case, workers, STEPS)

    def same(name: str, found: Tensor, expected: Tensor) -> None:
        error = float(torch.linalg.vector_norm(found.double() - expected, order))
        error /= max(1e-30, float(torch.linalg.vector_norm(expected, order)))
        assert error <= tolerance, f"{case}: {name} differs by {error:.1e}"

    for step, (loss, gradient) in enumerate(oracle.steps):
        for result, _, _ in ranks:
            same(f"loss {step}", result[step][0], loss)
        same(f"gradient {step}", sum(result[step][1] for result, _, _ in ranks), gradient)
    same("centres", torch.cat([centres for _, centres, _ in ranks]), oracle.centres)
    for key, value in oracle.state.items():
        found = torch.cat([state["momentum" if key == "momentum_buffer" else key] for _, _, state in ranks])
        same(key, found, value)


@pytest.mark.parametrize(
    ("world", "workers"),
    [(1, 1), (1, 3), (2, 3), pytest.param(3, 4, marks=pytest.mark.slow), pytest.param(4, 4, marks=pytest.mark.slow)],
)
def test_losses_gradients_and_three_updates_equal_the_plain_formula(world: int, workers: int) -> None:
    ranks = run_ranks(all_cases, world, workers) if world > 1 else [all_cases(0, 1, workers)]
    for number, case in enumerate(CASES):
        compare(case, [rank[number] for rank in ranks], workers, 1e-5)


@pytest.mark.parametrize("block_bytes", [1, 300 << 10, 1 << 30])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rate": 0.5},
        {"rate": 0.5, "update": "dense"},
        {"filtering": 0.3},
        {"scale": 100.0},
        {"sub_centres": 3, "rate": 0.5},
        {"margin": ("curricular", 1.0, 0.5, 0.0), "filtering": 0.6},
    ],
)
def test_blocks_that_divide_the_classes_or_do_not_change_nothing(block_bytes: int, change: dict[str, Any]) -> None:
    for classes in (1024, 1100):
        case = Case(classes=classes, **change)
        compare(case, [train(case, 0, 1, 3, block_bytes=block_bytes)], 3, 1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("margin", MARGINS)
@pytest.mark.parametrize("change", HALF_CHANGES)
def test_half_precision_products_differ_by_a_hundredth_at_most(
    dtype: torch.dtype, margin: dict[str, Any], change: dict[str, Any]
) -> None:
    case = Case(classes=600, size=512, **margin, **change)
    compare(case, [train(case, 0, 1, 3, matmul_dtype=dtype, block_bytes=1)], 3, 1e-2)  # five blocks, the last smaller


@pytest.mark.parametrize("scale", [30.0, 100.0])
@pytest.mark.parametrize("change", [{}, {"rate": 0.5, "update": "dense"}])
def test_fp16_products_with_filtering(scale: float, change: dict[str, Any]) -> None:
    # A tenth of the cosines counts as 0; now and then rounding moves one across the threshold, which costs per cents.
    case = Case(classes=600, size=16, filtering=0.3, scale=scale, **change)
    compare(case, [train(case, 0, 1, 3, matmul_dtype=torch.float16, block_bytes=1)], 3, 0.1)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_centres_and_momentum_in_bfloat16(optimizer: str, rate: float) -> None:
    case = Case(classes=600, size=512, rate=rate, optimizer=optimizer, lr=0.05 if optimizer == "sgd" else 2e-4)
    head, made = make(case, 3, centre_dtype="bfloat16", momentum_dtype=torch.bfloat16)
    assert head.centres.dtype == torch.bfloat16
    assert {key: value.dtype for key, value in made.state.items()} == (
        {"momentum": torch.bfloat16} if optimizer == "sgd" else {"exp_avg": torch.bfloat16, "exp_avg_sq": torch.float32}
    )
    compare(case, [train(case, 0, 1, 3, centre_dtype="bfloat16", momentum_dtype=torch.bfloat16)], 3, 1e-2)


def test_fp16_products_keep_a_million_small_terms_and_do_not_overflow() -> None:
    case = Case(classes=100_000, size=16, batch=2, margin=("none", 1, 0, 0))
    exact, half = (train(case, 0, 1, 1, matmul_dtype=dtype) for dtype in (torch.float32, torch.float16))
    for (loss, gradient), (other, other_gradient) in zip(exact[0], half[0], strict=True):
        assert float(other) == pytest.approx(float(loss), rel=1e-3)
        assert (other_gradient - gradient).norm() < 1e-2 * gradient.norm()
    assert (half[2]["momentum"] - exact[2]["momentum"]).norm() < 1e-2 * exact[2]["momentum"].norm()


def test_products_follow_the_device_and_the_recipe() -> None:
    assert product_dtype("auto", "bf16", "cpu") == torch.float32
    assert product_dtype("auto", "fp32", "cuda") == torch.float32
    assert product_dtype("auto", "bf16", "npu") == torch.float16
    assert product_dtype("bf16", "fp32", "cpu") == torch.bfloat16


def test_rows_that_were_not_sampled_keep_every_bit() -> None:
    for name in ("sgd", "adamw"):
        case = Case(classes=300, rate=0.3, optimizer=name)
        head, optimizer = make(case, 1)
        for step in range(2):
            before = head.centres.clone(), {key: value.clone() for key, value in optimizer.state.items()}
            embeddings, labels = case.inputs(step)
            head.begin_step(step, labels)
            head(embeddings, labels, len(labels)).backward()
            optimizer.step(0.1)
            assert head.active.rows is not None
            idle = torch.ones(300, dtype=torch.bool)
            idle[head.active.rows] = False
            assert torch.equal(head.centres[idle], before[0][idle])
            assert not torch.equal(head.centres[~idle], before[0][~idle])
            for key, value in optimizer.state.items():
                assert torch.equal(value[idle], before[1][key][idle])


def test_centres_of_length_zero_and_a_single_class_are_finite() -> None:
    for classes in (1, 5):
        case = Case(classes=classes)
        head, optimizer = make(case, 1)
        head.centres[-1] = 0
        embeddings, labels = case.inputs(0)
        head.begin_step(0)
        loss = head(embeddings, labels, len(labels))
        loss.backward()
        optimizer.step(0.1)
        assert torch.isfinite(loss)
        assert torch.isfinite(head.centres).all()


def strange_input(rank: int, world: int) -> list[str]:
    """Messages of what each bad input raises, on every rank."""
    messages = []
    for label in (13, -2, 1 << 40):
        head, _ = make(Case(), world)
        embeddings, labels = Case().inputs(0)
        if rank == world - 1:
            labels[4] = label
        head.begin_step(0)
        with pytest.raises(AppError) as caught:
            head(embeddings, labels, len(labels))
        messages.append(str(caught.value))
    with pytest.raises(AppError) as caught:
        PartialFC(HeadConfig(margin="none"), HeadShape(8, world - 1))
    messages.append(str(caught.value))
    return messages


def on_two_ranks(rank: int, world: int) -> tuple[list[str], tuple[float, float], Tensor]:
    return strange_input(rank, world), adaface_statistics(rank, world), initial_centres(rank, world)


@pytest.fixture(scope="module")
def two_ranks() -> list[tuple[list[str], tuple[float, float], Tensor]]:
    return run_ranks(on_two_ranks, 2)  # starting processes is what takes time


def test_bad_labels_and_more_ranks_than_classes_are_errors_on_every_rank(two_ranks: list[Any]) -> None:
    first, second = (found[0] for found in two_ranks)
    assert first == second
    assert first[0].startswith("label 13 of sample 16 of the micro-batch is outside the classes 0..12")
    assert first[1].startswith("label -2 of sample 16")
    assert first[2].startswith(f"label {1 << 40} of sample 16")
    assert first[3] == "2 processes cannot share 1 classes: start at most 1"


def test_a_label_that_was_not_announced_is_an_error() -> None:
    head, _ = make(Case(classes=100, rate=0.1), 1)
    head.begin_step(0, torch.tensor([3]))
    assert head.active.rows is not None
    missing = min(set(range(100)) - set(head.active.rows.tolist()))
    with pytest.raises(AppError, match=rf"label {missing} of sample 0"):
        head(torch.ones(1, 8), torch.tensor([missing]), 1)
    with pytest.raises(AppError, match="labels of the whole global batch"):
        head.begin_step(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample_rate": -0.1}, r"head.sample_rate must be at least 0 and at most 1; got -0.1"),
        ({"sample_rate": float("nan")}, r"head.sample_rate must be finite; got nan"),
        ({"interclass_filtering": -1.0}, r"head.interclass_filtering must be at least 0 and at most 1"),
        ({"scale": 0.0}, r"head.scale must be above 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(AppError, match=message):
        PartialFC(HeadConfig(**change), HeadShape(8, 10))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(AppError, match=r"num_classes must be above 0, got 0"):
        HeadShape(8, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_embeddings_that_are_not_finite_are_told_and_never_a_loss(value: float, dtype: torch.dtype) -> None:
    head, _ = make(Case(), 1, matmul_dtype=dtype)
    embeddings, labels = Case().inputs(0)
    embeddings[2, 3] = value  # the length of what is 1e20 long is none in float32
    head.begin_step(0)
    loss = head(embeddings, labels, len(labels))
    loss.backward()
    assert torch.isnan(loss)
    assert not head.finite() or value == 1e20  # its gradient is 0


def adaface_statistics(rank: int, world: int) -> tuple[float, float]:
    case, workers = Case(margin=("adaface", 1, 0, 0.4)), 4
    embeddings, labels = case.inputs(0)
    head, _ = make(case, workers)
    head.begin_step(0)
    for worker in range(rank * workers // world, (rank + 1) * workers // world):
        rows = slice(worker * 3, (worker + 1) * 3)
        head(embeddings[rows], labels[rows], len(labels))
    head.end_step()
    return float(head.margin.mean), float(head.margin.std)  # type: ignore[arg-type]


def test_adaface_follows_the_norms_of_the_whole_batch_on_any_number_of_ranks(two_ranks: list[Any]) -> None:
    norms = Case().inputs(0)[0].norm(dim=1).clamp(1e-3, 100)
    expected = (20 + 0.01 * (float(norms.mean()) - 20), 100 + 0.01 * (float(norms.std()) - 100))
    for found in [adaface_statistics(0, 1), *(found[1] for found in two_ranks)]:
        assert found == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 40), st.integers(1, 9))
def test_shards_cover_all_classes_once(classes: int, shards: int) -> None:
    ranges = [class_range(classes, shards, shard) for shard in range(shards)]
    assert [c for start, stop in ranges for c in range(start, stop)] == list(range(classes))
    sizes = [stop - start for start, stop in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@given(st.integers(1, 200), st.floats(0, 1), st.integers(1, 5), st.integers(1, 5), st.data())
def test_sampling_keeps_positives_fills_up_and_does_not_depend_on_the_processes(
    classes: int, rate: float, shards: int, ranks: int, data: st.DataObject
) -> None:
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), max_size=20)), dtype=torch.int64)
    whole = sample_classes(labels, classes, rate, shards, 1, 5, 0, classes)
    assert set(labels.tolist()) <= set(whole.tolist())
    assert whole.tolist() == sorted(set(whole.tolist()))
    for shard in range(shards):
        start, stop = class_range(classes, shards, shard)
        positives = len({label for label in labels.tolist() if start <= label < stop})
        assert int(((whole >= start) & (whole < stop)).sum()) == max(positives, int(rate * (stop - start)))
    parts = [sample_classes(labels, classes, rate, shards, 1, 5, *class_range(classes, ranks, r)) for r in range(ranks)]
    assert torch.cat(parts).tolist() == whole.tolist()


def test_sampling_follows_seed_and_step() -> None:
    labels = torch.tensor([0, 7, 7, 99, 41])
    draws = {tuple(sample_classes(labels, 100, 0.2, 4, *key, 0, 100).tolist()) for key in ((1, 5), (1, 6), (2, 5))}
    assert len(draws) == 3


@pytest.mark.parametrize(("size", "marked", "count"), [(12, 2, 3), (12, 2, 8), (12, 9, 1), (3, 0, 2)])
def test_every_choice_of_classes_is_as_likely(size: int, marked: int, count: int) -> None:
    # 4000 draws; each place's share of them is within five standard deviations.
    draws, generator = 4000, np.random.default_rng(5)
    hits = np.zeros(size)
    for _ in range(draws):
        places = np.arange(size) < marked
        mark_at_random(places, count, generator)
        assert places[:marked].all()
        assert places.sum() == marked + count
        hits += places
    share = count / (size - marked)
    spread = 5 * (draws * share * (1 - share)) ** 0.5
    assert np.abs(hits[marked:] - draws * share).max() < spread


def initial_centres(rank: int, world: int) -> Tensor:  # noqa: ARG001
    return PartialFC(HeadConfig(margin="none"), HeadShape(4, 9000)).centres


def test_initial_centres_do_not_depend_on_the_number_of_ranks(two_ranks: list[Any]) -> None:
    whole = initial_centres(0, 1)
    assert torch.equal(torch.cat([found[2] for found in two_ranks]), whole)
    assert abs(float(whole.std()) - 0.01) < 1e-3
    assert not torch.equal(whole[:4096], whole[4096:8192])
