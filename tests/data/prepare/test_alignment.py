"""Five points bring a face to the template, whatever its turn, size and place in the photograph."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app import prepare
from app.data.bin_sets import load_set
from app.data.dataset import open_dataset
from app.data.decode import decode_image
from app.data.prepare.alignment import COLUMNS, align_face, read_landmarks, similarity_transform
from app.data.prepare.folder import FaceOptions, FolderOptions, prepare_folder
from app.data.prepare.orl import PrepareError
from app.data.prepare.photograph import PhotographError
from app.data.prepare.tools import read_all
from app.face_points import TEMPLATE
from tests.data.prepare.pictures import encode, put, scene

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)]


def turned(angle: float, scale: float, x: float, y: float) -> np.ndarray:
    """The template's points under a similarity."""
    rotation = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return TEMPLATE @ rotation.T + (x, y)


def dots(points: np.ndarray, size: tuple[int, int], radius: float) -> Image.Image:
    """A grey picture with a disc of its own colour at each point, its edge smooth."""
    pixels = np.full((size[1], size[0], 3), 90.0)
    y, x = np.mgrid[: size[1], : size[0]]
    for point, colour in zip(points, COLOURS, strict=True):
        share = np.clip(radius + 0.5 - np.hypot(x - point[0], y - point[1]), 0, 1)[..., None]
        pixels += share * (np.array(colour) - pixels)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def centres(image: Image.Image) -> np.ndarray:
    """Where each colour's disc is, [5, 2]."""
    pixels = np.asarray(image, dtype=int)
    found = []
    for colour in COLOURS:
        rows, columns = np.nonzero(np.abs(pixels - colour).sum(axis=2) < 150)
        found.append((columns.mean(), rows.mean()))
    return np.array(found)


@settings(max_examples=40, deadline=None)
@given(angle=st.floats(-3.1, 3.1), scale=st.floats(0.01, 100), x=st.floats(-1e3, 1e3), y=st.floats(-1e3, 1e3))
def test_the_transform_is_the_inverse_of_the_one_that_made_the_points(
    angle: float, scale: float, x: float, y: float
) -> None:
    a, b, residual = similarity_transform(turned(angle, scale, x, y), TEMPLATE)
    assert abs(a) == pytest.approx(1 / scale, rel=1e-6)
    assert np.angle(a * np.exp(1j * angle)) == pytest.approx(0, abs=1e-6)
    assert residual < 1e-6 * max(1.0, (abs(x) + abs(y)) / scale)
    z = turned(angle, scale, x, y) @ (1, 1j)
    assert np.allclose(a * z + b, TEMPLATE @ (1, 1j), atol=1e-4)


def test_noisy_points_are_fitted_as_well_as_by_any_other_similarity() -> None:
    generator = np.random.default_rng(0)
    points = turned(0.3, 2.5, 40, 60) + generator.normal(0, 3, (5, 2))
    z, w = points @ (1, 1j), TEMPLATE @ (1, 1j)
    a, b, residual = similarity_transform(points, TEMPLATE)
    # The normal equations of the same least squares, solved by numpy in real numbers.
    rows = np.concatenate(
        [
            np.stack([points[:, 0], -points[:, 1], np.ones(5), np.zeros(5)], axis=1),
            np.stack([points[:, 1], points[:, 0], np.zeros(5), np.ones(5)], axis=1),
        ]
    )
    solution, *_ = np.linalg.lstsq(rows, np.concatenate([TEMPLATE[:, 0], TEMPLATE[:, 1]]), rcond=None)
    assert np.allclose([a.real, a.imag, b.real, b.imag], solution)
    assert residual == pytest.approx(np.sqrt(np.mean(np.abs(a * z + b - w) ** 2)))


@pytest.mark.parametrize("size", [112, 64, 224])
@pytest.mark.parametrize(("angle", "scale"), [(0, 1), (0.5, 1), (-1.2, 2), (3.1, 1.5), (0.2, 4.7), (0, 0.6)])
def test_the_points_of_the_picture_lie_on_the_template(angle: float, scale: float, size: int) -> None:
    points = turned(angle, scale, 0, 0)
    points = points - points.min(axis=0) + 40
    extent = tuple(int(value) + 40 for value in points.max(axis=0))
    aligned = align_face(dots(points, extent, 5 * scale), points, size)  # type: ignore[arg-type]
    assert aligned.size == (size, size)
    assert np.abs(centres(aligned) - ((TEMPLATE + 0.5) * size / 112 - 0.5)).max() < 0.6 * max(1, size / 112 / scale)


