"""What a recipe says of the training images: its section ``[data]``."""

from __future__ import annotations

from dataclasses import dataclass

from app.settings import setting


@dataclass(frozen=True)
class DataConfig:
    """Where the images are and in which order they come."""

    url: str = setting(
        "", 'folder with train.rec, or a subfolder of images a person (path or URL); several by commas; "synthetic"'
    )
    weights: tuple[str, ...] = setting((), "how often an epoch trains each of several datasets; empty: once each")
    people: str = setting(
        "separate", "whether people of one name in several datasets are one class", choices=("separate", "shared")
    )
    labels: str = setting("", "list in the dataset's folder that replaces the records' labels, such as train.lst")
    cache: str = setting("", "folder on the node's disk that keeps what was read from the store; empty: none")
    cache_gb: float = setting(200.0, "what that folder may hold, GiB", above=0, maximum=2**20)
    num_classes: int = setting(0, "identities; 0: read from the dataset", minimum=0)
    empty_classes: str = setting(
        "refuse", "what to do when a class has no image: its centre is only pushed away", choices=("refuse", "warn")
    )
    num_images: int = setting(0, "images the dataset should have; 0: as many as it has", minimum=0)
    image_size: int = setting(112, "height and width, pixels", minimum=1)
    resize: str = setting("warn", "what to do with images of another size", choices=("warn", "refuse"))
    shuffle: str = setting(
        "window",
        "order of the samples: full permutes all, window reads blocks in random order and shuffles windows of them",
        choices=("full", "window", "none"),
    )
    window: int = setting(0, "records in the shuffle windows of all workers; 0: as data.window_mb says", minimum=0)
    window_mb: float = setting(
        256.0,
        "encoded records that one logical worker shuffles together, MiB; it holds up to 1.5 times that",
        above=0,
        maximum=2**20,
    )
    block_mb: float = setting(0.5, "size of one ranged read, MiB", above=0, maximum=1024)
    augment: str = setting(
        "flip",
        "reference adds insightface's dali_aug to flip, adaface AdaFace's crop, low resolution and light, strong "
        "coarse resizing and JPEG, small (for hundreds of images) rotation, shift and light",
        choices=("none", "flip", "reference", "adaface", "strong", "small"),
    )
    workers: int = setting(4, "decoding threads a process", minimum=1)
    prefetch: int = setting(4, "micro-batches decoded ahead", minimum=0)
    max_bad_share: float = setting(
        0.001, "training stops when a larger share of records is unreadable", minimum=0, maximum=1
    )
