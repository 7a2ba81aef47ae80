"""The blockwise softmax in float16 against its formula in float64, over sizes, scales and inputs drawn at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from app.head.config import HeadConfig
from app.head.half_softmax import HalfUpdate, half_log_sum_exp
from app.head.optimizer import CentreOptimizer
from app.head.partial_fc import HeadShape, PartialFC
from app.head.softmax import ActiveCentres, Block, Samples, SoftmaxSettings

ROUNDING = 2.0**-11  # of float16


@dataclass(frozen=True)
class Drawn:
    """Inputs of one softmax; ``rows``: of the centres that are active, or None."""

    unit: Tensor
    centres: Tensor
    rows: Tensor | None
    own: Tensor
    scale: float
    filtering: float
    block: int

    @property
    def settings(self) -> SoftmaxSettings:
        return SoftmaxSettings(self.scale, self.filtering, torch.float16)

    @property
    def active(self) -> ActiveCentres:
        return ActiveCentres(self.centres, self.rows)

    @property
    def chosen(self) -> Tensor:
        """float64 [K, D]."""
        return (self.centres if self.rows is None else self.centres[self.rows]).double()

    @property
    def tolerance(self) -> float:
        """Largest relative error of an exponential: its logit is rounded as two factors and as their product.

        What is summed of them is rounded a few times more.
        """
        return math.expm1(3 * self.scale * ROUNDING) + 8 * ROUNDING


@st.composite
def inputs(draw: st.DrawFn) -> Drawn:
    samples, classes, width = draw(st.integers(1, 9)), draw(st.integers(0, 30)), draw(st.integers(1, 24))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    length = 10 ** torch.empty(classes, 1).uniform_(-6, 4, generator=generator)
    centres = torch.nn.functional.normalize(torch.randn(classes, width, generator=generator)) * length
    unit = torch.nn.functional.normalize(torch.randn(samples, width, generator=generator))
    side = draw(st.sampled_from([0, 1, -1])) if classes else 0
    if side:  # late in training samples lie at centres; opposite to one, no logit need be above -88, and exp(88) is inf
        near = torch.randint(0, classes, (samples,), generator=generator)
        unit = torch.nn.functional.normalize(side * centres[near] / length[near] + 0.01 * unit)
    rows = (torch.rand(classes, generator=generator) < 0.5).nonzero()[:, 0] if draw(st.booleans()) else None
    active = classes if rows is None else len(rows)
    own = torch.randint(-1, active, (samples,), generator=generator) if active else torch.full((samples,), -1)
    if active and draw(st.booleans()):
        own[:] = own[0]
    filtering = draw(st.sampled_from([0.0, 0.0, 0.05, 0.4]))
    return Drawn(unit, centres, rows, own, draw(st.floats(1, 200)), filtering, draw(st.integers(1, 40)))


def logits_of(case: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    """float64 [N, K] as they count, -inf for the own class; unit centres [K, D]; and what filtering struck, bool.

    Cosines as near the threshold as float16 tells apart are struck or not as float16 finds them.
    """
    directions = case.chosen / case.chosen.norm(dim=1, keepdim=True).clamp_min(1e-12)
    logits = case.scale * case.unit.double() @ directions.T
    columns = torch.arange(logits.shape[1])
    own = case.own[:, None] == columns
    struck = torch.zeros_like(own)
    if case.filtering > 0:
        rounded = (case.unit * case.scale).half() @ directions.half().T
        struck = (rounded > case.filtering * case.scale) & ~own
    logits = torch.where(struck, 0, logits).masked_fill(own, -torch.inf)
    return logits, directions, struck


@given(inputs())
@settings(max_examples=150, deadline=None)
def test_the_log_sum_exp_and_its_gradient_are_those_of_the_formula(case: Drawn) -> None:
    logits, directions, struck = logits_of(case)
    active = case.active
    found, towards = half_log_sum_exp(case.unit, active, case.own, case.settings, active.blocks(case.block))
    expected = logits.logsumexp(1) if logits.shape[1] else torch.full((len(logits),), -torch.inf)
    assert torch.equal(torch.isinf(found), torch.isinf(expected))
    some = torch.isfinite(expected)
    assert (found[some] - expected[some]).abs().le(case.tolerance).all()
    probability = torch.where(some[:, None], torch.exp(logits - expected[:, None]), 0).masked_fill(struck, 0)
    gradient = case.scale * probability @ directions
    error = torch.linalg.vector_norm(towards - gradient, dim=1)
    assert (error <= case.scale * probability.sum(1) * case.tolerance + 1e-20).all()


@given(inputs(), st.sampled_from([1.0, 1 / 65536]), st.data())
@settings(max_examples=150, deadline=None)
def test_the_gradient_of_the_centres_is_that_of_the_formula(case: Drawn, scale: float, data: st.DataObject) -> None:
    logits, directions, struck = logits_of(case)
    lse = logits.logsumexp(1) if logits.shape[1] else torch.full((len(logits),), -torch.inf).double()
    lse = torch.where(torch.isinf(lse), 0, lse)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    to_others = torch.rand(len(lse), generator=generator).double() / 64
    to_others *= torch.rand(len(lse), generator=generator) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))
    to_target = -to_others * case.scale * torch.rand(len(lse), generator=generator)
    offset = torch.log(to_others * (scale * case.scale)) - lse
    samples = Samples(case.unit, offset.float(), case.own, (to_target * scale).float())
    # The formula: P [N, K], then the part along each centre taken away.
    weights = case.scale * to_others[:, None] * torch.exp(logits - lse[:, None])
    weights = torch.where(case.own[:, None] == torch.arange(logits.shape[1]), to_target[:, None], weights)
    weights = weights.masked_fill(struck, 0) * scale
    sums = weights.T @ case.unit.double()
    inverse = 1 / case.chosen.norm(dim=1).clamp_min(1e-12)
    expected = (sums - (sums * directions).sum(1, keepdim=True) * directions) * inverse[:, None]

    active = case.active
    blocks = active.blocks(case.block)
    update = HalfUpdate(samples, active, case.settings, blocks)
    for block in blocks:
        weight = block.read(case.centres)
        values = torch.full_like(weight, torch.nan)  # whatever is there, 0 times it is 0
        update.gradient(block, weight).add_to(values, 0.0, weight, 0.0)
        part = slice(block.start, block.stop)
        error = torch.linalg.vector_norm(values - expected[part], dim=1)
        size = weights[:, part].abs().sum(0) * inverse[part]
        assert (error <= size * case.tolerance + 1e-25 * inverse[part]).all()
        # Part of a block, as where classes were sampled and all centres are updated: the same, and in no known place.
        some = Block(block.start, block.start + data.draw(st.integers(1, block.stop - block.start)), slice(0))
        count = some.stop - some.start
        fewer = torch.empty_like(values[:count])
        update.gradient(some, weight[:count]).add_to(fewer, 0.0, weight[:count], 0.0)
        assert (
            (fewer - values[:count]).abs() <= 2 * ROUNDING * size[:count, None] + 1e-25 * inverse[part][:count, None]
        ).all()
        again = torch.full_like(values, 3.0)
        update.gradient(block, weight).add_to(again, 0.5, weight, 0.01)
        wanted = values + 1.5 + 0.01 * weight
        assert ((again - wanted).abs() <= 1e-5 * (2 + wanted.abs() + values.abs() + size[:, None])).all()


def test_a_million_weights_that_are_each_next_to_nothing_are_not_lost() -> None:
    classes = 1_000_000
    active = ActiveCentres(torch.ones(classes, 1), None)
    options = SoftmaxSettings(1.0, 0.0, torch.float16)
    own = torch.tensor([-1])
    lse, towards = half_log_sum_exp(torch.ones(1, 1), active, own, options, active.blocks(classes))
    assert abs(float(lse) - 1 - math.log(classes)) < 1e-3
    assert abs(float(towards) - 1) < 3e-3  # each weight is rounded alike


BAD = [torch.nan, torch.inf, -torch.inf]


@given(st.sampled_from(BAD), st.booleans(), st.integers(0, 11), st.sampled_from([1.0, 64.0, 200.0]), st.data())
@settings(max_examples=60, deadline=None)
def test_what_is_not_finite_shows_in_the_loss_and_is_found(
    value: float, in_centre: bool, row: int, scale: float, data: st.DataObject
) -> None:
    """Whoever's centre it is: of these twelve classes five have samples."""
    rate, filtering = (
        1.0 if in_centre else data.draw(st.sampled_from([0.5, 1.0])),
        data.draw(st.sampled_from([0.0, 0.3])),
    )
    config = HeadConfig(scale=scale, sample_rate=rate, interclass_filtering=filtering)
    head = PartialFC(config, HeadShape(8, 12, matmul_dtype=torch.float16))
    generator = torch.Generator().manual_seed(row)
    embeddings, labels = torch.randn(12, 8, generator=generator), torch.arange(12) % 5
    if in_centre:
        head.centres[row, 3] = value
    else:
        embeddings[row, 3] = value
    head.begin_step(0, labels)
    loss = head(embeddings, labels, 12)
    loss.backward()
    assert torch.isnan(loss)
    assert not head.finite()


