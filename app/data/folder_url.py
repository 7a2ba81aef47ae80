"""What somebody meant who gave another URL than that of a dataset's folder: one sentence that names the right one."""

from __future__ import annotations

import os
import re

from app import storage
from app.data.source import SourceError

_MAX_LOOKS = 16  # subfolders that are looked into
_SLASHES = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def check_folder_url(url: str) -> None:
    """Refuse what cannot be a folder's URL by its text alone.

    Raises:
        SourceError: says what is meant.
    """
    shown = storage.redact(url)
    folder, _, name = url.rstrip("/").rpartition("/")
    folder = folder or "."
    if (match := _PROTOCOL.match(url)) and match[1] != match[1].lower():
        raise SourceError(f"{shown}: protocols are written in small letters: {match[1].lower()}://...")
    if (match := _SLASHES.match(url)) and not os.path.exists(url):
        raise SourceError(f"{shown}: a slash is missing: {match[1].lower()}://...")
    if (hint := _explain_several(url)) and not os.path.exists(url):
        raise SourceError(f"{shown}: {hint}")
    if url.startswith(("http://", "https://")) and "?" in url:
        raise SourceError(
            f"{shown} has a query: a dataset is a folder, whose files are asked for by their names, which would "
            "stand behind it. A signed URL opens a single object: use s3:// with credentials in the environment, or a "
            "folder that can be read without"
        )
    if name.endswith((".rec", ".idx", ".lst")):
        hint = "" if name.rpartition(".")[0] == "train" else "; the files in it must be called train.rec and train.idx"
        raise SourceError(f"{shown}: name the folder, not the file in it: {storage.redact(folder)}{hint}")
    if name.endswith(".bin"):
        raise SourceError(
            f"{shown}: a verification set, not a dataset: name its folder in --verify.url and {name[:-4]} in "
            "--verify.sets"
        )


def _explain_several(url: str) -> str:
    """What to change where a list of URLs is written otherwise than by commas; empty where it is none."""
    if url[0] in "[\"'":
        return "write folders as they are, without quotes and brackets, several by commas: a,b"
    names = re.split(r"[;\s]+", url)
    if len(names) > 1 and (sum("://" in name for name in names) > 1 or all(map(os.path.isdir, names))):
        return f"several datasets are named by commas: {','.join(map(storage.redact, names))}"
    return ""


def explain_missing_dataset(url: str) -> str:
    """Why a folder holds no dataset, as far as its names tell; empty where they tell nothing."""
    filesystem, path = storage.open_filesystem(url)
    shown = storage.redact(url)
    if storage.is_local(filesystem) and os.path.isfile(path):
        return f"{shown}: a file; a dataset is a folder with train.rec and train.idx"
    if url.startswith(("http://", "https://")):
        return ""  # such servers list nothing
    names = storage.list_names(url)
    if not names:
        return ""
    below = [name for name in names if "." not in name][:_MAX_LOOKS]
    if found := [name for name in below if storage.exists(storage.join(url, name, "train.rec"))]:
        places = ", ".join(storage.redact(storage.join(url, name)) for name in found)
        return f"{shown}: no train.rec there, but in {places}: name {'it' if len(found) == 1 else 'one of them'}"
    if parts := [name for name in names if name.startswith("train.rec.")]:
        return f"{shown}: no train.rec there, but {', '.join(parts[:3])}: join or unpack it to a train.rec"
    records = [name for name in names if name.endswith(".rec")]
    if len(records) > 1:
        return (
            f"{shown}: no train.rec there, but {', '.join(records[:3])}: parts of one dataset must be joined to one "
            "train.rec; several datasets each need a folder with their train.rec and train.idx, named by commas"
        )
    if records:
        return f"{shown}: no train.rec there, but {records[0]}: rename it, and its .idx, to train"
    if "model.pt" in names or "checkpoints" in names:
        return f"{shown}: a run's folder, not a dataset"
    return (
        f"{shown}: no train.rec there; photographs need one subfolder a person, and app.prepare folder makes a "
        "dataset of them"
    )
