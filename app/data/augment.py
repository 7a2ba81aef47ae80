"""Training transforms on whole batches, uint8 [B, 3, H, W], as plain torch operations on whatever device they lie on.

Random numbers come from a counter: draw k of the sample at position p in an epoch is a hash of (seed, epoch, p, k), so
that it is the same on whatever process the sample is trained, and one vectorised call makes those of a batch. They
stay on the host, which therefore knows which images a transform touches without asking the device.

``strong`` compresses images as JPEG, which no device does: it alone works image by image, on the host.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from app.seeds import numpy_stream, stream_key

DRAWS = 16  # random numbers a sample
_LUMA = (0.299, 0.587, 0.114)
# RGB to YIQ (NTSC), as DALI's hsv operator rotates hues.
_TO_YIQ = torch.tensor([_LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)], dtype=torch.float64)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)

Transform = Callable[[Tensor, Tensor], Tensor]


def draw_batch(seed: int, epoch: int, positions: NDArray[np.int64]) -> Tensor:
    """Uniform numbers in [0, 1) of the samples at ``positions``: float64 [B, DRAWS].

    splitmix64's finalizer (Steele et al., doi:10.1145/2660193.2660195), once over the position and once over the draw.
    """
    key = np.uint64(int.from_bytes(stream_key(seed, "augment", epoch)[:8], "little"))
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        samples = _mix(positions.astype(np.uint64) * golden + key)
        mixed = _mix(samples[:, None] + np.arange(1, DRAWS + 1, dtype=np.uint64) * golden)
    return torch.from_numpy((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)


def no_augmentation(images: Tensor, draws: Tensor) -> Tensor:  # noqa: ARG001
    """The images as they are."""
    return images


def flip(images: Tensor, draws: Tensor) -> Tensor:
    """Horizontal flip with probability 1/2: the reference's only augmentation by default."""
    images = images.clone()
    return _apply(images, draws, draws[:, 0] < 0.5, lambda chosen, _: chosen.flip(3))


def reference_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """What insightface's ``dali_aug`` does.

    Flip (probability 0.5); resize to 0.5..0.8 of the side, at 112 pixels 56..89, and back (0.1); Gaussian blur with a
    window of 3 or 5 pixels (0.2); hue turned by 0..20 degrees and saturation times 1..1.2 (0.2); grey (0.1).

    Source: insightface's ``dataset.py``, ``dali_data_iter``.
    """
    images = flip(images, draws)
    side = images.shape[-1]

    def shrink(chosen: Tensor, rows: Tensor) -> Tensor:
        sizes = (int(side * 0.5) + rows[:, 2] * (int(side * 0.8) - int(side * 0.5))).round().int().tolist()
        return torch.cat([_resize(_resize(image[None], size), side) for image, size in zip(chosen, sizes, strict=True)])

    images = _apply(images, draws, draws[:, 1] < 0.1, shrink)
    for radius, low in ((1, 0.0), (2, 0.1)):
        blurred = (draws[:, 3] >= low) & (draws[:, 3] < low + 0.1)
        images = _apply(images, draws, blurred, _blurring(radius))
    images = _apply(images, draws, draws[:, 5] < 0.2, lambda x, r: turn_hue(x.float(), 20 * r[:, 6], 1 + 0.2 * r[:, 7]))
    return _apply(images, draws, draws[:, 8] < 0.1, lambda chosen, _: _grey(chosen.float()).expand_as(chosen))


def adaface_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """Flip (probability 0.5) and AdaFace's three, each with probability 0.2.

    Crop: all but a random part (0.2..1 of the area, sides 3:4 to 4:3) becomes black. Low resolution: shrunk to 0.2..1
    of the side and enlarged again, each by a random one of nearest, bilinear, area and bicubic (the original has
    Lanczos too, which torch has not). Photometric: brightness, contrast and saturation times 0.5..1.5, in random order.

    Source: AdaFace (arXiv:2204.00964), ``augmenter.py``.
    """
    images = flip(images, draws)
    images = _apply(images, draws, draws[:, 1] < 0.2, _crop)
    images = _apply(images, draws, draws[:, 6] < 0.2, _low_resolution)
    return _apply(images, draws, draws[:, 10] < 0.2, lambda chosen, rows: _photometric(chosen.float(), rows[:, 11:15]))


def small_set_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """For datasets of hundreds of images: flip, rotation, scale, shift, contrast and brightness jitter."""
    values = flip(images, draws).float()
    device = values.device

    def between(column: int, low: float, high: float) -> Tensor:
        return (low + (high - low) * draws[:, column]).float().to(device)

    angle, zoom = between(1, -math.pi / 18, math.pi / 18), between(2, 0.85, 1.15)
    x, y = between(3, -0.12, 0.12), between(4, -0.12, 0.12)  # shifts; the image is 2 wide
    cosine, sine = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    rows = (cosine, sine, -cosine * x - sine * y, -sine, cosine, sine * x - cosine * y)
    grid = functional.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(values.shape), align_corners=False)
    corners = values[:, :, :: values.shape[2] - 1, :: values.shape[3] - 1].mean((2, 3), keepdim=True)
    values = functional.grid_sample(values - corners, grid, align_corners=False) + corners
    mean = values.mean((1, 2, 3), keepdim=True)
    contrast, light = between(5, 0.75, 1.25), between(6, -25.0, 25.0)
    return _to_pixels((values - mean) * contrast[:, None, None, None] + mean + light[:, None, None, None])


