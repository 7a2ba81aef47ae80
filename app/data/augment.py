"""Training transforms on RGB ``uint8 [H, W, 3]``; each draws from its sample's generator, never from global state."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from app.seeds import numpy_stream

Image8 = NDArray[np.uint8]
Transform = Callable[[Image8, np.random.Generator], Image8]


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample in one epoch: the same on whatever process the sample is decoded."""
    return numpy_stream(seed, "augment", epoch, position)


def no_augmentation(image: Image8, generator: np.random.Generator) -> Image8:  # noqa: ARG001
    """The image as it is."""
    return image


def flip(image: Image8, generator: np.random.Generator) -> Image8:
    """Horizontal flip with probability 1/2: the reference's only augmentation."""
    return image[:, ::-1] if generator.random() < 0.5 else image


def reference_augmentation(image: Image8, generator: np.random.Generator) -> Image8:
    """Flip, downscaling (p 0.5), blur, coarse JPEG and grey (p 0.1 each): what insightface's ``dali_aug`` does."""
    image = flip(image, generator)
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


def small_set_augmentation(image: Image8, generator: np.random.Generator) -> Image8:
    """For datasets of hundreds of images: flip, rotation, scale, shift, contrast and brightness jitter."""
    image = flip(image, generator)
    height, width = image.shape[:2]
    angle = np.deg2rad(generator.uniform(-10, 10))
    zoom = generator.uniform(0.85, 1.15)
    shift_x, shift_y = generator.uniform(-0.06, 0.06, 2) * (width, height)
    cosine, sine = np.cos(angle) / zoom, np.sin(angle) / zoom
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    matrix = (
        cosine,
        sine,
        centre_x - cosine * (centre_x + shift_x) - sine * (centre_y + shift_y),
        -sine,
        cosine,
        centre_y + sine * (centre_x + shift_x) - cosine * (centre_y + shift_y),
    )
    picture = Image.fromarray(np.ascontiguousarray(image))
    edge = tuple(int(value) for value in image[[0, 0, -1, -1], [0, -1, 0, -1]].mean(0))
    moved = picture.transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=edge
    )
    values = np.asarray(moved, dtype=np.float32)
    mean = values.mean()
    values = (values - mean) * generator.uniform(0.75, 1.25) + mean + generator.uniform(-25, 25)
    return np.clip(values, 0, 255).astype(np.uint8)


AUGMENTATIONS: dict[str, Transform] = {
    "none": no_augmentation,
    "flip": flip,
    "reference": reference_augmentation,
    "small": small_set_augmentation,
}
