"""What a user gets wrong: one clear error that names the place and what to do, from the app and through TorchX."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from app import storage
from app.data.decode import encode_jpeg
from app.data.record_writer import RecordWriter, write_identity_layout
from app.data.recordio import ImageHeader, pack_image
from app.errors import AppError
from app.observe.events import read_events
from app.train import main
from demo.object_store import ObjectStore, free_port
from tests.jobs import ROOT, SMALL, environment, torchx, write_faces


def start(*options: str) -> None:
    main([*SMALL, *options])


@pytest.fixture
def data(bucket_url: str) -> str:
    write_faces(bucket_url, classes=4, per_class=6)
    return bucket_url


def test_a_missing_bucket(object_store: ObjectStore, tmp_path: Path) -> None:
    assert object_store.process is not None
    with pytest.raises(AppError, match="the bucket 'no-such' does not exist"):
        start("--data.url", "s3://no-such/faces", "--output.url", str(tmp_path))


def test_no_dataset_at_all() -> None:
    with pytest.raises(AppError, match=r"set --data\.url"):
        start()


def test_an_index_that_is_missing_is_made_again(data: str, tmp_path: Path) -> None:
    before = storage.read_bytes(storage.join(data, "train.idx"))
    storage.delete_tree(storage.join(data, "train.idx"))
    start("--data.url", data, "--output.url", str(tmp_path), "--train.logical-workers", "1", "--train.last-step", "1")
    assert storage.read_bytes(storage.join(data, "train.idx")) == before


def test_an_empty_dataset(bucket_url: str, tmp_path: Path) -> None:
    with RecordWriter(storage.join(bucket_url, "train.rec")) as writer:
        write_identity_layout(writer, [], [])
    with pytest.raises(AppError, match=r"train\.rec: the dataset holds no image"):
        start("--data.url", bucket_url, "--output.url", str(tmp_path))


def test_a_truncated_rec(data: str, tmp_path: Path) -> None:
    url = storage.join(data, "train.rec")
    storage.write_bytes(url, storage.read_bytes(url)[:3000])
    with pytest.raises(AppError, match=r"the \.rec file is truncated"):
        start("--data.url", data, "--output.url", str(tmp_path))


def test_an_unreadable_jpeg_is_named_with_its_key_and_bytes(bucket_url: str, tmp_path: Path) -> None:
    images = [(label, b"\xff\xd8 not a jpeg" if label == 1 else b"\xff\xd8\xff") for label in range(12)]
    with RecordWriter(storage.join(bucket_url, "train.rec")) as writer:
        write_identity_layout(writer, [label for label, _ in images], [image for _, image in images])
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(AppError, match=r"record key \d+ \(bytes \d+-\d+\)"):
        start("--data.url", bucket_url, "--output.url", str(tmp_path))


def test_too_few_images_for_one_batch(data: str, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"24 images, fewer than one global batch of 100 x 1: lower --train.batch-size"):
        start("--data.url", data, "--output.url", str(tmp_path), "--train.batch-size", "100")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "glint360k_r1OO"], "unknown recipe 'glint360k_r1OO'"),
        (["--recipe", "orl", "--head.samplerate", "0.1"], "did you mean '--head.sample-rate'"),
        (["--recipe", "orl", "--haed.sample-rate", "0.1"], "did you mean '--head.sample-rate'"),
        (["--recipe", "orl", "--head.sample-rate", "1.5"], r"head\.sample_rate must be at least 0 and at most 1"),
        (["--recipe", "orl", "--train.precision", "fp8"], "train.precision must be one of fp32, bf16, fp16"),
        (["--recipe", "orl", "--train.batch-size", "many"], "must be a whole number"),
        (["--recipe", "orl", "--train.sync-bn", "maybe"], "must be true or false"),
        (["--recipe", "orl", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_options_that_do_not_exist_or_fit(options: list[str], message: str) -> None:
    with pytest.raises(AppError, match=message):
        main(options)


def test_an_unknown_backbone(data: str, tmp_path: Path) -> None:
    with pytest.raises(AppError, match="did you mean 'r50'"):
        start("--data.url", data, "--output.url", str(tmp_path), "--model.backbone", "r5")


def test_a_nan_loss_stops_the_run_names_step_and_samples_and_commits_nothing_bad(data: str, tmp_path: Path) -> None:
    options = ["--data.url", data, "--output.url", str(tmp_path), "--train.epochs", "20"]
    with pytest.raises(AppError, match=r"step \d+: loss nan.*rank 0 \["):
        start(*options, "--optim.lr", "1e30", "--optim.clip-norm", "0", "--checkpoint.every-steps", "1")
    (event,) = [e for e in read_events(str(tmp_path / "orl")) if e["kind"] == "not_finite"]
    assert len(event["positions"][0]) == 6  # the whole batch


def test_a_label_beyond_the_classes(tmp_path: Path) -> None:
    write_faces(str(tmp_path / "faces"), classes=4, per_class=6)
    with pytest.raises(AppError, match=r"data\.num_classes is 2, but"):
        start("--data.url", str(tmp_path / "faces"), "--output.url", str(tmp_path), "--data.num-classes", "2")


def write_with_an_empty_class(folder: str) -> None:
    """Four classes of three images, of which the identity record of class 2 names none, as after cleaning."""
    image = encode_jpeg(np.full((32, 32, 3), 128, dtype=np.uint8))
    ranges = [(1, 4), (4, 7), (7, 7), (7, 10)]
    with RecordWriter(storage.join(folder, "train.rec")) as writer:
        writer.write(0, pack_image(ImageHeader((10.0, 14.0), is_array=True), b""))
        for label, (begin, end) in enumerate(ranges):
            for key in range(begin, end):
                writer.write(key, pack_image(ImageHeader((float(label),), key), image))
        for label, (begin, end) in enumerate(ranges):
            header = ImageHeader((float(begin), float(end)), 10 + label, is_array=True)
            writer.write(10 + label, pack_image(header, b""))


def test_a_class_without_a_sample_is_refused_or_warned_about(bucket_url: str, tmp_path: Path) -> None:
    write_with_an_empty_class(bucket_url)
    where = ("--data.url", bucket_url, "--output.url", str(tmp_path), "--train.perf-steps", "1")
    with pytest.raises(
        AppError, match=r"train\.rec: 1 of 4 classes have no image, the first is 2: .*empty-classes warn"
    ):
        start(*where)
    assert not (tmp_path / "orl" / "recipe.toml").exists()
    with pytest.warns(UserWarning, match=r"1 of 4 classes have no image, the first is 2"):
        start(*where, "--data.empty-classes", "warn")


def test_more_classes_than_the_dataset_has_is_the_same(data: str, tmp_path: Path) -> None:
    with pytest.raises(AppError, match=r"3 of 7 classes have no image, the first is 4"):
        start("--data.url", data, "--output.url", str(tmp_path), "--data.num-classes", "7")


def test_an_identity_record_that_is_no_range_is_named(bucket_url: str, tmp_path: Path) -> None:
    with RecordWriter(storage.join(bucket_url, "train.rec")) as writer:
        writer.write(0, pack_image(ImageHeader((2.0, 3.0), is_array=True), b""))
        writer.write(1, pack_image(ImageHeader((0.0,), 1), b"\xff\xd8"))
        writer.write(2, pack_image(ImageHeader((1.0,), 2), b""))
    with pytest.raises(AppError, match=r"identity record of class 0 \(bytes \d+-\d+\): not a range"):
        start("--data.url", bucket_url, "--output.url", str(tmp_path))


def test_the_command_line_prints_one_line_and_keeps_secrets(object_store: ObjectStore, tmp_path: Path) -> None:
    env = {**environment(), **object_store.environment, "AWS_SECRET_ACCESS_KEY": "wrong-secret-value"}
    command = [sys.executable, "-m", "app.train", *SMALL, "--data.url", "s3://test/x", "--output.url", str(tmp_path)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 65
    assert done.stderr.count("\n") == 1, done.stderr
    assert "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.stderr
    assert "wrong-secret-value" not in done.stderr


@pytest.mark.slow
def test_through_torchx_the_job_fails_at_once_and_says_why(object_store: ObjectStore, tmp_path: Path) -> None:
    done = torchx(
        *("run", "-s", "local_cwd", "-cfg", f"log_dir={tmp_path},prepend_cwd=False", "--wait", "--log"),
        *("components.py:arcface_dist", "--nnodes", "2", "--hardware", "cpu", "--recipe", "orl"),
        *("--data", "s3://no-such/faces", "--output", str(tmp_path), "--rdzv_port", str(free_port())),
        variables=object_store.environment,
    )
    output = done.stdout + done.stderr
    assert done.returncode != 0
    assert "the bucket 'no-such' does not exist" in output, output
    assert "error: training failed" in output
    assert output.count("attempt") < 3
