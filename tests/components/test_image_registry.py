"""The question to an image registry, against a small server with a registry's manifests and tokens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from components.image_registry import RegistryUnknown, require_image, split_reference
from tests.components.registry_server import DIGEST, serve_registry


@pytest.fixture(scope="module")
def registry() -> Iterator[str]:
    with serve_registry() as address:
        yield address


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("ghcr.io/team/arcface:0.1.0", ("ghcr.io", "team/arcface", "0.1.0")),
        ("localhost:5000/arcface:1", ("localhost:5000", "arcface", "1")),
        ("localhost/arcface:1", ("localhost", "arcface", "1")),
        (f"quay.io/a/b/c:1@{DIGEST}", ("quay.io", "a/b/c", DIGEST)),
        ("python:3.11", ("registry-1.docker.io", "library/python", "3.11")),
        ("chrislusf/seaweedfs:4", ("registry-1.docker.io", "chrislusf/seaweedfs", "4")),
        ("docker.io/library/python", ("registry-1.docker.io", "library/python", "latest")),
    ],
)
def test_references_are_split_as_engines_do(image: str, parts: tuple[str, str, str]) -> None:
    assert split_reference(image) == parts


def test_an_image_that_is_there_by_tag_and_by_digest(registry: str) -> None:
    assert require_image(f"{registry}/team/arcface:0.1.0") == DIGEST
    assert require_image(f"{registry}/team/arcface@{DIGEST}") == DIGEST


def test_an_image_that_is_not_there_is_named(registry: str) -> None:
    with pytest.raises(ValueError, match=r"has no image team/arcface:0\.2\.0: push it, or correct --image"):
        require_image(f"{registry}/team/arcface:0.2.0")


def test_a_private_image_is_not_called_missing(registry: str) -> None:
    with pytest.raises(RegistryUnknown, match="answered 401"):
        require_image(f"{registry}/locked/arcface:1")


def test_a_registry_that_does_not_answer_is_not_called_empty() -> None:
    with pytest.raises(RegistryUnknown, match="cannot be reached from here"):
        require_image("127.0.0.1:9/team/arcface:1")
