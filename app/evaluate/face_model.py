"""A trained model as a function from pictures to embeddings, for programs and notebooks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import storage
from app.data.prepare.photograph import PhotographError, fit_square, open_photograph
from app.device import Device, detect_device
from app.evaluate.model_source import OpenedModel, open_model

# URL or path, the bytes of a file, a PIL image, or RGB uint8 [H, W, 3].
Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]


class FaceModel:
    """Embeds pictures of aligned faces; made by ``load_model``.

    ``about`` is what is known of the model; ``image_size`` the pixels of the square that it sees.
    """

    def __init__(self, opened: OpenedModel) -> None:
        self._embed, self.image_size, self.about = opened.embed, opened.image_size, dict[str, Any](opened.about)

    def embed(self, pictures: Picture | Iterable[Picture], *, flip: bool = False, batch_size: int = 64) -> Any:
        """Embeddings of unit length, float32 [N, D]; the cosine of two faces is the product of their rows.

        A picture that is not a square is padded; it is turned as its EXIF says. Align faces as in training.

        Args:
            pictures: one picture or many; see ``Picture``. An array [N, H, W, 3] is N pictures.
            flip: add the embedding of the mirrored picture, as verification does.
            batch_size: pictures at once.

        Raises:
            PhotographError: a picture cannot be read; names it.
            StorageError: it is not there.
        """
        rows: list[NDArray[np.float32]] = []
        batch: list[NDArray[np.uint8]] = []
        for number, picture in enumerate(_listed(pictures)):
            batch.append(self._pixels(picture, number))
            if len(batch) == batch_size:
                rows.append(self._embed_batch(batch, flip))
                batch = []
        if batch:
            rows.append(self._embed_batch(batch, flip))
        if not rows:
            raise PhotographError("no picture", "embed was given none")
        return np.concatenate(rows)

    def similarity(self, first: Picture, second: Picture) -> float:
        """Cosine between two faces, in [-1, 1]; the squared distance of verification is 2 - 2 cosine."""
        one, two = self.embed([first, second])
        return float(one @ two)

    def _embed_batch(self, batch: Sequence[NDArray[np.uint8]], flip: bool) -> NDArray[np.float32]:
        images = np.ascontiguousarray(np.stack(batch).transpose(0, 3, 1, 2))
        raw = self._embed(images)
        if flip:
            raw = raw + self._embed(np.ascontiguousarray(images[..., ::-1]))
        norms = np.linalg.norm(raw, axis=1, keepdims=True)
        return np.asarray(raw / np.maximum(norms, 1e-12), dtype=np.float32)

    def _pixels(self, picture: Picture, number: int) -> NDArray[np.uint8]:
        name = f"picture {number}"
        if isinstance(picture, str | os.PathLike):
            name = os.fspath(picture)
            picture = storage.read_bytes(name)
        if isinstance(picture, bytes):
            try:
                picture = open_photograph(picture)
            except PhotographError as error:
                raise PhotographError(f"{storage.redact(name)}: {error.reason}", error.detail) from error
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
                raise PhotographError(name, f"expected RGB uint8 [H, W, 3], got {picture.dtype} {list(picture.shape)}")
            picture = Image.fromarray(picture)
        return np.asarray(fit_square(picture.convert("RGB"), self.image_size))


def load_model(
    url: str | os.PathLike[str],
    *,
    backbone: str = "",
    embedding_size: int = 512,
    precision: str = "fp32",
    device: Device | None = None,
) -> FaceModel:
    """Open a model: a run folder, its ``/checkpoints``, a ``.pt``, ``.pth`` or ``.onnx``, at any URL.

    Args:
        url: of the model.
        backbone, embedding_size: of a bare state dict, which does not tell.
        precision: fp32, bf16 or fp16.
        device: the one that is found, when left out.

    Raises:
        AppError: there is no such model, or it is damaged; says what to do.
    """
    options: dict[str, Any] = {"backbone": backbone, "embedding_size": embedding_size, "precision": precision}
    return FaceModel(open_model(os.fspath(url), device or detect_device(), **options))


def _listed(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    single = isinstance(pictures, str | bytes | os.PathLike | Image.Image)
    if single or (isinstance(pictures, np.ndarray) and pictures.ndim == 3):
        return [pictures]  # type: ignore[list-item]
    return pictures  # type: ignore[return-value]