def strong_augmentation(image: NDArray[np.uint8], generator: np.random.Generator) -> NDArray[np.uint8]:
    """Shrinking to 0.25..1 of the side (probability 0.5), blur, coarse JPEG and grey (0.1 each), on uint8 [H, W, 3]."""
    height, width = image.shape[:2]
    picture = Image.fromarray(np.ascontiguousarray(image))
    if generator.random() < 0.5:
        side = max(8, int(width * generator.uniform(0.25, 1.0)))
        picture = picture.resize((side, side), Image.Resampling.BILINEAR).resize((width, height))
    if generator.random() < 0.1:
        picture = picture.filter(ImageFilter.GaussianBlur(float(generator.uniform(0.5, 2.0))))
    if generator.random() < 0.1:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(generator.integers(20, 80)))
        picture = Image.open(buffer)
    if generator.random() < 0.1:
        picture = picture.convert("L").convert("RGB")
    return np.asarray(picture)


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample in one epoch, for ``strong``."""
    return numpy_stream(seed, "augment.strong", epoch, position)


AUGMENTATIONS: dict[str, Transform] = {
    "none": no_augmentation,
    "flip": flip,
    "reference": reference_augmentation,
    "strong": flip,  # the rest was done on the host
    "small": small_set_augmentation,
    "adaface": adaface_augmentation,
}


def _apply(images: Tensor, draws: Tensor, mask: Tensor, transform: Transform) -> Tensor:
    """Transform the chosen images, given their draws too, in place; uint8 in and out."""
    rows = torch.nonzero(mask).flatten()
    if len(rows):
        index = rows.to(images.device, non_blocking=True)
        images[index] = _to_pixels(transform(images[index], draws[rows]))
    return images


def _to_pixels(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8) if values.is_floating_point() else values


def _resize(images: Tensor, side: int) -> Tensor:
    """Resize to a square, bilinearly and as DALI does it with antialiasing when it shrinks."""
    values = images if images.device.type == "cpu" else images.float()  # only the CPU has a kernel on bytes
    return functional.interpolate(values, size=(side, side), mode="bilinear", antialias=True)


def _blurring(radius: int) -> Transform:
    return lambda chosen, _: _blur(chosen.float(), radius)


def _blur(images: Tensor, radius: int) -> Tensor:
    """Gaussian of a window of 2 radius + 1 pixels; its sigma follows from the window as in OpenCV and DALI."""
    sigma = 0.3 * (radius - 1) + 0.8
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for dim, padding in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        size = images.shape[dim]
        padded = functional.pad(images, padding, mode="reflect")
        images = padded.narrow(dim, radius, size) * (weights[0] / total)
        for d in range(1, radius + 1):
            both = padded.narrow(dim, radius - d, size) + padded.narrow(dim, radius + d, size)
            images += both * (weights[d] / total)
    return images


def turn_hue(images: Tensor, degrees: Tensor, saturation: Tensor) -> Tensor:
    """Rotate the chroma plane of YIQ and scale it: float [n, 3, H, W], one angle and factor an image."""
    angle = torch.deg2rad(degrees.double())
    chroma = torch.zeros(len(images), 3, 3, dtype=torch.float64)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * torch.cos(angle)
    chroma[:, 1, 2] = saturation * torch.sin(angle)
    chroma[:, 2, 1] = -chroma[:, 1, 2]
    matrix = (_FROM_YIQ @ chroma @ _TO_YIQ).float().to(images.device)
    return torch.einsum("nij,njhw->nihw", matrix, images)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.split(1, 1)
    return _LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue


def _crop(images: Tensor, rows: Tensor) -> Tensor:
    side = images.shape[-1]
    area, ratio = 0.2 + 0.8 * rows[:, 2], torch.exp((2 * rows[:, 3] - 1) * math.log(4 / 3))
    width = (torch.sqrt(area * ratio) * side).round().clamp(1, side)
    height = (torch.sqrt(area / ratio) * side).round().clamp(1, side)
    left, top = (rows[:, 4] * (side - width + 1)).floor(), (rows[:, 5] * (side - height + 1)).floor()
    line = torch.arange(side)
    inside_x = (line >= left[:, None]) & (line < (left + width)[:, None])
    inside_y = (line >= top[:, None]) & (line < (top + height)[:, None])
    inside = (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(images.device)
    return images * inside


def _low_resolution(images: Tensor, rows: Tensor) -> Tensor:
    side, modes = images.shape[-1], ("nearest", "bilinear", "area", "bicubic")
    results = []
    for image, row in zip(images.float(), rows.tolist(), strict=True):
        small = max(1, int((0.2 + 0.8 * row[7]) * side))
        shrunk = functional.interpolate(image[None], size=(small, small), mode=modes[int(4 * row[8])])
        results.append(functional.interpolate(shrunk, size=(side, side), mode=modes[int(4 * row[9])]))
    return torch.cat(results)


def _photometric(images: Tensor, rows: Tensor) -> Tensor:
    """Brightness, contrast, saturation in an order of each image's own; torchvision's definitions."""
    factors = (0.5 + rows[:, :3]).float()
    code = (6 * rows[:, 3]).long().clamp(max=5)
    orders = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])[code]
    for turn in range(3):
        for kind in range(3):
            chosen = torch.nonzero(orders[:, turn] == kind).flatten()
            if not len(chosen):
                continue
            factor = factors[chosen, kind].view(-1, 1, 1, 1).to(images.device)
            chosen = chosen.to(images.device)
            part = images[chosen]
            other = _grey(part) if kind else torch.zeros_like(part)
            if kind == 1:
                other = other.mean((1, 2, 3), keepdim=True)
            images[chosen] = (factor * part + (1 - factor) * other).clamp(0, 255)
    return images
