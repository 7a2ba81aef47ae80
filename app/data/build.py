"""From the section ``[data]`` of a recipe to a source and a loader."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from pathlib import Path

from app import storage
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.data.folder_source import FolderSource, NoImagesError
from app.data.folder_url import check_folder_url, explain_missing_dataset
from app.data.loader import Loader
from app.data.mixture import Mixture, check_weights
from app.data.order import expected_pairs, make_order
from app.data.records import RecordSource
from app.data.source import Source, SourceError
from app.data.synthetic import SYNTHETIC, NoiseSource
from app.device import BatchCopies
from app.parsing import parse_people
from app.storage import StorageError


def open_source(data: DataConfig, seed: int) -> Source:
    """The source that ``data.url`` names.

    Raises:
        SourceError: none is named, weights are not one for each, or noise is asked for without its sizes.
        StorageError: it cannot be read.
        RecordError: it is no dataset.
    """
    if not data.url:
        raise SourceError("no dataset: set --data.url to the folder that holds train.rec and train.idx")
    if data.url == SYNTHETIC:
        if not (data.num_classes and data.num_images):
            raise SourceError("synthetic data needs --data.num-classes and --data.num-images")
        return NoiseSource(data.num_images, data.num_classes, data.image_size, seed)
    urls = _split_urls(data.url)
    try:
        weights = [float(weight) for weight in data.weights]
    except ValueError as error:
        raise SourceError(f"data.weights must be numbers, one a dataset; got {','.join(data.weights)}") from error
    check_weights(weights, len(urls))
    sources = [_open_one(url, data, alone=len(urls) == 1) for url in urls]
    if data.labels and not any(isinstance(source, RecordSource) and source.labels_url for source in sources):
        raise SourceError(f"data.labels: no {data.labels} beside a train.rec in {data.url}")
    if len(sources) == 1:
        return sources[0]
    if data.people == "separate":
        return Mixture(sources, weights)
    return Mixture(sources, weights, [_people_of(url, source) for url, source in zip(urls, sources, strict=True)])


def _split_urls(text: str) -> list[str]:
    """The folders that ``data.url`` names, each once."""
    urls = [url.strip() for url in text.split(",") if url.strip()]
    if not urls:
        raise SourceError("data.url names no folder")
    if len(urls) > 1 and os.path.isdir(os.path.expanduser(text)):
        raise SourceError(
            f"data.url: commas part datasets, and the folder {text} has one in its name: rename it or link to it"
        )
    plain = [url.rstrip("/") for url in urls]
    places = [_place(url) for url in plain]
    for url, place in zip(plain, places, strict=True):
        if url == SYNTHETIC:
            raise SourceError("data.url: synthetic data cannot be joined with others")
        if places.count(place) > 1:
            raise SourceError(
                f"data.url names {storage.redact(url)} twice, and its people would be two classes each: name it once; "
                "data.weights says how often an epoch trains it"
            )
    return urls


def _place(url: str) -> str:
    """The same for two spellings of one local folder, and for a link to it."""
    return url if "://" in url.removeprefix("file://") else os.path.realpath(url.removeprefix("file://"))


def _open_one(url: str, data: DataConfig, *, alone: bool) -> Source:
    """Records where there is a ``train.rec``, else a folder of images."""
    check_folder_url(url)
    if "://" in data.cache:
        raise SourceError(f"data.cache is {storage.redact(data.cache)}: name a folder on the node's own disk")
    try:
        dataset = open_dataset(url)
    except StorageError as error:
        if error.kind != "absent":
            raise
        try:
            folder = FolderSource(url)
        except (NoImagesError, StorageError):
            if why := explain_missing_dataset(url):
                raise SourceError(why) from None
            raise error from None
        if data.cache:
            warnings.warn(
                f"data.cache: {storage.redact(url)} is a folder of images, which it does not keep: each epoch reads "
                "them anew. app.prepare folder makes a train.rec of them",
                stacklevel=2,
            )
        return folder
    labels = storage.join(url, data.labels) if data.labels else ""
    if labels and not alone and not storage.exists(labels):
        labels = ""  # of several datasets those without a list keep their own
    return RecordSource(
        dataset,
        max_request_bytes=int(data.block_mb * 2**21),  # blocks of long records too come with one request
        cache=(Path(data.cache).expanduser(), int(data.cache_gb * 2**30)) if data.cache else None,
        labels=labels,
    )


def _people_of(url: str, source: Source) -> list[str]:
    """Names of the classes, from ``people.json`` or the subfolders; made up where there are none."""
    if isinstance(source, FolderSource):
        return [unicodedata.normalize("NFC", name) for name in source.people]
    text = storage.read_optional(storage.join(url, "people.json"))
    if text is None:
        warnings.warn(
            f"{storage.redact(url)}: no people.json there: its people are taken for nobody else's", stacklevel=2
        )
        return [f"{url}#{number}" for number in range(source.num_classes)]
    names = parse_people(text, storage.redact(storage.join(url, "people.json")))
    if not isinstance(names, list) or not all(
        isinstance(name, str | int) and not isinstance(name, bool) for name in names
    ):
        raise SourceError(f"{storage.redact(url)}/people.json: expected a list of names, one a class")
    texts = [unicodedata.normalize("NFC", str(name)) for name in names]  # systems write one letter in two ways
    if len(set(texts)) != len(texts):
        raise SourceError(
            f"{storage.redact(url)}/people.json: {Counter(texts).most_common(1)[0][0]!r} stands there twice"
        )
    return texts


def make_loader(
    source: Source,
    data: DataConfig,
    *,
    num_classes: int,
    batch_size: int,
    logical_workers: int,
    seed: int,
    copies: BatchCopies | None = None,
) -> Loader:
    """Sample order and loader of a source; with ``copies`` the batches go to the device as soon as they are decoded.

    Raises:
        SourceError: the source is smaller than one global batch.
    """
    order = make_order(
        len(source),
        source.record_bytes,
        logical_workers,
        seed=seed,
        shuffle=data.shuffle,
        window=data.window,
        window_bytes=int(data.window_mb * 2**20),
        block_bytes=int(data.block_mb * 2**20),
    )
    loader = Loader(source, order, data, batch_size=batch_size, num_classes=num_classes, copies=copies)
    if loader.steps_per_epoch == 0:
        raise SourceError(
            f"{source.url} has {len(source)} images, fewer than one global batch of {batch_size} x "
            f"{logical_workers}: lower --train.batch-size"
        )
    return loader


def describe_order(loader: Loader, source: Source, num_classes: int, workers: int) -> str:
    """One line on how samples are mixed and what it costs.

    Args:
        workers: logical workers of the busiest process.
    """
    order = loader.order
    pairs, uniform = expected_pairs(order, loader.batch_size, num_classes)
    memory = 1.5 * order.window_records * source.record_bytes * workers / 2**20
    return (
        f"data: {len(source)} images of {num_classes} classes, shuffled in windows of {order.window_records} records, "
        f"blocks of {order.block_records}: up to {memory:.0f} MiB a process; about {pairs:.1f} same-identity pairs in "
        f"a global batch, a uniform shuffle has {uniform:.1f}"
    )
