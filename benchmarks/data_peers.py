"""One epoch of another library's loader, or its dataset, as a program for that library's own environment.

    PYTHON data_peers.py write FORMAT FOLDER        # FOLDER/people/NUMBER/*.jpg become FOLDER/FORMAT
    PYTHON data_peers.py read SIDE FOLDER ROUNDS    # a line of JSON a round: images, processor seconds, seconds

Every side yields shuffled batches of 128 flipped, normalised float images, on one thread of one process. It imports
nothing of the project, and runs on Python 3.8, which mxnet 1.9.1 needs.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Callable, Iterator  # noqa: UP035 - Python 3.8

import numpy as np

BATCH, SIDE = 128, 112


def files(folder: Path) -> list[tuple[int, Path]]:
    """Label and path of every image."""
    people = sorted((folder / "people").iterdir())
    return [(label, path) for label, person in enumerate(people) for path in sorted(person.iterdir())]


def reference(folder: Path) -> Callable[[], Iterator[Any]]:
    """What arcface_torch does for a sample: mxnet reads and decodes, PIL flips, numpy makes floats of it."""
    import mxnet as mx  # type: ignore[import-not-found]
    from PIL import Image

    record = mx.recordio.MXIndexedRecordIO(str(folder / "train.idx"), str(folder / "train.rec"), "r")
    header, _ = mx.recordio.unpack(record.read_idx(0))
    count = int(header.label[0]) - 1
    generator = np.random.default_rng(0)

    def epoch() -> Iterator[Any]:
        images = []
        for key in generator.permutation(count) + 1:
            _, encoded = mx.recordio.unpack(record.read_idx(int(key)))
            image = Image.fromarray(mx.image.imdecode(encoded).asnumpy())
            if generator.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            pixels = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)).astype(np.float32) / 255
            images.append((pixels - 0.5) / 0.5)
            if len(images) == BATCH:
                yield np.stack(images)
                images = []

    return epoch


def image_record_iter(folder: Path) -> Callable[[], Iterator[Any]]:
    """mxnet's own C++ pipeline."""
    import mxnet as mx

    def epoch() -> Iterator[Any]:
        batches = mx.io.ImageRecordIter(
            path_imgrec=str(folder / "images.rec"),
            path_imgidx=str(folder / "images.idx"),
            data_shape=(3, SIDE, SIDE),
            batch_size=BATCH,
            shuffle=True,
            rand_mirror=True,
            preprocess_threads=1,
            mean_r=127.5,
            mean_g=127.5,
            mean_b=127.5,
            std_r=127.5,
            std_g=127.5,
            std_b=127.5,
        )
        for batch in batches:
            batch.data[0].wait_to_read()
            yield batch.data[0]

    return epoch


def transform() -> Callable[[Any], Any]:
    """torchvision's usual transforms."""
    from torchvision import transforms  # type: ignore[import-not-found]

    steps = [transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    return transforms.Compose(steps)


def image_folder(folder: Path) -> Callable[[], Iterator[Any]]:
    """torchvision's ImageFolder in a DataLoader."""
    from torch.utils.data import DataLoader
    from torchvision import datasets

    loader = DataLoader(datasets.ImageFolder(str(folder / "people"), transform()), BATCH, shuffle=True)
    return lambda: iter(loader)


def webdataset(folder: Path) -> Callable[[], Iterator[Any]]:
    """Tar files, a shuffle buffer of 1,000."""
    import webdataset as wds  # type: ignore[import-not-found]

    shards = [str(path) for path in sorted((folder / "webdataset").glob("*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=len(shards)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    batches = dataset.map_tuple(transform(), lambda label: label).batched(BATCH)
    return lambda: iter(batches)


def mosaic(folder: Path) -> Callable[[], Iterator[Any]]:
    """mosaicml-streaming, JPEG columns."""
    from streaming import StreamingDataset  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    change = transform()

    class Faces(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return change(sample["image"]), sample["label"]

    loader: Any = DataLoader(Faces(local=str(folder / "mosaic"), shuffle=True, batch_size=BATCH), BATCH)
    return lambda: iter(loader)


def litdata(folder: Path) -> Callable[[], Iterator[Any]]:
    """Lightning's StreamingDataset over JPEG files."""
    import litdata as ld  # type: ignore[import-not-found]

    change = transform()

    class Faces(ld.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            import io

            from PIL import Image

            sample = super().__getitem__(at)
            return change(Image.open(io.BytesIO(sample["image"])).convert("RGB")), sample["label"]

    loader = ld.StreamingDataLoader(Faces(str(folder / "litdata"), shuffle=True), batch_size=BATCH)
    return lambda: iter(loader)


SIDES = {
    "reference": reference,
    "ImageRecordIter": image_record_iter,
    "ImageFolder": image_folder,
    "webdataset": webdataset,
    "mosaicml-streaming": mosaic,
    "litdata": litdata,
}


def write_mxnet(folder: Path) -> None:
    """The same images without header and identity records, which ImageRecordIter does not know."""
    import mxnet as mx

    record = mx.recordio.MXIndexedRecordIO(str(folder / "images.idx"), str(folder / "images.rec"), "w")
    for key, (label, path) in enumerate(files(folder)):
        record.write_idx(key, mx.recordio.pack(mx.recordio.IRHeader(0, label, key, 0), path.read_bytes()))
    record.close()


def write_webdataset(folder: Path) -> None:
    """Tar files of 1,000 images, in random order, as its users do."""
    import webdataset as wds

    images = files(folder)
    (folder / "webdataset").mkdir()
    order = np.random.default_rng(0).permutation(len(images)).tolist()
    with wds.ShardWriter(str(folder / "webdataset" / "%05d.tar"), maxcount=1000, verbose=0) as writer:
        for number in order:
            label, path = images[number]
            writer.write({"__key__": f"{number:08d}", "jpg": path.read_bytes(), "cls": label})


def write_mosaic(folder: Path) -> None:
    """Its shards, JPEG bytes as they are."""
    from PIL import Image
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mosaic"), columns={"image": "jpeg", "label": "int"}) as writer:
        for label, path in files(folder):
            writer.write({"image": Image.open(path), "label": label})


def write_litdata(folder: Path) -> None:
    """Its chunks, JPEG bytes as they are."""
    import litdata as ld

    items = [(label, str(path)) for label, path in files(folder)]
    ld.optimize(_litdata_sample, items, str(folder / "litdata"), chunk_bytes="16MB", num_workers=1)


def _litdata_sample(item: Any) -> Any:
    return {"image": Path(item[1]).read_bytes(), "label": item[0]}


WRITERS = {"mxnet": write_mxnet, "webdataset": write_webdataset, "mosaic": write_mosaic, "litdata": write_litdata}


def main() -> None:
    """Write or read, as the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "read"])
    parser.add_argument("name", choices=sorted({*SIDES, *WRITERS}))
    parser.add_argument("folder", type=Path)
    parser.add_argument("rounds", type=int, nargs="?", default=1)
    options = parser.parse_args()
    name, folder = options.name, options.folder
    if options.action == "write":
        WRITERS[name](folder)
        return
    if name not in ("reference", "ImageRecordIter"):
        import torch

        torch.set_num_threads(1)
    epoch = SIDES[name](folder)
    for _ in range(options.rounds):
        started, processor, count = time.perf_counter(), time.process_time(), 0
        for batch in epoch():
            count += len(batch[0]) if isinstance(batch, (list, tuple)) else len(batch)
        taken = {"images": count, "processor": time.process_time() - processor, "wall": time.perf_counter() - started}
        print("RESULT " + json.dumps(taken), flush=True)


if __name__ == "__main__":
    main()
