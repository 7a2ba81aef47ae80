"""Turns, scales and moves a face so that its eyes, nose and mouth lie where every published model expects them."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app import storage
from app.data.prepare.errors import PrepareError
from app.data.prepare.photograph import PhotographError, same_name
from app.face_points import TEMPLATE
from app.parsing import ParseError, parse_json

Points = NDArray[np.float64]  # [5, 2]: left eye, right eye, nose, left and right corner of the mouth; x, y in pixels
Several = Literal["largest", "refuse"]

COLUMNS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
# Root mean square, in pixels of 112: a face in profile stays below it, left and right exchanged do not.
MAX_RESIDUAL = 14.0


def similarity_transform(points: Points, target: Points) -> tuple[complex, complex, float]:
    """The turn and scale ``a`` and shift ``b`` that bring points nearest to a target, and the distance that is left.

    With points as complex numbers z and targets w, a similarity without reflection is w = a z + b. Least squares:
    b = mean(w) - a mean(z), and a = sum(conj(z') w') / sum(|z'|^2) for the centred z' and w'.

    Args:
        points, target: float64 [N, 2].

    Returns:
        ``a``, ``b`` and the root mean square distance in units of the target.

    Raises:
        PrepareError: the points are all one.
    """
    z, w = points[:, 0] + 1j * points[:, 1], target[:, 0] + 1j * target[:, 1]
    centred, wanted = z - z.mean(), w - w.mean()
    spread = float(np.sum(np.abs(centred) ** 2))
    if not math.isfinite(spread) or spread < 1e-9:
        raise PrepareError("the five points are all one, or no numbers")
    a = complex(np.sum(np.conj(centred) * wanted) / spread)
    b = complex(w.mean() - a * z.mean())
    return a, b, float(np.sqrt(np.mean(np.abs(a * z + b - w) ** 2)))


def align_face(image: Image.Image, points: Points, size: int = 112) -> Image.Image:
    """The face in ``size`` x ``size`` pixels, its five points where the template has them; black beyond the picture.

    Args:
        image: RGB.
        points: float64 [5, 2], in pixels of ``image``; whole numbers are the middle of a pixel.

    Raises:
        PhotographError: no turned and scaled face has its points like this.
    """
    scale = size / 112
    try:
        aligned, (_, _, residual) = bring_to(image, points + 0.5, (TEMPLATE + 0.5) * scale, size)
    except PrepareError as error:
        raise PhotographError("points of no face", str(error)) from None
    if residual > MAX_RESIDUAL * scale:
        raise PhotographError(
            "points of no face",
            f"they miss the template by {residual / scale:.0f} pixels of 112: left is the viewer's left, and the order "
            f"is {', '.join(COLUMNS)}",
        )
    return aligned


def bring_to(
    image: Image.Image, points: Points, target: Points, size: int
) -> tuple[Image.Image, tuple[complex, complex, float]]:
    """``size`` x ``size`` pixels in which points come nearest to a target, and the transform; see there.

    Args:
        points, target: float64 [N, 2], counted from the corner of a pixel, as Pillow does.
    """
    a, b, residual = similarity_transform(points, target)
    scale = a
    if (factor := int(1 / abs(a))) > 1:  # Pillow's transform reads single pixels: average them before
        image = image.reduce(factor)
        scale = a * factor
    back = 1 / scale
    origin = -b * back
    data = (back.real, -back.imag, origin.real, back.imag, back.real, origin.imag)
    brought = image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return brought, (a, b, residual)


class FaceFinder(Protocol):
    """Tells where the face of a picture is: a landmark file, or a detector."""

    def choose(self, name: str, picture: Image.Image, several: Several) -> Points:
        """The points of a picture's face.

        Args:
            name: its path below the folder of photographs.
            picture: RGB, upright, at its full size.
            several: what to do about several faces.

        Raises:
            PhotographError: it has none, or several and these are refused.
        """
        ...


def choose_face(faces: Sequence[Points], several: Several, missing: str) -> Points:
    """The largest of some faces; see ``FaceFinder.choose``. ``missing`` says more where there is none."""
    if not faces:
        raise PhotographError("without a face", missing)
    if len(faces) > 1 and several == "refuse":
        raise PhotographError("several faces", f"{len(faces)} faces")
    return max(faces, key=lambda points: float(np.prod(np.ptp(points, axis=0))))


class Landmarks:
    """The five points of the faces in each picture, by its path below the folder of photographs; a ``FaceFinder``."""

    def __init__(self, url: str, faces: dict[str, list[Points]]) -> None:
        self.url, self._faces = url, faces
        self._ends: dict[str, list[str]] = {}  # paths of another machine by their last folder and name
        for path in faces:
            self._ends.setdefault(_last_two(path), []).append(path)

    def __len__(self) -> int:
        return len(self._faces)

    def choose(self, name: str, picture: Image.Image, several: Several) -> Points:  # noqa: ARG002
        """See ``FaceFinder``."""
        missing = f"{storage.redact(self.url)} has no points for it"
        return choose_face(self._find(same_name(name)), several, missing)

    def _find(self, name: str) -> list[Points]:
        if name in self._faces:
            return self._faces[name]
        longer = [path for path in self._ends.get(_last_two(name), []) if path.endswith(f"/{name}")]
        return self._faces[longer[0]] if len(longer) == 1 else []


def _last_two(path: str) -> str:
    return "/".join(path.split("/")[-2:])


def _plain_path(name: str) -> str:
    return same_name(name.replace("\\", "/").removeprefix("./"))


LONGEST_LINE = 20_000  # characters; names and ten numbers have a few hundred


def read_landmarks(url: str) -> Landmarks:
    """Read a landmark file.

    - ``.json``: ``{"anna/1.jpg": [[x, y], ... five points]}``; a list of such lists where a picture has several faces,
      ``[]`` or ``null`` where it has none
    - otherwise a table of 11 columns, separated by commas, semicolons, tabs or spaces: the path, then x and y of each
      point. A first line with their names, or ``x1,y1,...y5``, may give another order; CelebA's ``list_landmarks`` is
      read as it is. A picture with several faces has several lines, one without a face none or one with empty cells.

    Paths may be those of another machine that end in the path below the folder of photographs, with either slash.

    Points: left eye, right eye, nose, left and right corner of the mouth; left is the viewer's; in pixels of the
    picture as a viewer shows it.

    Raises:
        PrepareError: it is neither; names the line or the picture.
    """
    text = decode_text(url, storage.read_bytes(url))
    faces = _from_json(url, text) if url.lower().endswith(".json") else _from_table(url, text)
    if not faces:
        raise PrepareError(f"{storage.redact(url)}: no picture in it")
    return Landmarks(url, faces)


def decode_text(url: str, data: bytes) -> str:
    """Text with or without a byte order mark.

    Raises:
        PrepareError: it is not UTF-8, nor UTF-16 with a mark.
    """
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PrepareError(f"{storage.redact(url)}: line {line}: not UTF-8: save the file as UTF-8") from None


def _from_json(url: str, text: str) -> dict[str, list[Points]]:
    try:
        content = parse_json(text.encode("utf-8", "surrogatepass"), url, limit=1 << 30, bytes_a_value=2)
    except ParseError as error:
        raise PrepareError(str(error)) from None
    if not isinstance(content, dict):
        raise PrepareError(f"{storage.redact(url)}: expected an object of picture: points")
    found: dict[str, list[Points]] = {}
    for name, value in content.items():
        try:
            numbers = np.asarray([] if value is None else value, dtype=np.float64)
            faces = numbers.reshape(0 if numbers.size == 0 else -1, 5, 2)
        except (ValueError, TypeError, OverflowError):
            raise PrepareError(f"{storage.redact(url)}: {name[:80]!r}: expected five points [x, y]") from None
        found.setdefault(_plain_path(name), []).extend(_sound(url, repr(name[:80]), face) for face in faces)
    return found


def _from_table(url: str, text: str) -> dict[str, list[Points]]:
    found: dict[str, list[Points]] = {}
    order = list(range(10))
    for number, line in enumerate(text.splitlines(), start=1):
        if len(line) > LONGEST_LINE:
            raise PrepareError(f"{storage.redact(url)}: line {number}: {len(line)} characters: not a table of points")
        row = _columns(line)
        if not line.strip() or line.startswith("#") or (not found and len(row) == 1 and row[0].isdigit()):
            continue
        if not found and number <= 2 and (named := _order_of_header(row)):
            order = named
            continue
        name = _plain_path(row[0])
        if len(row) == 11 and not any(row[1:]):  # a detector that found none
            found.setdefault(name, [])
            continue
        try:
            values = [float(value.replace(",", ".")) for value in row[1:]]  # some languages write 38,5
            if len(values) != 10:
                raise ValueError
        except ValueError:
            raise PrepareError(
                f"{storage.redact(url)}: line {number}: expected a path and ten numbers, found {line[:60]!r}"
            ) from None
        points = np.array([values[column] for column in order]).reshape(5, 2)
        found.setdefault(name, []).append(_sound(url, f"line {number}", points))
    return found


def _columns(line: str) -> list[str]:
    for mark in ("\t", ";", ","):
        if mark in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True))]
    words = line.rsplit(maxsplit=10)
    numeric = len(words) == 11 and all(re.fullmatch(r"[-+.\deE]+", word) for word in words[1:])
    return [words[0].strip(), *words[1:]] if numeric else line.split()


def _order_of_header(row: list[str]) -> list[int]:
    """Which column holds x and y of each point; empty where the row is no header of these."""
    names = [re.sub(r"[^a-z]", "", cell.lower()) for cell in row]
    names = names if len(names) == 11 else ["", *names]  # CelebA names no column for the path
    if numbered := _order_of_numbers(row[-10:]):
        return numbered
    order = []
    for point in COLUMNS:
        for axis in "xy":
            words = [*point.split("_"), axis]
            fitting = [i for i, name in enumerate(names[1:]) if all(w in name for w in words) and name.endswith(axis)]
            if len(fitting) != 1:
                return []
            order += fitting
    return order


def _order_of_numbers(row: list[str]) -> list[int]:
    """The same of columns that only number the points, as x1, y1... or landmark_0_x; empty where they do not."""
    place: dict[tuple[int, str], int] = {}
    for column, cell in enumerate(row):
        axis, numbers = re.sub(r"[^xy]", "", cell.lower()), re.findall(r"[0-9]+", cell)
        if axis not in ("x", "y") or len(numbers) != 1:
            return []
        place[int(numbers[0]), axis] = column
    whole = len(place) == 10 and len({number for number, _ in place}) == 5
    return [place[key] for key in sorted(place)] if whole else []


def _sound(url: str, where: str, points: Any) -> Points:
    if not np.isfinite(points).all():
        raise PrepareError(f"{storage.redact(url)}: {where}: a coordinate is not a number")
    return np.asarray(points, dtype=np.float64)