@given(st.floats(-6, 4), st.floats(-6, 4), st.sampled_from([64.0, 200.0]), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_lengths_of_embeddings_and_centres_do_not_matter(
    embedding: float, centre: float, scale: float, classes: int
) -> None:
    """To the loss; gradients by them are as much smaller as they are long."""

    def run(embedding: float, centre: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        head = PartialFC(HeadConfig(scale=scale), HeadShape(8, classes, matmul_dtype=dtype))
        optimizer = CentreOptimizer(head, "sgd", momentum=0.0, weight_decay=0.0)
        generator = torch.Generator().manual_seed(3)
        directions = torch.nn.functional.normalize(torch.randn(20, 8, generator=generator))
        head.centres.copy_(directions[:classes] * centre)
        embeddings = (directions[12 - classes :] * embedding).requires_grad_()
        head.begin_step(0)
        loss = head(embeddings, torch.arange(len(embeddings)) % classes, len(embeddings))
        (loss * 65536).backward()
        assert head.finite()
        optimizer.step(0.0, 1 / 65536)
        assert embeddings.grad is not None
        return loss.detach(), embeddings.grad * embedding / 65536, optimizer.state["momentum"] * centre

    expected = run(1.0, 1.0, torch.float32)
    for found, wanted in zip(run(10**embedding, 10**centre, torch.float16), expected, strict=True):
        error = torch.linalg.vector_norm(found - wanted) / torch.linalg.vector_norm(wanted).clamp_min(1e-3)
        assert error <= 2 * ROUNDING * scale
