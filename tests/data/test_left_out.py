"""What a dataset holds and nobody trains is said, once."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from app import storage
from app.data.build import make_loader, open_source
from app.data.config import DataConfig
from app.data.recordio import RecordError
from tests.data.test_foreign_files import FOLDER, JPEG, labels_of, write_folder, write_plain


def test_lines_that_an_index_lost_are_said(tmp_path: Path) -> None:
    write_plain(tmp_path, [0.0, 1.0] * 4)
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\n".join(lines[2:]))
    with pytest.warns(UserWarning, match=r"train\.idx: its first record begins at byte \d+"):
        assert labels_of(tmp_path) == [3, 3]
    (tmp_path / "train.idx").write_text("\n".join(lines[:3] + lines[4:6] + lines[7:]))
    with pytest.warns(
        UserWarning, match=r"train\.rec: record key \d.* bytes behind this record belong to none"
    ) as said:
        assert labels_of(tmp_path) == [3, 3]
    assert len([w for w in said if "belong to none" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (tmp_path / "train.idx").write_text("\n".join(lines))
        assert labels_of(tmp_path) == [4, 4]


def test_people_without_an_image_are_said_once(tmp_path: Path, bucket_url: str) -> None:
    for name in (*FOLDER, "cid/notes.txt", "dan/.hidden.jpg", ".git/config"):
        write_folder(tmp_path, name)
        storage.write_bytes(storage.join(bucket_url, name), JPEG)
    (tmp_path / "eve").mkdir()
    filesystem, path = storage.open_filesystem(bucket_url)
    filesystem.pipe_file(f"{path}/eve/", b"")  # as consoles of stores make a folder
    for url in (tmp_path, bucket_url):
        with pytest.warns(UserWarning, match="subfolders hold no image") as said:
            assert labels_of(url) == [4, 4]
        texts = [str(w.message) for w in said if "subfolders" in str(w.message)]
        assert len(texts) == 1
        assert "3 of 5 subfolders hold no image, such as 'cid'" in texts[0]


def test_a_folder_of_more_images_than_a_page_of_the_list(bucket_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in FOLDER:
        storage.write_bytes(storage.join(bucket_url, name), JPEG)
    filesystem, _ = storage.open_filesystem(bucket_url)
    monkeypatch.setattr(filesystem, "req_kw", {"MaxKeys": 3})
    pages: list[str] = []
    page = storage.list_page

    def counted(*arguments: object) -> tuple[list[tuple[str, int]], str]:
        pages.append(str(arguments[-1]))
        return page(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(storage, "list_page", counted)
    assert sorted(storage.list_tree(f"{bucket_url}/")) == [(name, len(JPEG)) for name in FOLDER]
    assert len(set(pages)) >= 3


def test_a_name_is_the_same_however_its_letters_are_written(tmp_path: Path) -> None:
    """Folders that came from a Mac have accents apart from their letters."""
    write_folder(tmp_path / "mac", "Zoe\u0301/1.jpg", "Ann/1.jpg")
    write_folder(tmp_path / "other", "Zo\u00e9/1.jpg", "Ann/1.jpg")
    assert labels_of(f"{tmp_path}/mac,{tmp_path}/other", people="shared") == [2, 2]


def test_a_dataset_between_photographs_is_no_person(tmp_path: Path) -> None:
    write_folder(tmp_path, *FOLDER)
    (tmp_path / "faces").mkdir()
    write_plain(tmp_path / "faces", [0.0, 1.0])
    (tmp_path / "faces" / "sheet.png").write_bytes(JPEG)
    with pytest.warns(UserWarning, match="faces: a dataset with a train.rec, no person") as said:
        assert labels_of(tmp_path) == [4, 4]
    assert len(said) == 1


@pytest.mark.filterwarnings("ignore:skipped")
@pytest.mark.parametrize("change", ["deleted", "replaced"])
def test_an_image_that_is_deleted_or_replaced_in_mid_run_is_a_bad_record(
    tmp_path: Path, bucket_url: str, change: str
) -> None:
    for name in FOLDER:
        write_folder(tmp_path, name)
        storage.write_bytes(storage.join(bucket_url, name), JPEG)
    for url in (str(tmp_path), bucket_url):
        config = DataConfig(url=url, image_size=32, max_bad_share=0.002, prefetch=0)
        source = open_source(config, 0)
        loader = make_loader(source, config, num_classes=2, batch_size=4, logical_workers=1, seed=0)
        if change == "deleted":
            storage.delete_tree(storage.join(url, "bob/2.jpg"))
        else:
            storage.write_bytes(storage.join(url, "bob/2.jpg"), JPEG + b"more")
        with pytest.warns(UserWarning, match=rf"skipped: .*/bob/2\.jpg: the file .* was {change}"):
            batches = [batch for step in loader.steps(0, 0, [0]) for batch in step]
        assert [sum(batch.bad for batch in batches), sum(len(batch.labels) for batch in batches)] == [1, 8]
        assert all(FOLDER.index("bob/2.jpg") not in batch.positions for batch in batches)
        storage.delete_tree(storage.join(url, "ann"))
        with pytest.raises(RecordError, match="unreadable"):
            list(loader.steps(1, 0, [0]))
        loader.close()
