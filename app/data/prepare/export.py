"""Records back to images: a folder a person, the encoded bytes as they are."""

from __future__ import annotations

from app import storage
from app.data.dataset import open_dataset
from app.data.prepare.errors import PrepareError
from app.data.prepare.tools import read_all
from app.data.recordio import class_of

# First bytes of the formats that records hold.
_ENDINGS = ((b"\xff\xd8", "jpg"), (b"\x89PNG", "png"), (b"BM", "bmp"), (b"RIFF", "webp"))


def export_images(url: str, output: str) -> str:
    """Write each record's image to ``output/<class>/<key>.<ending>``; returns a line about it.

    Raises:
        PrepareError: a record is damaged; those before it are written.
        RecordError: a label is no class.
    """
    dataset = open_dataset(url)
    classes = set()
    for position, header, image, problem in read_all(dataset):
        if header is None:
            raise PrepareError(f"{problem}: mend the dataset first (app.prepare check)")
        label = class_of(header)
        classes.add(label)
        ending = next((name for start, name in _ENDINGS if image.startswith(start)), "bin")
        storage.write_bytes(storage.join(output, f"{label:07d}", f"{int(dataset.keys[position]):08d}.{ending}"), image)
    return f"{len(dataset)} images of {len(classes)} people"
