"""Identification, 1:N: is the person of a probe among the first found in a gallery, and who is taken for another.

Closed set: share of the mated probes whose person is among the first 1, 5 and 10 of the gallery. Open set: the
threshold is set where a share FPIR of the probes without a mate finds somebody; FNIR is the share of mated probes that
do not find their person first and above it (NIST IR 8197; Maze et al. 2018, IJB-C).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import RecordError

RANKS = (1, 5, 10)
FPIRS = (0.01, 0.1)
_BLOCK = 1024  # probes compared at once
# Templates and the people they show, int64 [T] each.
Protocol = tuple[NDArray[np.int64], NDArray[np.int64]]


def load_protocol(url: str, name: str) -> tuple[list[Protocol], Protocol | None]:
    """Galleries G1 and G2 and the mixed probes of ``url/meta/<set>_1N_*.csv``; none where the files are not there.

    Raises:
        RecordError: a file's first two columns are not whole numbers, template and subject.
    """
    meta = storage.join(url, "meta")
    galleries = [storage.join(meta, f"{name}_1N_gallery_G{number}.csv") for number in (1, 2)]
    probes = storage.join(meta, f"{name}_1N_probe_mixed.csv")
    if not storage.exists(probes):
        return [], None
    return [_read_protocol(gallery) for gallery in galleries if storage.exists(gallery)], _read_protocol(probes)


def _read_protocol(url: str) -> Protocol:
    rows = list(csv.reader(io.StringIO(storage.read_bytes(url).decode(errors="replace"))))[1:]
    if not any(rows):
        raise RecordError(f"{url}: no template in it, below a first line with the names of its columns")
    try:
        # A template has a line for each of its images.
        table = np.unique(np.array([[int(row[0]), int(row[1])] for row in rows if row], dtype=np.int64), axis=0)
        return table[:, 0], table[:, 1]
    except (ValueError, IndexError) as error:
        raise RecordError(f"{url}: a line does not begin with the numbers of template and subject: {error}") from error


def identify_templates(
    ids: NDArray[np.int64], templates: NDArray[np.float64], galleries: list[Protocol], probes: Protocol | None
) -> dict[str, float]:
    """The mean over the galleries of ``identify``; of several also what insightface's scripts print, ``G1+G2 ...``.

    Those put the galleries together, so that every probe has a mate: ranks, and ``identify_together``'s recall.

    Args:
        ids: int64 [T], sorted; ``templates`` float [T, D], units.

    Raises:
        RecordError: a protocol names a template without an image.
    """
    assert probes is not None
    for wanted, _ in [*galleries, probes]:
        if missing := np.setdiff1d(wanted, ids)[:5].tolist():
            raise RecordError(f"the 1:N protocol names templates without an image: {missing}")
    rows = [
        identify(
            templates[np.searchsorted(ids, probes[0])],
            probes[1],
            templates[np.searchsorted(ids, gallery[0])],
            gallery[1],
        )
        for gallery in galleries
    ]
    found = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    if len(galleries) < 2:
        return found
    people = np.concatenate([gallery[1] for gallery in galleries])
    entries = templates[np.searchsorted(ids, np.concatenate([gallery[0] for gallery in galleries]))]
    together = identify_together(templates[np.searchsorted(ids, probes[0])], probes[1], entries, people)
    return found | {f"G1+G2 {name}": value for name, value in together.items()}


def identify_together(
    probes: NDArray[np.float64],
    probe_people: NDArray[np.int64],
    gallery: NDArray[np.float64],
    gallery_people: NDArray[np.int64],
) -> dict[str, float]:
    """``rank-1`` and so on, and ``recall@0.01``, ``recall@0.1`` as insightface's 1:N script has them.

    Recall is the share of the P mated probes that score their person above the impostor pair of rank
    ``ceil(0.01 * P)``: so many pairs of P * G are false there, whichever probes they are of.
    """
    ranks = identify(probes, probe_people, gallery, gallery_people)
    mated = np.isin(probe_people, gallery_people)
    probes, probe_people = probes[mated], probe_people[mated]
    wanted = [max(1, math.ceil(level * len(probes))) for level in FPIRS]
    own, highest = np.empty(len(probes)), np.empty(0)
    for start in range(0, len(probes), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = probes[part] @ gallery.T
        right = probe_people[part, None] == gallery_people[None]
        own[part] = np.where(right, scores, -np.inf).max(1)
        highest = np.sort(np.concatenate([highest, scores[~right]]))[::-1][: max(wanted)]
    found = {name: value for name, value in ranks.items() if name.startswith("rank")}
    for level, count in zip(FPIRS, wanted, strict=True):
        if len(highest) >= count:
            found[f"recall@{level}"] = float((own > highest[count - 1]).mean())
    return found


def identify(
    probes: NDArray[np.float64],
    probe_people: NDArray[np.int64],
    gallery: NDArray[np.float64],
    gallery_people: NDArray[np.int64],
    *,
    ranks: Sequence[int] = RANKS,
    precision: bool = False,
) -> dict[str, float]:
    """``rank-1`` and so on, and ``FNIR@FPIR=...`` where there are probes without a mate.

    Args:
        probes: units, float [P, D]; ``gallery``: units, float [G, D]. A person may be in the gallery several times.
        precision: ``mAP`` too, the mean over the mated probes of the mean, over their mates, of the share of mates
            among the entries up to that one.
    """
    mated = np.isin(probe_people, gallery_people)
    place = np.empty(len(probes), dtype=np.int64)  # of the best entry of the right person, from 0
    best = np.empty(len(probes))
    own, average = np.empty(len(probes)), np.zeros(len(probes))
    for start in range(0, len(probes), _BLOCK):
        part = slice(start, start + _BLOCK)
        scores = probes[part] @ gallery.T
        right = probe_people[part, None] == gallery_people[None]
        own[part] = np.where(right, scores, -np.inf).max(1)
        # An impostor with the same score counts as before: a constant embedding finds nobody.
        place[part] = ((scores >= own[part, None]) & ~right).sum(1)
        best[part] = scores.max(1)
        if precision:
            average[part] = [_average_precision(*row) for row in zip(scores, right, strict=True)]
    result = {f"rank-{rank}": float((place[mated] < rank).mean()) if mated.any() else 0.0 for rank in ranks}
    if precision:
        result["mAP"] = float(average[mated].mean()) if mated.any() else 0.0
    strangers = np.sort(best[~mated])[::-1]
    for level in FPIRS if len(strangers) and mated.any() else ():
        allowed = int(level * len(strangers) + 1e-9)
        threshold = strangers[allowed] if allowed < len(strangers) else -np.inf
        missed = (own[mated] <= threshold) | (place[mated] > 0)
        result[f"FNIR@FPIR={level}"] = float(missed.mean())
    return result


def _average_precision(scores: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Of one probe: the k-th best mate is at place k + the number of others that score as much or more."""
    mates = np.sort(scores[right])[::-1]
    others = np.sort(scores[~right])
    before = len(others) - np.searchsorted(others, mates, side="left")
    order = np.arange(1, len(mates) + 1)
    return float((order / (order + before)).mean()) if len(mates) else 0.0
