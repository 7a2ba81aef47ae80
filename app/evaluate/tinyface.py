"""TinyFace (Cheng et al. 2018): 1:N identification of small faces among 153,428 distractors.

The published layout: ``Testing_Set/Probe``, ``Gallery_Match`` and ``Gallery_Distractor``; a picture of the first two is
called ``<person>_<number>.jpg``, a distractor shows nobody who is looked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from app import storage
from app.data.recordio import RecordError
from app.evaluate.face_model import FaceModel
from app.evaluate.identification import identify

RANKS = (1, 5, 10, 20, 50)


def load_part(model: FaceModel, url: str, *, batch_size: int = 64) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Person and embedding (with its flip's) of each picture of ``Probe`` or ``Gallery_Match``, int64 [N], [N, D].

    Raises:
        RecordError: a picture cannot be read, or its name does not begin with the person's number.
    """
    names, embeddings, left_out = model.embed_folder(url, flip=True, batch_size=batch_size)
    if left_out:
        raise RecordError(
            f"{storage.redact(url)}/{left_out[0][0]}: {left_out[0][1]}: figures would be others without it"
        )
    people = []
    for name in names:
        person = name.rsplit("/", 1)[-1].partition("_")[0]
        if not person.isdecimal() or len(person) > 18:
            raise RecordError(f"{storage.redact(url)}/{name}: expected <person>_<number>.jpg, the person a number")
        people.append(int(person))
    return np.array(people, dtype=np.int64), embeddings


def identify_tinyface(model: FaceModel, url: str, *, batch_size: int = 64) -> dict[str, float]:
    """``rank-1`` to ``rank-50`` of the probes, and ``mAP``, as its authors report; see ``identification.identify``.

    Args:
        url: the folder with ``Testing_Set``, or that folder itself. Without ``Gallery_Distractor`` the gallery is the
            matches alone, and figures are higher than the published protocol's.
    """
    if "Testing_Set" in storage.list_names(url):
        url = storage.join(url, "Testing_Set")
    found = storage.list_names(url)
    if missing := {"Probe", "Gallery_Match"} - set(found):
        raise RecordError(f"{storage.redact(url)}: no {' and no '.join(sorted(missing))} there: not TinyFace's layout")
    probe_people, probes = load_part(model, storage.join(url, "Probe"), batch_size=batch_size)
    people, gallery = load_part(model, storage.join(url, "Gallery_Match"), batch_size=batch_size)
    if "Gallery_Distractor" in found:
        distractor = storage.join(url, "Gallery_Distractor")
        _, others, _ = model.embed_folder(distractor, flip=True, batch_size=batch_size)
        people = np.concatenate([people, np.full(len(others), -1, dtype=np.int64)])
        gallery = np.concatenate([gallery, others])
    result = identify(
        probes.astype(np.float64), probe_people, gallery.astype(np.float64), people, ranks=RANKS, precision=True
    )
    return {"probes": float(len(probes)), "gallery": float(len(gallery)), **result}
