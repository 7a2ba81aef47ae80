"""TLS to a real store whose certificate comes from an authority of its own: verified, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import trustme

from app import storage
from app.storage import StorageError
from demo.object_store import ObjectStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``ca.pem``, and a certificate for 127.0.0.1 that it signed; ``other.pem``, an authority that signed nothing."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    trustme.CA().cert_pem.write_to_path(str(folder / "other.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    (folder / "certificate.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    return folder


@pytest.fixture(scope="module")
def tls_store(folder: Path) -> Iterator[ObjectStore]:
    store = ObjectStore(
        folder / "weed" / "data", "test", certificate=folder / "certificate.pem", private_key=folder / "key.pem"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_CA_BUNDLE", str(folder / "ca.pem"))
        store.start()
    yield store
    store.stop()


@pytest.fixture(autouse=True)
def client(tls_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    s3fs.S3FileSystem.clear_instance_cache()  # drivers read the environment once a process
    for name, value in tls_store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)


def test_the_named_authority_is_trusted(folder: Path, tls_store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    assert tls_store.endpoint.startswith("https://")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "ca.pem"))
    assert storage.write_bytes("s3://test/commit", b"first", if_absent=True)
    assert not storage.write_bytes("s3://test/commit", b"second", if_absent=True)
    assert storage.read_range("s3://test/commit", 1, 4) == b"irs"


def test_an_unknown_authority_is_refused_by_default() -> None:
    with pytest.raises(StorageError, match=r"not trusted.*AWS_CA_BUNDLE") as caught:
        storage.write_bytes("s3://test/x", b"never sent")
    assert not caught.value.transient


def test_another_authority_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "other.pem"))
    with pytest.raises(StorageError, match=r"not trusted.*AWS_CA_BUNDLE"):
        storage.read_bytes("s3://test/x")


def test_a_bundle_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/no/such/ca.pem")
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE is /no/such/ca\.pem, which is not a file"):
        storage.read_bytes("s3://test/x")


def test_a_bundle_without_a_certificate_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", str(folder / "key.pem"))
    with pytest.raises(StorageError, match=r"AWS_CA_BUNDLE"):
        storage.read_bytes("s3://test/x")
