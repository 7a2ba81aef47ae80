"""Alignment of faces by their landmarks, as the field does it: a similarity transform, then OpenCV's warpAffine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app.face_points import TEMPLATE


def five_points(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Eyes, nose tip and mouth corners [..., 5, 2] from landmarks [..., 68, 2] in iBUG's order; five stay as they are.

    An eye is the middle between its two corners, as insightface takes it.
    """
    if points.shape[-2] == 5:
        return points
    left, right = points[..., [36, 39], :].mean(-2), points[..., [42, 45], :].mean(-2)
    return np.stack([left, right, points[..., 30, :], points[..., 48, :], points[..., 54, :]], axis=-2)


def align(image: NDArray[np.uint8], points: NDArray[np.float64], size: int = 112) -> NDArray[np.uint8]:
    """Turn, scale and shift a face so that its points come nearest to ``TEMPLATE``; RGB ``uint8 [S, S, 3]``."""
    return warp_affine(image, similarity(five_points(points), TEMPLATE * (size / 112)), size)


def warp_affine(image: NDArray[np.uint8], transform: NDArray[np.float64], size: int) -> NDArray[np.uint8]:
    """``cv2.warpAffine(image, transform, (size, size))``: bilinear, black outside; ``uint8 [S, S, 3]``.

    Pixel (x, y) of the result is the image at inverse(transform) (x, y): pixel centres are whole numbers here, while
    PIL's are at halves. OpenCV 5 computes this; its versions before rounded the place to 1/32 pixel first.
    """
    inverse = np.linalg.inv(np.vstack([transform, [0, 0, 1]]))[:2]
    y, x = np.mgrid[0:size, 0:size]
    place = inverse @ np.stack([x.ravel(), y.ravel(), np.ones(size * size)])
    corner = np.floor(place).astype(np.int64)
    right, down = place - corner
    # A black frame stands for everything outside: taps that leave the image are black one by one.
    framed = np.pad(image.astype(np.float64), ((1, 1), (1, 1), (0, 0)))
    total = np.zeros((size * size, image.shape[2]))
    for dy, weight_y in ((0, 1 - down), (1, down)):
        row = np.clip(corner[1] + dy + 1, 0, framed.shape[0] - 1)
        for dx, weight_x in ((0, 1 - right), (1, right)):
            column = np.clip(corner[0] + dx + 1, 0, framed.shape[1] - 1)
            total += (weight_x * weight_y)[:, None] * framed[row, column]
    return np.rint(total).astype(np.uint8).reshape(size, size, -1)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift, float64 [2, 3], that bring points nearest to others (Umeyama 1991)."""
    mean_s, mean_t = source.mean(0), target.mean(0)
    centred_s, centred_t = source - mean_s, target - mean_t
    u, singular, vt = np.linalg.svd(centred_t.T @ centred_s / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = float((singular * sign).sum() / np.square(centred_s).sum(1).mean())
    return np.hstack([scale * rotation, (mean_t - scale * rotation @ mean_s)[:, None]])
