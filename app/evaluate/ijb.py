"""IJB-B and IJB-C 1:1 verification from the published metadata (Whitelam et al. 2017; Maze et al. 2018).

The layout is the one that the field passes around: ``meta/<set>_face_tid_mid.txt`` (image, template, media),
``meta/<set>_template_pair_label.txt`` (two templates, 1 or 0), ``meta/<set>_name_5pts_score.txt`` (image, five or 68
points, faceness), and the images in ``loose_crop/``. Images are aligned by their points to the ArcFace template.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from app import storage
from app.data.decode import decode_image
from app.data.recordio import RecordError
from app.evaluate.alignment import align, five_points
from app.evaluate.verification import Embed
from app.world import World

_BOM = b"\xef\xbb\xbf"
_PAIR_BLOCK = 4 << 20  # bytes of the list of pairs parsed at once
_SCORE_BLOCK = 20_000  # pairs scored at once
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
    faces = list(_rows(storage.join(url, "meta", f"{name}_face_tid_mid.txt"), (3,)))
    points = list(_rows(storage.join(url, "meta", f"{name}_name_5pts_score.txt"), (12, 138)))
    if len(faces) != len(points):
        raise RecordError(f"{url}: {len(faces)} images in face_tid_mid, {len(points)} in name_5pts_score")
    try:
        ids = np.array([[int(row[1]), int(row[2])] for row in faces], dtype=np.int64)
        numbers = [np.array(row[1:], dtype=np.float64) for row in points]
    except (ValueError, OverflowError) as error:
        raise RecordError(f"{url}: meta/{name}_*.txt: a column is not a number ({error})") from error
    for face, row, values in zip(faces, points, numbers, strict=True):
        if face[0].rsplit("/", 1)[-1] != row[0].rsplit("/", 1)[-1]:
            raise RecordError(f"{url}: {name}_face_tid_mid has {face[0]!r} where name_5pts_score has {row[0]!r}")
        if not np.isfinite(values).all():
            raise RecordError(f"{url}: meta/{name}_name_5pts_score.txt: {row[0]}: a number is not finite")
    if odd := [row[0] for row in points if row[0].startswith("/") or ".." in row[0].split("/")]:
        raise RecordError(f"{url}: meta/{name}_name_5pts_score.txt: {odd[0]!r} lies outside loose_crop")
    pairs, issame = _read_pairs(storage.join(url, "meta", f"{name}_template_pair_label.txt"))
    if missing := np.setdiff1d(pairs, ids[:, 0])[:5].tolist():
        raise RecordError(f"{url}: pairs name templates without an image: {missing}")
    return IJBMetadata(
        [row[0] for row in points],
        np.stack([five_points(row[:-1].reshape(-1, 2)) for row in numbers]),
        np.array([row[-1] for row in numbers]),
        ids[:, 0],
        ids[:, 1],
        pairs,
        issame,
    )


def _rows(url: str, columns: tuple[int, ...]) -> Iterator[list[str]]:
    """The rows of a table whose lines have one of these numbers of columns, all lines the same."""
    width = 0
    for number, line in enumerate(storage.read_bytes(url).removeprefix(_BOM).split(b"\n"), start=1):
        row = line.decode(errors="replace").split()
        if not row:
            continue
        if len(row) not in columns or len(row) != (width or len(row)):
            raise RecordError(f"{url}: line {number} has {len(row)} columns, not {width or columns[0]}")
        width = len(row)
        yield row
    if not width:
        raise RecordError(f"{url}: empty")


def _read_pairs(url: str) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Template ids [P, 2] and labels [P]; IJB-C has 15.7 million lines, parsed a block at a time."""
    data, start, line = storage.read_bytes(url).removeprefix(_BOM), 0, 1
    found: list[NDArray[np.int64]] = []
    while start < len(data):
        stop = data.find(b"\n", start + _PAIR_BLOCK) + 1 or len(data)
        block = data[start:stop]
        try:
            numbers = np.array(block.split(), dtype=np.int64)
        except (ValueError, OverflowError):
            numbers = np.empty(0, np.int64)
        lines = [row for row in block.split(b"\n") if row.strip()]
        if len(numbers) != 3 * len(lines) or any(len(row.split()) != 3 for row in lines):
            _tell_bad_pair(url, block, line)
        found.append(numbers.reshape(-1, 3))
        start, line = stop, line + block.count(b"\n")
    if not sum(map(len, found)):
        raise RecordError(f"{url}: empty")
    table = np.concatenate(found)
    return table[:, :2], table[:, 2] == 1


