"""Training transforms on whole batches, uint8 [B, 3, H, W], in place, as torch operations on the device they lie on.

Batches lie in memory as [B, H, W, 3]. An accelerator transforms the chosen images of a batch together; a processor
one after the other, since one image stays in its cache and a batch does not.

Random numbers come from a counter: draw k of the sample at position p in an epoch is a hash of (seed, epoch, p, k), so
that it is the same on whatever process the sample is trained, and one vectorised call makes those of a batch. They
stay on the host, which therefore knows which images a transform touches without asking the device.

``strong`` compresses images as JPEG, which no device does: it alone works image by image, on the host.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from app.data import host_pixels
from app.data.host_pixels import LUMA
from app.seeds import numpy_stream, stream_key

DRAWS = 16  # random numbers a sample
# RGB to YIQ (NTSC), as DALI's hsv operator rotates hues.
_TO_YIQ = torch.tensor([LUMA, (0.596, -0.274, -0.321), (0.211, -0.523, 0.311)], dtype=torch.float64)
_FROM_YIQ = torch.linalg.inv(_TO_YIQ)
_TO_GREY, _SAME = torch.tensor(LUMA), torch.eye(3)
_ORDERS = torch.tensor([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])

Augmentation = Callable[[Tensor, Tensor], Tensor]  # of images and their draws, in place
Transform = Callable[[Tensor, Tensor], Tensor]  # of the chosen images and their rows of parameters


def draw_batch(seed: int, epoch: int, positions: NDArray[np.int64], draws: int = DRAWS) -> Tensor:
    """The first ``draws`` uniform numbers in [0, 1) of the samples at ``positions``: float64 [B, draws].

    splitmix64's finalizer (Steele et al., doi:10.1145/2660193.2660195), once over the position and once over the draw.
    """
    key = np.uint64(int.from_bytes(stream_key(seed, "augment", epoch)[:8], "little"))
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        samples = _mix(positions.astype(np.uint64) * golden + key)
        mixed = _mix(samples[:, None] + np.arange(1, draws + 1, dtype=np.uint64) * golden)
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
    mirrored = draws[:, 0] < 0.5
    if not _one_by_one(images):
        return _apply(images, mirrored, draws, lambda chosen, _: chosen.flip(3))
    pixels = images.permute(0, 2, 3, 1)
    for row in mirrored.nonzero().flatten().tolist():
        image = pixels[row]
        image.copy_(image.flip(1))
    return images


def reference_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """What insightface's ``dali_aug`` does.

    Flip (probability 0.5); resize to 0.5..0.8 of the side, at 112 pixels 56..89, and back (0.1); Gaussian blur with a
    window of 3 or 5 pixels (0.2); hue turned by 0..20 degrees and saturation times 1..1.2 (0.2); grey (0.1).

    Source: insightface's ``dataset.py``, ``dali_data_iter``.
    """
    images = flip(images, draws)
    side = images.shape[-1]
    low, high = int(side * 0.5), int(side * 0.8)
    sides = (low + draws[:, 2] * (high - low)).round()
    images = _apply(images, draws[:, 1] < 0.1, sides, lambda chosen, rows: _through(chosen, rows.int().tolist()))
    for radius, first in ((1, 0.0), (2, 0.1)):
        blurred = (draws[:, 3] >= first) & (draws[:, 3] < first + 0.1)
        images = _apply(images, blurred, draws, _blurring(radius))
    turns = hue_matrices(20 * draws[:, 6], 1 + 0.2 * draws[:, 7])
    images = _apply(images, draws[:, 5] < 0.2, _blocks(turns, side), _mix_blocks)
    grey = _blocks(_TO_GREY.expand(1, 3, 3), side).expand(len(images), -1, -1)
    return _apply(images, draws[:, 8] < 0.1, grey, _mix_blocks)


def adaface_augmentation(images: Tensor, draws: Tensor) -> Tensor:
    """Flip (probability 0.5) and AdaFace's three, each with probability 0.2.

    Crop: all but a random part (0.2..1 of the area, sides 3:4 to 4:3) becomes black. Low resolution: shrunk to 0.2..1
    of the side and enlarged again, each by a random one of nearest, bilinear, area and bicubic (the original has
    Lanczos too, which torch has not). Photometric: brightness, contrast and saturation times 0.5..1.5, in random order.

    Source: AdaFace (arXiv:2204.00964), ``augmenter.py``.
    """
    images = flip(images, draws)
    images = _apply(images, draws[:, 1] < 0.2, _boxes(images.shape[-1], draws), _crop)
    images = _apply(images, draws[:, 6] < 0.2, draws, _low_resolution)
    return _apply(images, draws[:, 10] < 0.2, draws[:, 11:15], _photometric)


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


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": no_augmentation,
    "flip": flip,
    "reference": reference_augmentation,
    "strong": flip,  # the rest was done on the host
    "small": small_set_augmentation,
    "adaface": adaface_augmentation,
}


DRAWN = {"none": 0, "flip": 1, "strong": 1}  # of those that need fewer draws than DRAWS


def _apply(images: Tensor, mask: Tensor, parameters: Tensor, transform: Transform) -> Tensor:
    """Transform the images that ``mask`` [B] chooses, given their rows of ``parameters`` [B, ...], in place."""
    rows = torch.nonzero(mask).flatten()
    if not _one_by_one(images):
        if len(rows):
            index = rows.to(images.device, non_blocking=True)
            images[index] = _to_pixels(transform(images[index], parameters[rows]))
        return images
    for row in rows.tolist():
        image = images[row : row + 1]
        values = transform(image, parameters[row : row + 1])
        image.copy_(_rounded(values) if values.is_floating_point() else values)
    return images


def _one_by_one(images: Tensor) -> bool:
    return images.device.type == "cpu"


def _to_pixels(values: Tensor) -> Tensor:
    if not values.is_floating_point():
        return values
    return _rounded(values).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    """Whole numbers of a byte's range, int16: from floats straight to bytes takes twice as long. Overwrites."""
    return values.round_().clamp_(0, 255).to(torch.int16)


