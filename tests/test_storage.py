"""Storage, over local files and over a real S3 store: the same contract for both."""

from __future__ import annotations

from pathlib import Path

import pytest
import s3fs

from app import storage
from app.storage import StorageError
from demo.object_store import ObjectStore
from tests.faults.proxy import Proxy


@pytest.fixture(params=["file", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return str(tmp_path / "folder")
    url: str = request.getfixturevalue("bucket_url")
    return url


def test_what_is_written_is_read_back_whole_and_in_ranges(folder: str) -> None:
    url = storage.join(folder, "a", "b.bin")
    data = bytes(range(256)) * 100
    storage.write_bytes(url, data)
    assert storage.read_bytes(url) == data
    assert storage.read_range(url, 300, 900) == data[300:900]
    assert storage.info(url).size == len(data)


def test_a_conditional_write_lets_only_the_first_writer_win(folder: str) -> None:
    url = storage.join(folder, "commit")
    assert storage.write_bytes(url, b"first", if_absent=True)
    assert not storage.write_bytes(url, b"second", if_absent=True)
    assert storage.read_bytes(url) == b"first"


def test_an_overwrite_changes_the_version_tag(folder: str) -> None:
    url = storage.join(folder, "x")
    storage.write_bytes(url, b"one")
    before = storage.info(url).tag
    storage.write_bytes(url, b"two")
    assert before
    assert storage.info(url).tag != before


def test_a_range_past_the_end_is_refused(folder: str) -> None:
    url = storage.join(folder, "short")
    storage.write_bytes(url, b"0123456789")
    with pytest.raises(StorageError, match=r"bytes 5-20 .*truncated"):
        storage.read_range(url, 5, 20)


def test_a_folder_lists_its_names_and_is_deleted_whole(folder: str) -> None:
    for name in ("b", "a", "sub/c"):
        storage.write_bytes(storage.join(folder, "t", name), b"1")
    assert storage.list_names(storage.join(folder, "t")) == ["a", "b", "sub"]
    storage.delete_tree(storage.join(folder, "t"))
    for name in ("b", "a", "sub/c"):
        assert not storage.exists(storage.join(folder, "t", name))
    storage.delete_tree(storage.join(folder, "t"))  # what is gone already is no error


def test_a_missing_object_is_named(folder: str) -> None:
    url = storage.join(folder, "nothing-here")
    with pytest.raises(StorageError, match=r"nothing-here.*does not exist") as caught:
        storage.read_bytes(url)
    assert not caught.value.transient


@pytest.mark.usefixtures("object_store")
def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist"):
        storage.read_bytes("s3://no-such-bucket/x")


@pytest.mark.usefixtures("object_store")
def test_wrong_keys_are_told_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-right-secret")
    s3fs.S3FileSystem.clear_instance_cache()  # drivers read the environment once a process
    with pytest.raises(StorageError, match="AWS_SECRET_ACCESS_KEY") as caught:
        storage.read_bytes("s3://test/x")
    assert "not-the-right-secret" not in str(caught.value)


def test_a_dead_store_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-value")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL") as caught:
        storage.read_bytes("s3://test/x")
    assert caught.value.transient


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(StorageError, match="nosuch://"):
        storage.read_bytes("nosuch://x/y")


def test_passwords_in_urls_and_known_secrets_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2hunter2")
    assert storage.redact("https://me:pw@host/x hunter2hunter2") == "https://***@host/x ***"


@pytest.mark.parametrize("name", ["a[1]", "what?", "all*", "r50[lr=0.1]", "100% #2 人脸", "a1::b", "file::x"])
def test_every_character_of_a_path_is_literal(folder: str, name: str) -> None:
    neighbours = ["a1", "whatx", "all-of-it", "r50l", "r50=", "100", "a[1]b"]
    for other in neighbours:
        storage.write_bytes(storage.join(folder, other, "x"), b"keep")
    url = storage.join(folder, name, "sub", "x")
    storage.write_bytes(url, b"1")
    assert storage.read_bytes(url) == b"1"
    assert storage.read_range(url, 0, 1) == b"1"
    assert storage.list_names(storage.join(folder, name)) == ["sub"]
    storage.delete_tree(storage.join(folder, name))
    assert not storage.exists(url)
    assert all(storage.exists(storage.join(folder, other, "x")) for other in neighbours)


def test_two_colons_lead_nowhere_else(tmp_path: Path) -> None:
    """fsspec takes a chain of URLs for them, and deleted what stands before."""
    for name in ("a", "b"):
        storage.write_bytes(str(tmp_path / name / "x"), b"keep")
    storage.delete_tree(f"{tmp_path}/a::b")
    storage.delete_tree(f"{tmp_path}/a::file://{tmp_path}/b")
    assert all((tmp_path / name / "x").exists() for name in ("a", "b"))
    with pytest.raises(StorageError, match=r"no name may hold '\?versionId='"):
        storage.delete_tree("s3://test/a?versionId=3")


def test_an_object_that_comes_short_and_has_no_checksum_is_read_again(
    object_store: ObjectStore, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, left = storage.join(bucket_url, "object"), ["truncate"]
    monkeypatch.setenv("AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required")
    with Proxy(object_store.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        s3fs.S3FileSystem.clear_instance_cache()
        storage.write_bytes(url, bytes(10_000))
        between.decide = lambda method, _: left.pop() if method == "GET" and left else ""
        assert len(storage.read_bytes(url)) == 10_000
        assert not left
    s3fs.S3FileSystem.clear_instance_cache()


def test_brackets_are_literal_in_memory_too() -> None:
    for name in ("a[1]", "a1"):
        storage.write_bytes(f"memory://literal/{name}/x", b"1")
    storage.delete_tree("memory://literal/a[1]")
    assert storage.exists("memory://literal/a1/x")
    assert not storage.exists("memory://literal/a[1]/x")


@pytest.mark.usefixtures("object_store")
def test_a_name_with_a_status_in_it_is_not_a_status() -> None:
    with pytest.raises(StorageError, match="does not exist") as caught:
        storage.read_bytes("s3://test/glint_403/train.idx")
    assert "denied" not in str(caught.value)


def test_a_writer_that_fails_leaves_nothing(folder: str) -> None:
    url = storage.join(folder, "part", "x.bin")

    def fail_half_way() -> None:
        with storage.open_writer(url) as file:
            file.write(b"12345")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert not storage.exists(url)
    with storage.open_writer(url) as file:
        file.write(b"12345")
        file.write(b"678")
    assert storage.read_bytes(url) == b"12345678"