def _tell_bad_pair(url: str, block: bytes, line: int) -> None:
    for number, row in enumerate(block.split(b"\n"), start=line):
        words = row.split()
        if words and len(words) != 3:
            raise RecordError(f"{url}: line {number} has {len(words)} columns, not 3")
        if not all(word.lstrip(b"-").isdigit() and len(word) < 19 for word in words):
            raise RecordError(f"{url}: line {number} has {row[:60]!r}, not two template ids and a label")


def embed_images(
    url: str,
    metadata: IJBMetadata,
    embed: Embed,
    *,
    image_size: int,
    batch_size: int,
    world: World | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Embeddings of all images and of their flips, float32 [I, D] each, not normalised.

    Args:
        world: its ranks share the images out, and all get the result.
        progress: called with the number of images that this rank has done.
    """
    count, rank, size = len(metadata.images), world.rank if world else 0, world.size if world else 1
    share = range(count * rank // size, count * (rank + 1) // size)
    done, plain, flipped = 0, [], []
    for batch in _batches(url, metadata, share, image_size, batch_size):
        plain.append(embed(batch))
        flipped.append(embed(np.ascontiguousarray(batch[..., ::-1])))
        done += len(batch)
        if progress is not None:
            progress(done)
    both = np.concatenate(plain), np.concatenate(flipped)
    if world is None or size == 1:
        return both
    return _gather(both[0], count, world), _gather(both[1], count, world)


def _gather(own: NDArray[np.float32], count: int, world: World) -> NDArray[np.float32]:
    padded = torch.zeros(-(-count // world.size), own.shape[1])
    padded[: len(own)] = torch.from_numpy(own)
    gathered = world.all_gather(padded).numpy()
    sizes = [count * (rank + 1) // world.size - count * rank // world.size for rank in range(world.size)]
    return np.concatenate([gathered[rank, :size] for rank, size in enumerate(sizes)])


def _batches(url: str, metadata: IJBMetadata, share: range, size: int, batch_size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(share.start, share.stop, batch_size):
        faces = []
        for i in range(start, min(start + batch_size, share.stop)):
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


def combine(
    plain: NDArray[np.float32],
    flipped: NDArray[np.float32],
    metadata: IJBMetadata,
    *,
    use_flip: bool = True,
    use_norm: bool = True,
    use_faceness: bool = True,
) -> NDArray[np.float32]:
    """One embedding an image, float32 [I, D].

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
    return images


def score_pairs(
    ids: NDArray[np.int64], templates: NDArray[np.float64], pairs: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Cosines of pairs of templates, float32 [P], a block of pairs at a time."""
    units = templates.astype(np.float32)
    scores = np.empty(len(pairs), dtype=np.float32)
    for start in range(0, len(pairs), _SCORE_BLOCK):
        rows = np.searchsorted(ids, pairs[start : start + _SCORE_BLOCK])
        scores[start : start + _SCORE_BLOCK] = np.einsum("nd,nd->n", units[rows[:, 0]], units[rows[:, 1]])
    return scores


def tar_at_fars(scores: NDArray[np.float32], issame: NDArray[np.bool_]) -> dict[str, float]:
    """TAR at the FAR nearest to each level; of two as near, and of several TARs, the larger.

    The FARs that thresholds can reach are k / N for every k at which the sorted impostor scores fall; there, the
    threshold may sink to just above the next impostor. Two sorts in place, so that 15.7 million pairs need no curve.
    """
    impostors, genuine = np.sort(scores[~issame]), np.sort(scores[issame])
    count, result = len(impostors), {}
    falls = np.flatnonzero(impostors[1:] != impostors[:-1]) + 1  # from below: the first of each distinct score
    reachable = np.concatenate([[0], count - falls[::-1], [count]]) if count else np.zeros(1, np.int64)
    rates = reachable / max(1, count)
    for level in FARS:
        distance = np.abs(rates - level)
        accepted = int(reachable[len(rates) - 1 - int(np.argmin(distance[::-1]))])
        above = 0 if accepted == count else np.searchsorted(genuine, impostors[count - accepted - 1], side="right")
        result[f"{level:.0e}"] = float((len(genuine) - above) / max(1, len(genuine)))
    return result
