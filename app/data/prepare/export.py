"""Records back to images: a folder a person, the encoded bytes as they are."""

from __future__ import annotations

from collections import Counter

from app import storage
from app.data.dataset import open_dataset
from app.data.prepare.errors import PrepareError
from app.data.prepare.photograph import is_system_file, same_name
from app.data.prepare.reorder import read_people
from app.data.prepare.tools import read_all
from app.data.recordio import class_of

# First bytes of the formats that records hold.
_NO_NAME = set('/\\:*?"<>|#%')  # of a folder on every system and in every URL
_LONGEST = 200  # bytes; file systems take 255
_ENDINGS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))


def export_images(url: str, output: str) -> str:
    """Write each record's image to ``output/<person>/<key>.<ending>``; returns a line about it.

    A person's folder has the name that ``people.json`` tells, and where that is none for a folder, the class in seven
    digits.

    Raises:
        PrepareError: a record is damaged; those before it are written.
        RecordError: a label is no class.
    """
    dataset = open_dataset(url)
    folders = _folders(read_people(url))
    classes = set()
    for position, header, image, problem in read_all(dataset):
        if header is None:
            raise PrepareError(f"{problem}: mend the dataset first (app.prepare check)")
        label = class_of(header)
        classes.add(label)
        ending = next((name for start, name in _ENDINGS if image.startswith(start)), "bin")
        name = f"{int(dataset.keys[position]):08d}.{ending}"
        storage.write_bytes(storage.join(output, folders.get(label, f"{label:07d}"), name), image)
    return f"{len(dataset)} images of {len(classes)} people"


def _folders(people: list[str]) -> dict[int, str]:
    """Names by class; those that no system or tool takes for another place, another person's or none."""
    alike = Counter(same_name(name).casefold() for name in people)
    numbers = {f"{label:07d}" for label in range(len(people))}
    return {
        label: name
        for label, name in enumerate(people)
        if alike[same_name(name).casefold()] == 1
        and name not in numbers
        and name.isprintable()
        and name == name.strip(" .")
        and 0 < len(name.encode()) <= _LONGEST
        and not _NO_NAME & set(name)
        and not is_system_file(f"{name}/1.jpg")
    }
