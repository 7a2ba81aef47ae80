"""Augmentations of whole batches: against plain formulas, with the probabilities of their docstrings."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from app.data import augment
from app.data.augment import AUGMENTATIONS, DRAWN, DRAWS, draw_batch, hue_matrices, mix_channels

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (400, 48, 48, 3), dtype=np.uint8)).permute(
    0, 3, 1, 2
)
SMOOTH = torch.nn.functional.interpolate(IMAGES[:, :, :6, :6].float(), size=48, mode="bicubic").clamp(0, 255).byte()


def augmented(name: str, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """A transformed copy."""
    return AUGMENTATIONS[name](images.clone(), draws)


def turn_hue(images: torch.Tensor, degrees: torch.Tensor, saturation: torch.Tensor) -> torch.Tensor:
    return mix_channels(images, hue_matrices(degrees, saturation))


def draws_of(count: int, **columns: float) -> torch.Tensor:
    """Draws under which nothing happens, but for the columns that are named ``c3=0.5``."""
    draws = torch.full((count, DRAWS), 0.999, dtype=torch.float64)
    for name, value in columns.items():
        draws[:, int(name[1:])] = value
    return draws


def test_draws_follow_the_sample_alone_and_are_uniform() -> None:
    positions = np.arange(20_000)
    draws = draw_batch(3, 5, positions)
    assert torch.equal(draw_batch(3, 5, positions[7000:7010]), draws[7000:7010])
    assert not torch.equal(draw_batch(4, 5, positions[:10]), draws[:10])
    assert not torch.equal(draw_batch(3, 6, positions[:10]), draws[:10])
    columns = np.corrcoef(draws.numpy().T) - np.eye(DRAWS)
    assert np.abs(columns).max() < 5 / math.sqrt(20_000)
    neighbours = [np.corrcoef(draws[:-1, k], draws[1:, k])[0, 1] for k in range(DRAWS)]
    assert np.abs(neighbours).max() < 5 / math.sqrt(20_000)
    for k in range(DRAWS):
        counts = np.histogram(draws[:, k], bins=20, range=(0, 1))[0]
        assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-square of 19 degrees, p < 1e-5


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_each_image_is_changed_by_its_own_draws_and_however_it_lies_in_memory(name: str) -> None:
    draws = draw_batch(0, 0, np.arange(60))
    result = augmented(name, SMOOTH[:60], draws)
    assert (result.dtype, result.shape) == (torch.uint8, SMOOTH[:60].shape)
    part = augmented(name, SMOOTH[20:30], draws[20:30])
    assert (part.int() - result[20:30].int()).abs().max() <= 1  # sums of another order may round the other way
    planar = AUGMENTATIONS[name](SMOOTH[:60].contiguous(), draws)
    assert (planar.int() - result.int()).abs().max() <= 1
    neutral = augmented(name, SMOOTH[:60], draws_of(60))
    assert name == "small" or torch.equal(neutral, SMOOTH[:60])


@pytest.mark.parametrize("name", ["flip", "reference", "adaface", "small"])
def test_an_accelerator_transforms_the_chosen_together_to_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = draw_batch(4, 0, np.arange(200))
    one_by_one = augmented(name, IMAGES[:200], draws)
    monkeypatch.setattr(augment, "_one_by_one", lambda _: False)
    together = augmented(name, IMAGES[:200], draws)
    difference = (one_by_one.int() - together.int()).abs()
    assert difference.max() <= 6  # resizing bytes has weights of 15 bits; light and cubic curves enlarge a step
    assert (difference > 1).float().mean() < 0.005


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
def test_no_more_numbers_are_drawn_than_it_needs(name: str) -> None:
    count = DRAWN.get(name, DRAWS)
    few, all_of_them = (draw_batch(0, 0, np.arange(60), n) for n in (count, DRAWS))
    assert torch.equal(few, all_of_them[:, :count])
    assert torch.equal(augmented(name, SMOOTH[:60], few), augmented(name, SMOOTH[:60], all_of_them))


def test_flip_is_a_mirror_of_half_the_images() -> None:
    draws = draw_batch(0, 0, np.arange(400))
    flipped = augmented("flip", IMAGES, draws)
    mirrored = draws[:, 0] < 0.5
    assert torch.equal(flipped[mirrored], IMAGES[mirrored].flip(3))
    assert torch.equal(flipped[~mirrored], IMAGES[~mirrored])


@pytest.mark.parametrize(("radius", "draw"), [(1, 0.05), (2, 0.15)])
def test_blur_is_the_gaussian_of_its_window(radius: int, draw: float) -> None:
    sigma = 0.3 * ((2 * radius + 1 - 1) * 0.5 - 1) + 0.8
    kernel = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = np.pad(IMAGES[:4].numpy().astype(float), ((0, 0), (0, 0), (radius, radius), (radius, radius)), "reflect")
    expected = np.zeros((4, 3, 48, 48))
    for y in range(2 * radius + 1):
        for x in range(2 * radius + 1):
            expected += kernel[y] * kernel[x] * padded[:, :, y : y + 48, x : x + 48]
    found = augmented("reference", IMAGES[:4], draws_of(4, c3=draw)).numpy()
    assert np.abs(found - expected).max() <= 0.51


def test_resizing_takes_sides_of_a_half_to_four_fifths(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    resize = augment._resize

    def spy(images: torch.Tensor, side: int) -> torch.Tensor:
        sizes.append(side)
        return resize(images, side)

    monkeypatch.setattr(augment, "_resize", spy)
    images = torch.zeros(64, 3, 112, 112, dtype=torch.uint8)
    draws = draws_of(64, c1=0.0)
    draws[:, 2] = torch.linspace(0, 0.9999, 64)
    augmented("reference", images, draws)
    shrunk = [size for size in sizes if size != 112]
    assert (min(shrunk), max(shrunk), len(shrunk)) == (56, 89, 64)


def test_hue_turns_the_chroma_and_keeps_luma_and_grey() -> None:
    images = IMAGES[:8].float()
    same = turn_hue(images, torch.zeros(8), torch.ones(8))
    assert (same - images).abs().max() < 1e-3
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    turned = turn_hue(images, torch.linspace(0, 20, 8), torch.linspace(1, 1.2, 8))
    assert ((turned - images) * luma).sum(1).abs().max() < 1e-2
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert (turn_hue(grey, torch.full((8,), 20.0), torch.ones(8)) - grey).abs().max() < 0.6  # NTSC's rounded matrix
    back = turn_hue(turn_hue(images, torch.full((8,), 20.0), torch.ones(8)), torch.full((8,), -20.0), torch.ones(8))
    assert (back - images).abs().max() < 1e-2


def test_grey_is_the_luma() -> None:
    found = augmented("reference", IMAGES[:4], draws_of(4, c8=0.0))
    luma = (IMAGES[:4].float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    assert (found.float() - luma).abs().max() <= 0.51


def test_adaface_crops_to_black_and_keeps_what_is_inside() -> None:
    found = augmented("adaface", IMAGES + (IMAGES == 0), draw_batch(1, 1, np.arange(400)))
    draws = draw_batch(1, 1, np.arange(400))
    only = (draws[:, 0] >= 0.5) & (draws[:, 1] < 0.2) & (draws[:, 6] >= 0.2) & (draws[:, 10] >= 0.2)
    assert only.sum() > 10
    for before, after in zip((IMAGES + (IMAGES == 0))[only], found[only], strict=True):
        inside = (after != 0).any(0)
        assert 0.15 < inside.float().mean() <= 1
        assert torch.equal(after[:, inside], before[:, inside])
        rows, columns = inside.any(1), inside.any(0)
        assert torch.equal(inside, rows[:, None] & columns[None])


@pytest.mark.parametrize(
    ("kind", "blend"),
    [
        (0, lambda x, luma: 0 * (x + luma)),
        (1, lambda x, luma: luma.mean((1, 2, 3), keepdim=True).expand_as(x)),
        (2, lambda x, luma: luma.expand_as(x)),
    ],
)
def test_adafaces_light_is_torchvisions(kind: int, blend: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    rows = draws_of(4, c10=0.0, c11=0.5, c12=0.5, c13=0.5)
    rows[:, 11 + kind] = torch.tensor([0.0, 0.2, 0.8, 0.99], dtype=torch.float64)
    images = SMOOTH[:4]
    found = augmented("adaface", images, rows).float()
    factor = (0.5 + rows[:, 11 + kind]).view(-1, 1, 1, 1).float()
    luma = (images.float() * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)
    expected = (factor * images.float() + (1 - factor) * blend(images.float(), luma)).clamp(0, 255)
    assert (found - expected).abs().max() <= 0.51


def test_the_share_of_changed_images_is_that_of_the_docstring() -> None:
    draws = draw_batch(0, 0, np.arange(4000))
    draws[:, 0] = 0.9
    images = SMOOTH.repeat(10, 1, 1, 1)
    for name, kept in (("reference", 0.9 * 0.8 * 0.8 * 0.9), ("adaface", 0.8**3)):
        changed = (augmented(name, images, draws) != images).flatten(1).any(1).float().mean()
        assert abs(float(changed) - (1 - kept)) < 0.04