def test_exchanged_sides_and_points_that_are_one_are_refused() -> None:
    image = scene(1, 200, 200)
    swapped = turned(0, 1, 30, 30)[[1, 0, 2, 4, 3]]
    with pytest.raises(PhotographError, match="left is the viewer's left"):
        align_face(image, swapped)
    with pytest.raises(PhotographError, match="all one"):
        align_face(image, np.full((5, 2), 20.0))


NUMBERS = [30.0, 40.5, 70.0, 41.0, 50.0, 60.0, 35.0, 80.0, 66.0, 81.0]
LINE = ",".join(map(str, NUMBERS))
HEADER = "file," + ",".join(f"{point}_{axis}" for point in COLUMNS for axis in "xy")
PAIRED = [NUMBERS[i : i + 2] for i in range(0, 10, 2)]
FILES = {
    "plain.csv": f"Li Wei/1.jpg,{LINE}\n",
    "header.csv": f"{HEADER}\nLi Wei/1.jpg,{LINE}\n",
    "mark.csv": f"\ufeff{HEADER}\r\nLi Wei/1.jpg,{LINE}\r\n",
    "semicolons.csv": f"Li Wei/1.jpg;{LINE.replace(',', ';')}\n",
    "tabs.tsv": f"Li Wei/1.jpg\t{LINE.replace(',', chr(9))}\n",
    "spaces.txt": f"Li Wei/1.jpg  {LINE.replace(',', '  ')}\n",
    "celeba.txt": "1\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x "
    f"rightmouth_y\nLi Wei/1.jpg {LINE.replace(',', ' ')}\n",
    "order.csv": "file,nose_x,nose_y,left_eye_x,left_eye_y,right_eye_x,right_eye_y,right_mouth_x,right_mouth_y,"
    "left_mouth_x,left_mouth_y\nLi Wei/1.jpg,50,60,30,40.5,70,41,66,81,35,80\n",
    "numbers.csv": f"file,x1,y1,x2,y2,x3,y3,x4,y4,x5,y5\r\nLi Wei/1.jpg,{LINE}\r\n",
    "axes.csv": "file,x_0,x_1,x_2,x_3,x_4,y_0,y_1,y_2,y_3,y_4\nLi Wei/1.jpg,"
    + ",".join(map(str, [*NUMBERS[::2], *NUMBERS[1::2]])),
    "windows.csv": f"C:\\faces\\Li Wei\\1.jpg,{LINE}\nC:\\faces\\Li Wei\\11.jpg,{LINE}\n",
    "elsewhere.csv": f"/data/photos/Li Wei/1.jpg,{LINE}\n",
    "url.json": json.dumps({"s3://bucket/photos/Li Wei/1.jpg": PAIRED}),
    "decimals.csv": f"Li Wei/1.jpg;{LINE.replace(',', ';').replace('.', ',')}\n",
    "points.json": json.dumps({"Li Wei/1.jpg": PAIRED}),
    "faces.json": json.dumps({"./Li Wei/1.jpg": [PAIRED]}),
    "flat.json": json.dumps({"Li Wei/1.jpg": NUMBERS}),
}


