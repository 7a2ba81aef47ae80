"""From the section ``[data]`` of a recipe to a source and a loader."""

from __future__ import annotations

import json
from pathlib import Path

from app import storage
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.data.folder_source import FolderSource
from app.data.folder_url import check_folder_url, explain_missing_dataset
from app.data.loader import Loader
from app.data.mixture import Mixture
from app.data.order import expected_pairs, make_order
from app.data.records import RecordSource
from app.data.source import Source, SourceError
from app.data.synthetic import SYNTHETIC, NoiseSource
from app.device import BatchCopies
from app.storage import StorageError


def open_source(data: DataConfig, seed: int) -> Source:
    """The source that ``data.url`` names.

    Raises:
        SourceError: none is named, or noise is asked for without its sizes.
        StorageError: it cannot be read.
        RecordError: it is no dataset.
    """
    if not data.url:
        raise SourceError("no dataset: set --data.url to the folder that holds train.rec and train.idx")
    if data.url == SYNTHETIC:
        if not (data.num_classes and data.num_images):
            raise SourceError("synthetic data needs --data.num-classes and --data.num-images")
        return NoiseSource(data.num_images, data.num_classes, data.image_size, seed)
    urls = [url.strip() for url in data.url.split(",") if url.strip()]
    sources = [_open_one(url, data) for url in urls]
    if len(sources) == 1:
        return sources[0]
    try:
        weights = [float(weight) for weight in data.weights]
    except ValueError as error:
        raise SourceError(f"data.weights must be numbers, one a dataset; got {','.join(data.weights)}") from error
    if data.people == "separate":
        return Mixture(sources, weights)
    return Mixture(sources, weights, [_people_of(url, source) for url, source in zip(urls, sources, strict=True)])


def _open_one(url: str, data: DataConfig) -> Source:
    """Records where there is a ``train.rec``, else a folder of images."""
    check_folder_url(url)
    try:
        dataset = open_dataset(url)
    except StorageError as error:
        if error.kind != "absent":
            raise
        try:
            return FolderSource(url)
        except (SourceError, StorageError):
            if why := explain_missing_dataset(url):
                raise SourceError(why) from None
            raise error from None
    return RecordSource(
        dataset,
        max_request_bytes=int(data.block_mb * 2**20),
        cache=(Path(data.cache).expanduser(), int(data.cache_gb * 2**30)) if data.cache else None,
        labels=storage.join(url, data.labels) if data.labels else "",
    )


def _people_of(url: str, source: Source) -> list[str]:
    """Names of the classes, from ``people.json`` or the subfolders; made up where there are none."""
    if isinstance(source, FolderSource):
        return source.people
    text = storage.read_optional(storage.join(url, "people.json"))
    if text is None:
        return [f"{url}#{number}" for number in range(source.num_classes)]
    try:
        names = json.loads(text)
    except ValueError as error:
        raise SourceError(f"{url}/people.json: not JSON: {error}") from error
    if not isinstance(names, list) or len({str(name) for name in names}) != len(names):
        raise SourceError(f"{url}/people.json: expected a list of different names")
    return [str(name) for name in names]


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
