"""A trained model as a function from pictures to embeddings, for programs and notebooks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import storage
from app.data.prepare.alignment import align_face
from app.data.prepare.folder import Align, FaceOptions
from app.data.prepare.photograph import (
    ENDINGS,
    PhotographError,
    as_viewed,
    ending,
    fit_square,
    is_system_file,
    open_photograph,
)
from app.data.prepare.source import Source
from app.device import Device, detect_device
from app.evaluate.model_source import Foreign, OpenedModel, open_model

# URL or path, the bytes of a file, a PIL image, or RGB uint8 [H, W, 3].
Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[np.uint8]


class FaceModel:
    """Embeds pictures of aligned faces; made by ``load_model``.

    ``about`` is what is known of the model; ``image_size`` the pixels of the square that it sees.
    """

    def __init__(self, opened: OpenedModel, align: Align = "none") -> None:
        self._embed, self.image_size, self.about = opened.embed, opened.image_size, dict[str, Any](opened.about)
        self._finder = FaceOptions(align=align).find_faces()

    def embed(self, pictures: Picture | Iterable[Picture], *, flip: bool = False, batch_size: int = 64) -> Any:
        """Embeddings of unit length, float32 [N, D]; the cosine of two faces is the product of their rows.

        A picture that is not a square is padded; it is turned as its EXIF says. Faces must be aligned as in training:
        they are, or the model was opened with ``align="detector"``.

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
            batch.append(self._pixels(picture, f"picture {number}"))
            if len(batch) == batch_size:
                rows.append(self._embed_batch(batch, flip))
                batch = []
        if batch:
            rows.append(self._embed_batch(batch, flip))
        if not rows:
            raise PhotographError("no picture", "embed was given none")
        return np.concatenate(rows)

    def embed_folder(
        self, url: str | os.PathLike[str], *, flip: bool = False, batch_size: int = 64
    ) -> tuple[list[str], NDArray[np.float32], list[tuple[str, str]]]:
        """Embeddings of all pictures at any depth below a folder.

        Returns:
            Their names below the folder, their embeddings (see ``embed``), and the files that were left out, each with
            the reason.

        Raises:
            PhotographError: no picture is left.
            StorageError: the folder is not there.
        """
        source = Source(os.fspath(url))
        files = [
            file.name
            for file in source.files
            if ending(file.name) in ENDINGS and file.regular and not is_system_file(file.name)
        ]

        def load(name: str) -> NDArray[np.uint8] | str:
            try:
                return self._pixels(source.read(name), name)
            except (PhotographError, storage.StorageError) as error:
                if error.transient:
                    raise
                return str(error).removeprefix(f"{storage.redact(name)}: ")

        names: list[str] = []
        rows: list[NDArray[np.float32]] = []
        left_out: list[tuple[str, str]] = []
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, len(files), batch_size):
                part = files[start : start + batch_size]
                loaded = list(zip(part, pool.map(load, part), strict=True))
                left_out += [(name, pixels) for name, pixels in loaded if isinstance(pixels, str)]
                if batch := [pixels for _, pixels in loaded if not isinstance(pixels, str)]:
                    names += [name for name, pixels in loaded if not isinstance(pixels, str)]
                    rows.append(self._embed_batch(batch, flip))
        if not rows:
            first = f"; {left_out[0][0]}: {left_out[0][1]}" if left_out else ""
            raise PhotographError("no picture", f"{storage.redact(os.fspath(url))}: none could be taken{first}")
        return names, np.concatenate(rows), left_out

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

    def _pixels(self, picture: Picture, name: str) -> NDArray[np.uint8]:
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
        if not isinstance(picture, Image.Image):
            kind = f"{type(picture).__module__}.{type(picture).__qualname__}".removeprefix("builtins.")
            raise PhotographError(
                name, f"a path, bytes, a PIL image or an array uint8 [H, W, 3] is expected, got {kind}"
            )
        try:
            picture = as_viewed(picture)
        except Exception as error:  # Pillow reads an opened file only now
            raise PhotographError(f"{name}: unreadable", f"{type(error).__name__}: {error}") from error
        if self._finder is None:
            return np.asarray(fit_square(picture, self.image_size))
        try:
            return np.asarray(align_face(picture, self._finder.choose("", picture, "largest"), self.image_size))
        except PhotographError as error:
            raise PhotographError(f"{storage.redact(name)}: {error.reason}", error.detail) from error


def load_model(
    url: str | os.PathLike[str],
    *,
    backbone: str = "",
    embedding_size: int = 512,
    precision: str = "fp32",
    align: Align = "none",
    colours: str = "RGB",
    device: Device | None = None,
) -> FaceModel:
    """Open a model: a run folder, its ``/checkpoints``, a ``.onnx``, or weights in a file, at any URL.

    Args:
        url: of the model.
        backbone, embedding_size: of a bare state dict, which does not tell.
        precision: fp32, bf16 or fp16.
        align: ``detector`` finds the largest face of each picture and aligns it (extra [detect]).
        colours: order of colours that a bare state dict was trained on, RGB or BGR; pictures are given in RGB.
        device: the one that is found, when left out.

    Raises:
        AppError: there is no such model, or it is damaged; says what to do.
    """
    options: dict[str, Any] = {"backbone": backbone, "embedding_size": embedding_size, "precision": precision}
    options["foreign"] = Foreign(colours)
    return FaceModel(open_model(os.fspath(url), device or detect_device(), **options), align)


def _listed(pictures: Picture | Iterable[Picture]) -> Iterable[Picture]:
    single = isinstance(pictures, str | bytes | os.PathLike | Image.Image) or not isinstance(pictures, Iterable)
    if single or (isinstance(pictures, np.ndarray) and pictures.dtype.kind not in "OSU" and pictures.ndim < 4):
        return [pictures]  # type: ignore[list-item]
    return pictures  # type: ignore[return-value]
