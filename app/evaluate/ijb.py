"""IJB-B and IJB-C 1:1 verification from the published metadata (Whitelam et al. 2017; Maze et al. 2018).

The layout is the one that the field passes around: ``meta/<set>_face_tid_mid.txt`` (image, template, media),
``meta/<set>_template_pair_label.txt`` (two templates, 1 or 0), ``meta/<set>_name_5pts_score.txt`` (image, five points,
faceness), and the images in ``loose_crop/``. Images are aligned by their points to the ArcFace template.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import storage
from app.data.decode import decode_image
from app.data.recordio import RecordError
from app.evaluate.metrics import roc_curve
from app.evaluate.verification import Embed

# Where eyes, nose and mouth corners of an aligned face lie, in a picture of 112 x 112 pixels (x, y).
ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
FARS = tuple(10.0**-n for n in range(6, 0, -1))


@dataclass(frozen=True)
class IJBMetadata:
    """I images and P pairs of templates.

    ``points`` float64 [I, 5, 2], pixels (x, y); ``faceness`` float64 [I]; ``templates`` and ``media`` int64 [I], ids;
    ``pairs`` int64 [P, 2], template ids; ``issame`` bool [P].
    """

    images: list[str]
    points: NDArray[np.float64]
    faceness: NDArray[np.float64]
    templates: NDArray[np.int64]
    media: NDArray[np.int64]
    pairs: NDArray[np.int64]
    issame: NDArray[np.bool_]


def load_metadata(url: str, name: str) -> IJBMetadata:
    """Read the three files of ``ijbb`` or ``ijbc`` under ``url/meta/``.

    Raises:
        StorageError: one is missing.
        RecordError: a line has another form, or the files do not fit each other.
    """
    faces = _table(storage.join(url, "meta", f"{name}_face_tid_mid.txt"), 3)
    pairs = _table(storage.join(url, "meta", f"{name}_template_pair_label.txt"), 3)
    points = _table(storage.join(url, "meta", f"{name}_name_5pts_score.txt"), 12)
    if len(faces) != len(points):
        raise RecordError(f"{url}: {len(faces)} images in face_tid_mid, {len(points)} in name_5pts_score")
    ids = np.array([[int(row[1]), int(row[2])] for row in faces], dtype=np.int64)
    numbers = np.array([[float(value) for value in row[1:]] for row in points])
    labelled = np.array([[int(value) for value in row] for row in pairs], dtype=np.int64)
    known = set(ids[:, 0].tolist())
    if missing := sorted(set(labelled[:, :2].ravel().tolist()) - known)[:5]:
        raise RecordError(f"{url}: pairs name templates without an image: {missing}")
    return IJBMetadata(
        [row[0] for row in points],
        numbers[:, :10].reshape(-1, 5, 2),
        numbers[:, 10],
        ids[:, 0],
        ids[:, 1],
        labelled[:, :2],
        labelled[:, 2] == 1,
    )


def _table(url: str, columns: int) -> list[list[str]]:
    rows = [line.split() for line in storage.read_bytes(url).decode().splitlines() if line.strip()]
    for number, row in enumerate(rows, start=1):
        if len(row) != columns:
            raise RecordError(f"{url}: line {number} has {len(row)} columns, not {columns}")
    if not rows:
        raise RecordError(f"{url}: empty")
    return rows


def align(image: NDArray[np.uint8], points: NDArray[np.float64], size: int = 112) -> NDArray[np.uint8]:
    """Turn, scale and shift a face so that its points come nearest to ``ARCFACE_POINTS``; RGB ``uint8 [S, S, 3]``."""
    forward = similarity(points, ARCFACE_POINTS * (size / 112))
    inverse = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    picture = Image.fromarray(image)
    coefficients = tuple(float(value) for value in inverse.ravel())
    moved = picture.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
    return np.asarray(moved)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift, float64 [2, 3], that bring points nearest to others (Umeyama 1991)."""
    mean_s, mean_t = source.mean(0), target.mean(0)
    centred_s, centred_t = source - mean_s, target - mean_t
    u, singular, vt = np.linalg.svd(centred_t.T @ centred_s / len(source))
    sign = np.array([1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = float((singular * sign).sum() / np.square(centred_s).sum(1).mean())
    return np.hstack([scale * rotation, (mean_t - scale * rotation @ mean_s)[:, None]])


def embed_images(
    url: str, metadata: IJBMetadata, embed: Embed, *, image_size: int, batch_size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings of all images and of their flips, float32 [I, D] each, not normalised."""
    plain, flipped = [], []
    for batch in _batches(url, metadata, image_size, batch_size):
        plain.append(embed(batch))
        flipped.append(embed(np.ascontiguousarray(batch[..., ::-1])))
    return np.concatenate(plain), np.concatenate(flipped)


def _batches(url: str, metadata: IJBMetadata, size: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(metadata.images), batch_size):
        faces = []
        for i in range(start, min(start + batch_size, len(metadata.images))):
            where = storage.join(url, "loose_crop", metadata.images[i])
            try:
                faces.append(align(decode_image(storage.read_bytes(where)), metadata.points[i], size))
            except RecordError as error:
                raise RecordError(f"{where}: {error}") from error
        yield np.stack(faces).transpose(0, 3, 1, 2)


def pool_templates(
    embeddings: NDArray[np.float32], metadata: IJBMetadata
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Template ids [T], sorted, and their unit embeddings [T, D]: media are averaged first, then summed."""
    ids = np.unique(metadata.templates)
    pooled = np.zeros((len(ids), embeddings.shape[1]))
    keys, place = np.unique(np.stack([metadata.templates, metadata.media]), axis=1, return_inverse=True)
    sums = np.zeros((keys.shape[1], embeddings.shape[1]))
    np.add.at(sums, place.ravel(), embeddings)
    means = sums / np.bincount(place.ravel())[:, None]
    np.add.at(pooled, np.searchsorted(ids, keys[0]), means)
    return ids, pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)


def verify_templates(
    plain: NDArray[np.float32],
    flipped: NDArray[np.float32],
    metadata: IJBMetadata,
    *,
    use_flip: bool = True,
    use_norm: bool = True,
    use_faceness: bool = True,
) -> dict[str, float]:
    """TAR at each FAR of 1e-6 to 1e-1.

    Args:
        use_flip: add the flip's embedding.
        use_norm: keep the embeddings' lengths, which weight the images of a template; else make them units first.
        use_faceness: weight images by the detector's score.
    """
    images = plain + flipped if use_flip else plain
    if not use_norm:
        images = images / np.maximum(np.linalg.norm(images, axis=1, keepdims=True), 1e-12)
    if use_faceness:
        images = images * metadata.faceness[:, None].astype(images.dtype)
    ids, templates = pool_templates(images, metadata)
    rows = np.searchsorted(ids, metadata.pairs)
    scores = np.empty(len(rows))
    for start in range(0, len(rows), 100_000):
        part = rows[start : start + 100_000]
        scores[start : start + 100_000] = (templates[part[:, 0]] * templates[part[:, 1]]).sum(1)
    far, tar = roc_curve(-scores, metadata.issame)
    # As the field reads it off: the TAR at the point whose FAR is nearest, the later one where several are.
    return {f"{level:.0e}": float(tar[len(far) - 1 - int(np.argmin(np.abs(far[::-1] - level)))]) for level in FARS}