@pytest.mark.parametrize("name", FILES)
def test_a_landmark_file_is_read(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, FILES[name].encode())
    landmarks = read_landmarks(str(path))
    assert len(landmarks) == FILES[name].count("1.jpg")
    assert landmarks.choose("Li Wei/1.jpg", scene(1), "refuse").tolist() == PAIRED


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", f"none.jpg{',' * 10}\na.jpg,{LINE}\n"),
        ("a.json", json.dumps({"none.jpg": None, "a.jpg": PAIRED})),
        ("a.json", json.dumps({"none.jpg": [], "a.jpg": PAIRED})),
    ],
)
def test_a_picture_in_which_no_face_was_found_is_one_without_a_face(tmp_path: Path, name: str, text: str) -> None:
    landmarks = read_landmarks(str(put(tmp_path / name, text.encode())))
    assert landmarks.choose("a.jpg", scene(1), "refuse").tolist() == PAIRED
    with pytest.raises(PhotographError, match="without a face"):
        landmarks.choose("none.jpg", scene(1), "largest")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", f"{HEADER}\na.jpg,1,2,3\n", "line 2: expected a path and ten numbers"),
        ("a.csv", f"a.jpg,{LINE}\nb.jpg,{LINE.replace('70.0', 'x')}\n", "line 2: expected a path and ten numbers"),
        ("a.csv", f"a.jpg,{LINE.replace('70.0', 'nan')}\n", "line 1: a coordinate is not a number"),
        ("a.csv", f"file,{','.join(f'x{n}' for n in range(10))}\na.jpg,{LINE}\n", "line 1: expected a path and ten"),
        ("a.csv", f"file,{','.join(f'xy{n}' for n in range(10))}\na.jpg,{LINE}\n", "line 1: expected a path and ten"),
        ("a.csv", "", "no picture in it"),
        ("a.json", "[1", "not JSON"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "[]", "expected an object"),
        ("a.json", '{"a.jpg": [[1, 2], [3]]}', "'a.jpg': expected five points"),
        ("a.json", '{"a.jpg": [[1, 2], [3, 4]]}', "'a.jpg': expected five points"),
        ("a.json", '{"a.jpg": "points"}', "'a.jpg': expected five points"),
    ],
)
def test_a_landmark_file_that_is_none(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = put(tmp_path / name, text.encode())
    with pytest.raises(PrepareError, match=rf"{name}: .*{message}|{name}: {message}"):
        read_landmarks(str(path))


def test_a_path_that_may_be_two_pictures_is_none(tmp_path: Path) -> None:
    text = f"/old/a/1.jpg,{LINE}\n/new/a/1.jpg,{LINE}\n/new/b/1.jpg,{LINE}\n"
    landmarks = read_landmarks(str(put(tmp_path / "x.csv", text.encode())))
    assert landmarks.choose("b/1.jpg", scene(1), "refuse").tolist() == PAIRED
    assert landmarks.choose("new/a/1.jpg", scene(1), "refuse").tolist() == PAIRED
    for name in ("a/1.jpg", "1.jpg", "c/1.jpg"):
        with pytest.raises(PhotographError, match="without a face"):
            landmarks.choose(name, scene(1), "largest")


def test_a_folder_is_aligned_and_pictures_without_a_face_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    one, two, small = turned(0.4, 2, 120, 20), turned(-0.2, 3, 60, 120), turned(0, 1, 10, 300)
    put(source / "a" / "1.png", encode(dots(one, (400, 400), 10), "PNG"))
    both = dots(two, (500, 500), 15)
    put(source / "a" / "2.png", encode(both, "PNG"))
    put(source / "a" / "none.png", encode(scene(1), "PNG"))
    faces = {"a/1.png": one.tolist(), "a/2.png": [small.tolist(), two.tolist()], "a/other.png": one.tolist()}
    landmarks = str(put(tmp_path / "points.json", json.dumps(faces).encode()))
    face = FaceOptions(landmarks=landmarks)
    assert "1 without a face" in prepare_folder(str(source), str(tmp_path / "out"), FolderOptions(face))
    images = [decode_image(image) for _, _, image, _ in read_all(open_dataset(str(tmp_path / "out")))]
    assert len(images) == 2
    for image in images:  # of two faces the larger
        assert np.abs(centres(Image.fromarray(image)) - TEMPLATE).max() < 1.5
    refuse = FolderOptions(FaceOptions(landmarks=landmarks, several="refuse"))
    assert "1 several faces" in prepare_folder(str(source), str(tmp_path / "refused"), refuse)
    put(tmp_path / "pairs.txt", b"a/1.png a/2.png 1\n")
    where = ["--source", str(source), "--landmarks", landmarks, "--output", f"{tmp_path}/x.bin"]
    prepare.main(["pairs", *where, "--pairs", f"{tmp_path}/pairs.txt"])
    decoded = load_set(f"{tmp_path}/x.bin").decode(0, 2, 112).transpose(0, 2, 3, 1)
    assert all(np.abs(centres(Image.fromarray(image)) - TEMPLATE).max() < 1.5 for image in decoded)


def test_an_aligned_photograph_is_turned_by_exif_before(tmp_path: Path) -> None:
    points = turned(0, 2, 60, 30)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = dots(points, (360, 300), 10).transpose(Image.Transpose.ROTATE_90)
    put(tmp_path / "photos" / "a" / "1.jpg", encode(stored, "JPEG", quality=95, exif=exif))
    put(tmp_path / "points.json", json.dumps({"a/1.jpg": points.tolist()}).encode())
    options = FolderOptions(FaceOptions(landmarks=f"{tmp_path}/points.json"))
    prepare_folder(str(tmp_path / "photos"), str(tmp_path / "out"), options)
    ((_, _, image, _),) = read_all(open_dataset(str(tmp_path / "out")))
    assert np.abs(centres(Image.fromarray(decode_image(image))) - TEMPLATE).max() < 1.5