def _lines(images: Tensor) -> Tensor:
    """Images as they lie in memory, [n, H, W * 3]."""
    count, channels, height, width = images.shape
    return images.permute(0, 2, 3, 1).reshape(count, height, width * channels)


def _images(lines: Tensor) -> Tensor:
    count, height, width = lines.shape
    return lines.view(count, height, width // 3, 3).permute(0, 3, 1, 2)


def _pixels_of_one(images: Tensor) -> NDArray[np.uint8]:
    """The only image, [H, W, 3], where it lies."""
    return images[0].permute(1, 2, 0).numpy()


def _through(images: Tensor, sides: list[int]) -> Tensor:
    """Each image shrunk to a side of its own and enlarged again."""
    size = images.shape[-1]
    return torch.cat([_resize(_resize(image[None], side), size) for image, side in zip(images, sides, strict=True)])


def _resize(images: Tensor, side: int) -> Tensor:
    """Resize to a square, bilinearly and as DALI does it with antialiasing when it shrinks."""
    values = images if _one_by_one(images) else images.float()  # only the CPU has a kernel on bytes
    return functional.interpolate(values, size=(side, side), mode="bilinear", antialias=True)


def _blurring(radius: int) -> Transform:
    return lambda chosen, _: _blur(chosen, radius)


def _blur(images: Tensor, radius: int) -> Tensor:
    """Gaussian of a window of 2 radius + 1 pixels; its sigma follows from the window as in OpenCV and DALI."""
    sigma = 0.3 * (radius - 1) + 0.8
    weights = [math.exp(-(d**2) / (2 * sigma**2)) for d in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    if _one_by_one(images):
        smooth = np.rint(host_pixels.blur(_pixels_of_one(images), [weight / total for weight in weights])).astype(
            np.uint8
        )
        return torch.from_numpy(smooth).permute(2, 0, 1)[None]
    lines = _lines(images)
    count, height, width = lines.shape
    edge = 3 * radius
    values = torch.empty(count, height + 2 * radius, width + 2 * edge, device=images.device)
    values[:, radius : radius + height, edge : edge + width] = lines
    for d in range(1, radius + 1):  # mirrored about the outermost pixels
        for at, source in ((edge - 3 * d, edge + 3 * d), (edge + width + 3 * d - 3, edge + width - 3 * d - 3)):
            values[:, :, at : at + 3] = values[:, :, source : source + 3]
    for d in range(1, radius + 1):
        values[:, radius - d] = values[:, radius + d]
        values[:, radius + height - 1 + d] = values[:, radius + height - 1 - d]
    for dim, step, size in ((1, 1, height), (2, 3, width)):
        middle = radius * step
        blurred = values.narrow(dim, middle, size) * (weights[0] / total)
        for d in range(1, radius + 1):
            for start in (middle - d * step, middle + d * step):
                blurred.add_(values.narrow(dim, start, size), alpha=weights[d] / total)
        values = blurred
    return _images(values)


def hue_matrices(degrees: Tensor, saturation: Tensor) -> Tensor:
    """Rotate the chroma plane of YIQ and scale it: matrices of RGB columns, float [n, 3, 3]."""
    angle = torch.deg2rad(degrees.double())
    chroma = torch.zeros(len(degrees), 3, 3, dtype=torch.float64)
    chroma[:, 0, 0] = 1
    chroma[:, 1, 1] = chroma[:, 2, 2] = saturation * torch.cos(angle)
    chroma[:, 1, 2] = saturation * torch.sin(angle)
    chroma[:, 2, 1] = -chroma[:, 1, 2]
    return (_FROM_YIQ @ chroma @ _TO_YIQ).float()


def mix_channels(images: Tensor, matrices: Tensor) -> Tensor:
    """Each pixel's RGB column times the matrix of its image, [n, 3, 3]; float [n, 3, H, W]."""
    return _mix_blocks(images, _blocks(matrices, images.shape[-1]))


def _blocks(matrices: Tensor, width: int) -> Tensor:
    """Matrices [n, 3, 3] for several pixels of a line at a time, since products with three columns are slow."""
    together = 4 if width % 4 == 0 else 1
    blocks = torch.eye(together).view(1, together, 1, together, 1) * matrices.transpose(1, 2)[:, None, :, None]
    return blocks.reshape(len(matrices), 3 * together, 3 * together)


def _mix_blocks(images: Tensor, blocks: Tensor) -> Tensor:
    lines = _lines(images).float()
    count, height, width = lines.shape
    blocks = blocks.to(images.device)
    if count == 1:
        mixed = lines.view(-1, blocks.shape[-1]) @ blocks[0]
    else:
        mixed = torch.bmm(lines.view(count, -1, blocks.shape[-1]), blocks)
    return _images(mixed.view(count, height, width))


def _boxes(side: int, draws: Tensor) -> Tensor:
    """What AdaFace's crop keeps: left, top, right and bottom, int64 [B, 4]."""
    area, ratio = 0.2 + 0.8 * draws[:, 2], torch.exp((2 * draws[:, 3] - 1) * math.log(4 / 3))
    width = (torch.sqrt(area * ratio) * side).round().clamp(1, side)
    height = (torch.sqrt(area / ratio) * side).round().clamp(1, side)
    left, top = (draws[:, 4] * (side - width + 1)).floor(), (draws[:, 5] * (side - height + 1)).floor()
    return torch.stack([left, top, left + width, top + height], 1).long()


def _crop(images: Tensor, boxes: Tensor) -> Tensor:
    if _one_by_one(images):
        pixels, (left, top, right, bottom) = _pixels_of_one(images), boxes[0].tolist()
        pixels[:top] = pixels[bottom:] = 0
        pixels[:, :left] = pixels[:, right:] = 0
        return images
    line = torch.arange(images.shape[-1])
    left, top, right, bottom = boxes.T[:, :, None]
    inside_x, inside_y = (line >= left) & (line < right), (line >= top) & (line < bottom)
    return images * (inside_y[:, None, :, None] & inside_x[:, None, None, :]).to(images.device)


def _low_resolution(images: Tensor, rows: Tensor) -> Tensor:
    side, modes = images.shape[-1], ("nearest", "bilinear", "area", "bicubic")
    results = []
    for image, row in zip(images, rows.tolist(), strict=True):
        small = max(1, int((0.2 + 0.8 * row[7]) * side))
        shrink, enlarge = modes[int(4 * row[8])], modes[int(4 * row[9])]
        shrunk = _resample(image[None], small, shrink)
        if {shrink, enlarge} <= {"area", "bicubic"}:  # products leave x and y in each other's place in memory
            results.append(_resample(shrunk.transpose(2, 3), side, enlarge).transpose(2, 3))
        else:
            results.append(_resample(shrunk, side, enlarge))
    return torch.cat(results)


def _resample(images: Tensor, side: int, mode: str) -> Tensor:
    """Resize to a square, without antialiasing; uint8 in and out."""
    size = images.shape[-1]
    if mode == "nearest" and _one_by_one(images):
        return torch.from_numpy(host_pixels.pick(_pixels_of_one(images), side)).permute(2, 0, 1)[None]
    if mode == "nearest":
        chosen = (torch.arange(side, device=images.device) * (size / side)).long()
        return _images(_lines(images).index_select(1, chosen)).index_select(3, chosen)
    if mode == "bilinear" and _one_by_one(images):
        return functional.interpolate(images, size=(side, side), mode=mode)  # on bytes: several times as fast
    if _one_by_one(images):
        parts = _resampling_bands(size, side, mode)
        halfway = host_pixels.resample(_lines(images)[0].float(), parts)
        halfway = halfway.view(side, size, 3).transpose(0, 1).reshape(size, side * 3)
        return _to_pixels(host_pixels.resample(halfway, parts)).view(1, side, side, 3).permute(0, 3, 2, 1)
    weights = _resampling(size, side, mode).to(images.device)
    lines = _lines(images).float()  # [n, y, x * 3]: first over y, then with x in its place
    halfway = torch.matmul(weights, lines).view(-1, side, size, 3).transpose(1, 2).reshape(-1, size, side * 3)
    return _to_pixels(torch.matmul(weights, halfway)).view(-1, side, side, 3).permute(0, 3, 2, 1)


@lru_cache(maxsize=512)
def _resampling(size: int, side: int, mode: str) -> Tensor:
    """What each of ``side`` pixels takes from each of ``size``: float [side, size]. Products beat kernels."""
    return functional.interpolate(torch.eye(size)[None, None], size=(side, size), mode=mode)[0, 0]


@lru_cache(maxsize=512)
def _resampling_bands(size: int, side: int, mode: str) -> host_pixels.Bands:
    return host_pixels.bands(_resampling(size, side, mode))


def _photometric(images: Tensor, rows: Tensor) -> Tensor:
    """Brightness, contrast, saturation in an order of each image's own; torchvision's definitions.

    Each is a product of pixels and a matrix, and contrast adds a part of the mean luma.
    """
    if _one_by_one(images):
        *chosen, which = rows[0].tolist()
        steps = [(kind, 0.5 + chosen[kind]) for kind in _ORDERS[min(5, int(6 * which))].tolist()]
        return _images(host_pixels.relight(_lines(images)[0], steps)[None])
    images, factors = images.float(), (0.5 + rows[:, :3]).float()
    for kinds in _ORDERS[(6 * rows[:, 3]).long().clamp(max=5)].unbind(1):
        present = set(kinds.tolist())
        factor = factors.gather(1, kinds[:, None])
        rest = 1 - factor
        light: Tensor | float = 0.0
        if 1 in present:
            mean = images.mean((2, 3)) @ _TO_GREY.to(images.device)
            light = (mean * (rest[:, 0] * (kinds == 1)).to(images.device)).view(-1, 1, 1, 1)
        if 2 in present:
            greying = (rest * (kinds == 2)[:, None]).unsqueeze(2) * _TO_GREY
            images = mix_channels(images, factor.unsqueeze(2) * _SAME + greying)
        else:
            images = images * factor.view(-1, 1, 1, 1).to(images.device)
        images = images.add_(light).clamp_(0, 255)
    return images
