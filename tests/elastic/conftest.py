"""What the tests of elastic jobs share."""

from __future__ import annotations

import pytest

from tests.jobs import write_faces


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with a small dataset."""
    folder = str(tmp_path_factory.mktemp("faces"))
    write_faces(folder)
    return folder
