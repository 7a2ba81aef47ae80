"""Alignment against OpenCV's values; IJB's figures without a curve against those from one; 1:N against loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.data.recordio import RecordError
from app.evaluate import alignment, identification, ijb
from app.evaluate.metrics import roc_curve
from tests.ranks import run_ranks

# cv2.warpAffine(image, turn by a, scale s, shift t, (24, 24), borderValue=0.0) of OpenCV 5.0.0: green, every 4th pixel.
OPENCV = [
    (
        0.2,
        (3.3, -1.6),
        0.25,
        [[0, 80, 161, 0, 0], [94, 77, 124, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]],
    ),
    (
        -0.35,
        (-20.2, 4.7),
        1.9,
        [
            [131, 134, 119, 62, 156],
            [91, 164, 100, 90, 107],
            [156, 119, 187, 143, 176],
            [136, 154, 85, 134, 180],
            [138, 192, 46, 125, 196],
        ],
    ),
    (
        0.6,
        (10.1, -5.3),
        0.8,
        [
            [0, 142, 178, 31, 81],
            [93, 111, 89, 70, 201],
            [145, 165, 126, 158, 94],
            [134, 124, 185, 137, 148],
            [50, 142, 161, 101, 129],
        ],
    ),
]


@pytest.mark.parametrize(("angle", "shift", "scale", "green"), OPENCV)
def test_warping_is_opencvs_to_one_grey_level(
    angle: float, shift: tuple[float, float], scale: float, green: list[list[int]]
) -> None:
    image = np.random.default_rng(5).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = alignment.warp_affine(image, np.hstack([turn, np.array(shift)[:, None]]), 24)
    difference = found[2:22:4, 2:22:4, 1].astype(int) - np.array(green)
    assert np.abs(difference).max() <= 1
    assert np.abs(green).max() > 50


def test_the_identity_and_a_whole_shift_move_pixels_unchanged() -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    assert np.array_equal(alignment.warp_affine(image, np.eye(3)[:2], 9), image)
    moved = alignment.warp_affine(image, np.array([[1.0, 0, 2], [0, 1, 3]]), 9)
    assert np.array_equal(moved[3:, 2:], image[:-3, :-2])
    assert not moved[:3].any()
    assert not moved[:, :2].any()


def test_five_points_from_sixty_eight() -> None:
    landmarks = np.arange(136, dtype=np.float64).reshape(68, 2)
    found = alignment.five_points(landmarks)
    assert found.tolist() == [[75, 76], [87, 88], [60, 61], [96, 97], [108, 109]]
    assert alignment.five_points(found) is found


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
    st.lists(st.integers(0, 12), min_size=1, max_size=40),
)
def test_tar_without_a_curve_is_that_of_the_curve(genuine: list[int], impostor: list[int]) -> None:
    scores = np.array([*genuine, *impostor], dtype=np.float32) / np.float32(8)
    issame = np.array([True] * len(genuine) + [False] * len(impostor))
    far, tar = roc_curve(-scores.astype(np.float64), issame)
    expected = {
        f"{level:.0e}": float(tar[len(far) - 1 - int(np.argmin(np.abs(far[::-1] - level)))]) for level in ijb.FARS
    }
    assert ijb.tar_at_fars(scores, issame) == pytest.approx(expected)


def test_lists_of_pairs_are_read_in_blocks_with_the_bad_line_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"{i} {i + 1} {i % 2}" for i in range(100)]
    (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n\n")
    whole = ijb._read_pairs(str(tmp_path / "pairs.txt"))
    monkeypatch.setattr(ijb, "_PAIR_BLOCK", 37)
    blocks = ijb._read_pairs(str(tmp_path / "pairs.txt"))
    assert np.array_equal(whole[0], blocks[0])
    assert np.array_equal(whole[1], blocks[1])
    assert whole[0].tolist() == [[i, i + 1] for i in range(100)]
    for bad, message in (("4 5", "line 72 has 2 columns, not 3"), ("4 x 1", "line 72 has b'4 x 1', not two template")):
        (tmp_path / "pairs.txt").write_text("\n".join([*lines[:71], bad, *lines[72:]]))
        with pytest.raises(RecordError, match=message):
            ijb._read_pairs(str(tmp_path / "pairs.txt"))


def test_identification_is_that_of_loops() -> None:
    generator = np.random.default_rng(3)
    centres = generator.normal(size=(30, 6))
    people = generator.integers(0, 30, 200)
    probes = centres[people] + generator.normal(0, 0.8, (200, 6))
    gallery_people = np.arange(20)
    gallery = centres[:20] + generator.normal(0, 0.3, (20, 6))
    probes /= np.linalg.norm(probes, axis=1, keepdims=True)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    found = identification.identify(probes, people, gallery, gallery_people)
    hits, strangers, mates = [], [], []
    for probe, person in zip(probes, people, strict=True):
        ranked = sorted(range(20), key=lambda i: -float(probe @ gallery[i]))
        if person < 20:
            hits.append(ranked.index(person))
            mates.append((float(probe @ gallery[person]), ranked[0] == person))
        else:
            strangers.append(float(probe @ gallery[ranked[0]]))
    for rank in (1, 5, 10):
        assert found[f"rank-{rank}"] == pytest.approx(np.mean([place < rank for place in hits]))
    for level in (0.01, 0.1):
        # The lowest threshold that lets no more than the allowed share of strangers through.
        threshold = sorted(strangers, reverse=True)[int(level * len(strangers))]
        assert np.mean([s > threshold for s in strangers]) <= level
        missed = np.mean([not (first and score > threshold) for score, first in mates])
        assert found[f"FNIR@FPIR={level}"] == pytest.approx(missed)


def test_equal_embeddings_find_nobody() -> None:
    same = np.ones((4, 2)) / 2**0.5
    found = identification.identify(same, np.arange(4), same, np.arange(4))
    assert found["rank-1"] == 0


def test_the_protocol_names_templates(tmp_path: Path) -> None:
    assert identification.load_protocol(str(tmp_path), "ijbc") == ([], None)
    (tmp_path / "meta").mkdir()
    for name, rows in {
        "gallery_G1": ["1,10", "2,20", "1,10"],
        "gallery_G2": ["3,30"],
        "probe_mixed": ["4,10", "5,30", "6,99"],
    }.items():
        (tmp_path / "meta" / f"ijbc_1N_{name}.csv").write_text(
            "TEMPLATE_ID,SUBJECT_ID,FILENAME\n" + "\n".join(f"{row},x.jpg" for row in rows)
        )
    galleries, probes = identification.load_protocol(str(tmp_path), "ijbc")
    assert [gallery[0].tolist() for gallery in galleries] == [[1, 2], [3]]
    templates = np.eye(7)[[0, 1, 2, 0, 2, 4]]
    found = identification.identify_templates(np.arange(1, 7), templates, galleries, probes)
    assert found["rank-1"] == 1.0
    with pytest.raises(RecordError, match=r"templates without an image: \[6\]"):
        identification.identify_templates(np.arange(1, 6), templates[:5], galleries, probes)


def share(rank: int, world: int, url: str) -> np.ndarray:
    from app.device import detect_device
    from app.world import World

    metadata = ijb.load_metadata(url, "ijbc")
    plain, _ = ijb.embed_images(
        url,
        metadata,
        lambda images: images.reshape(len(images), -1)[:, :50].astype(np.float32),
        image_size=16,
        batch_size=5,
        world=World(rank, world, 0, detect_device()),
    )
    return plain


def test_ranks_share_the_images_out(tmp_path: Path) -> None:
    from tests.evaluate.test_tools import make_ijb

    make_ijb(str(tmp_path), images=12)
    (alone,) = run_ranks(share, 1, str(tmp_path))
    assert alone.shape == (12, 50)
    for found in run_ranks(share, 2, str(tmp_path)):
        assert np.array_equal(found, alone)


FIVE = "38.3 51.7 73.5 51.5 56.0 71.7 41.5 92.4 70.7 92.2"


def write_lists(
    folder: Path, *, second: str = "2.jpg", points: str = FIVE, ending: str = "\n", mark: bytes = b""
) -> None:
    (folder / "meta").mkdir(exist_ok=True)
    for name, lines in {
        "face_tid_mid": ["1.jpg 1 1", "2.jpg 2 1"],
        "name_5pts_score": [f"1.jpg {FIVE} 0.9", f"{second} {points} 0.8"],
        "template_pair_label": ["1 2 1", "2 1 0"],
    }.items():
        text = ending.join([*lines, ""])
        (folder / "meta" / f"ijbc_{name}.txt").write_bytes(mark + text.encode())


@pytest.mark.parametrize(("ending", "mark"), [("\n", b""), ("\r\n", b""), ("\r\n", b"\xef\xbb\xbf")])
def test_lists_of_other_editors_are_the_same(tmp_path: Path, ending: str, mark: bytes) -> None:
    write_lists(tmp_path, ending=ending, mark=mark)
    found = ijb.load_metadata(str(tmp_path), "ijbc")
    assert (found.images, found.templates.tolist(), found.pairs.tolist()) == (
        ["1.jpg", "2.jpg"],
        [1, 2],
        [[1, 2], [2, 1]],
    )
    assert found.faceness.tolist() == [0.9, 0.8]
    assert found.issame.tolist() == [True, False]


def test_lists_that_do_not_fit_each_other_are_told(tmp_path: Path) -> None:
    write_lists(tmp_path, second="3.jpg")
    with pytest.raises(RecordError, match=r"face_tid_mid has '2\.jpg' where name_5pts_score has '3\.jpg'"):
        ijb.load_metadata(str(tmp_path), "ijbc")
    write_lists(tmp_path, points=FIVE.replace("38.3", "nan"))
    with pytest.raises(RecordError, match=r"2\.jpg: a number is not finite"):
        ijb.load_metadata(str(tmp_path), "ijbc")
    (tmp_path / "meta" / "ijbc_1N_probe_mixed.csv").write_text("TEMPLATE_ID,SUBJECT_ID\n")
    with pytest.raises(RecordError, match="no template in it"):
        identification.load_protocol(str(tmp_path), "ijbc")
