"""Reads the files of ``torch.save`` as plain data: no unpickler, no code, no memory beyond the file's own size.

Both formats are read: the zip archive of torch 1.6 and later, and the run of pickles before it. Tensors come from the
CPU, CUDA and Ascend NPUs (whose extension writes a function of its own for them) and go to the CPU. torch's own safe
loader is not used: a file may ask it for bytearrays of any length, and a zip entry may unpack to any size.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.plain_pickle import PLAIN_NAMES, Name, PickleError, load_plain, name_of
from app.plain_values import Array

_MAX_ENTRIES = 50_000  # of a zip archive: one a tensor
_MAX_NAMES = 4 << 20  # bytes of all their names
ALLOWANCE = 8 << 20  # bytes beside a file's size that tensors made of its arrays may take
_PIECE = 1 << 20  # elements that are converted at a time
_MAX_DIMENSIONS = 16
_ZIP_ENTRY = b"PK\x01\x02"
_ZIP_HEADER = re.compile(re.escape(_ZIP_ENTRY) + rb"(?s:.{42})")  # of 46 bytes
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}


@dataclass(frozen=True)
class _Storage:
    """The elements that tensors are views of."""

    elements: Tensor


def load_torch(data: bytes) -> Any:
    """The value that was saved: tensors, arrays (as ``Array``), numbers, texts (as ``Text``), lists, tuples, dicts.

    Raises:
        RefusedName: it holds more than that; the message is the name alone.
        PickleError: it is not such a file, is damaged, or is larger inside than outside.
    """
    if data[:4] == b"PK\x03\x04":
        return _load_zip(data)
    if data[:2] == b"\x80\x02" and _LEGACY_MAGIC.to_bytes(10, "little") in data[:32]:
        return _load_legacy(data)
    if data[:1] == b"\x80":
        return load_plain(data, _names(_only_named, len(data)))[0]  # of pickle.dump: arrays of numpy by name
    raise PickleError("not a file of torch.save")


def _load_zip(data: bytes) -> Any:
    entries = list_entries(data)
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise PickleError(f"a zip archive, but not of torch.save: it has {len(pickles) or 'no'} data.pkl")
    pickle_name = pickles[0]
    folder = pickle_name.removesuffix("data.pkl")
    if (order := entries.get(f"{folder}byteorder")) and data[order] != b"little":
        raise PickleError("saved on a big-endian machine")
    storages: dict[str, _Storage] = {}

    def find(reference: Any) -> _Storage:
        kind, key, count, _ = _parse_reference(reference)
        if key not in storages:
            content = entries.get(f"{folder}data/{key}")
            if content is None:
                raise PickleError(f"storage {key!r} is not in the archive")
            storages[key] = _make_storage(memoryview(data)[content], kind, count)
        return storages[key]

    place = entries[pickle_name]
    return load_plain(data, _names(_rebuild, len(data)), start=place.start, stop=place.stop, find=find)[0]


def list_entries(data: bytes) -> dict[str, slice]:
    """Where the content of the archive's entries lies, by name; it is stored as it is, as ``torch.save`` does."""
    if data.count(_ZIP_ENTRY) > _MAX_ENTRIES:
        raise PickleError(f"a zip archive of more than {_MAX_ENTRIES} entries")
    sizes = (sum(struct.unpack_from("<HHH", data, found.start() + 28)) for found in _ZIP_HEADER.finditer(data))
    if sum(sizes) > _MAX_NAMES:
        raise PickleError(f"a zip archive whose entries' names take more than {_MAX_NAMES >> 20} MiB")
    try:
        listed = zipfile.ZipFile(io.BytesIO(data)).infolist()
    except (zipfile.BadZipFile, ValueError, OSError, struct.error, NotImplementedError) as error:
        raise PickleError(f"a damaged or truncated zip archive ({error})") from error
    if sum(entry.file_size for entry in listed) > len(data):
        unpacked = sum(entry.file_size for entry in listed)
        raise PickleError(
            f"a zip archive of {len(data)} bytes that unpacks to {unpacked}: torch.save and numpy.savez pack nothing"
        )
    entries: dict[str, slice] = {}
    for entry in listed:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.filename in entries:
            raise PickleError(f"the entry {entry.filename[:80]!r} is packed, encrypted or there twice")
        header = entry.header_offset
        if header < 0 or header + 30 > len(data) or data[header : header + 4] != b"PK\x03\x04":
            raise PickleError(f"the entry {entry.filename[:80]!r} is not where the archive says")
        start = header + 30 + sum(struct.unpack_from("<HH", data, header + 26))
        if start + entry.file_size > len(data):
            raise PickleError(f"truncated: the entry {entry.filename[:80]!r} is not all there")
        entries[entry.filename] = slice(start, start + entry.file_size)
    return entries


def _load_legacy(data: bytes) -> Any:
    """Pickles of a magic number, a version, facts of the machine, the value and the storages' keys; then the storages.

    Where the storages lie is known only when their keys are, so the value is read twice.
    """
    magic, at = load_plain(data)
    if magic != _LEGACY_MAGIC:
        raise PickleError("not a file of torch.save")
    at = load_plain(data, start=at)[1]
    at = _check_facts(data, at)
    references: dict[str, tuple[torch.dtype, int]] = {}

    def note(reference: Any) -> None:
        kind, key, count, view = _parse_reference(reference)
        if view is not None:
            raise PickleError("storages that are views of others; save the file anew with a newer torch")
        references[key] = (kind, count)

    # Nothing of what these give is held while the value is read: each may take as much as the value itself.
    behind = load_plain(data, _names(lambda *_: None, len(data)), start=at, find=note)[1]
    keys, position = _read_keys(data, behind, references)
    storages: dict[str, _Storage] = {}
    for key in keys:
        kind, count = references[key]
        stop = position + 8 + count * kind.itemsize
        if stop > len(data) or struct.unpack_from("<q", data, position)[0] != count:
            raise PickleError(f"truncated: storage {key!r} is not all there")
        storages[key] = _make_storage(memoryview(data)[position + 8 : stop], kind, count)
        position = stop
    return load_plain(data, _names(_rebuild, len(data)), start=at, find=lambda pid: storages[_parse_reference(pid)[1]])[
        0
    ]


def _check_facts(data: bytes, at: int) -> int:
    """See that the machine was none whose numbers differ; the byte behind what is said of it."""
    facts, behind = load_plain(data, start=at)
    if isinstance(facts, dict) and facts.get("little_endian") is False:
        raise PickleError("saved on a big-endian machine")
    return behind


def _read_keys(data: bytes, at: int, known: Collection[str]) -> tuple[list[str], int]:
    """The storages' keys in the order of their bytes, and where these begin."""
    listed, behind = load_plain(data, start=at)
    if not isinstance(listed, list):
        raise PickleError("the list of storages is missing")
    keys: dict[str, None] = {}
    for key in map(name_of, listed):
        if key not in known or key in keys:
            raise PickleError(f"storage {key!r} is not used, or there twice")
        keys[key] = None
    return list(keys), behind


def _parse_reference(reference: Any) -> tuple[torch.dtype, str, int, Any]:
    """Type, key, number of elements and view of a persistent id ``("storage", class, key, place, count[, view])``."""
    if not isinstance(reference, tuple) or len(reference) not in (5, 6) or name_of(reference[0]) != "storage":
        raise PickleError("a reference to something that is not a storage")
    kind, key, count = reference[1], name_of(reference[2]), reference[4]
    if not isinstance(kind, Name) or not isinstance(count, int) or count < 0:
        raise PickleError(f"storage {key!r} without type and size")
    name = kind.text.removeprefix("torch.").removesuffix("Storage")
    if name not in _TYPES:
        raise PickleError(f"storage {key!r} is of {kind.text}, which is no type of weights")
    return _TYPES[name], key, count, reference[5] if len(reference) == 6 else None


def _make_storage(content: memoryview, kind: torch.dtype, count: int) -> _Storage:
    if len(content) < count * kind.itemsize:
        raise PickleError(f"a storage of {count} elements in {len(content)} bytes")
    if not count:
        return _Storage(torch.empty(0, dtype=kind))
    copied = bytearray(content[: count * kind.itemsize])  # torch needs memory that it may write to
    if kind is torch.bool:
        return _Storage(torch.frombuffer(copied, dtype=torch.uint8) != 0)
    return _Storage(torch.frombuffer(copied, dtype=kind))


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A tensor as a view of its storage; what follows (gradient, hooks, an NPU's layout) says nothing of its values."""
    if (
        not isinstance(storage, _Storage)
        or not _are_counts(size)
        or not _are_counts(stride)
        or not _are_counts([offset])
    ):
        raise PickleError("a tensor without storage, offset, size and stride")
    if len(size) != len(stride) or len(size) > _MAX_DIMENSIONS:
        raise PickleError(f"a tensor of {len(size)} sizes and {len(stride)} strides")
    elements, count = storage.elements, math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else 0
    if count > len(elements) or (count and last >= len(elements)):
        raise PickleError(f"a tensor of shape {tuple(size)} in a storage of {len(elements)} elements")
    return elements.as_strided(tuple(size), tuple(stride), offset if count else 0)


def _from_numpy(size: int) -> Callable[..., Tensor]:
    """What makes a tensor of a device of the array it was copied to, in a file of ``size`` bytes.

    torch writes bfloat16 so as float32, and names the type.
    """
    types = {str(known): known for known in _TYPES.values()}
    room = size + ALLOWANCE  # a file may name one array again and again, and a wider type for it

    def rebuild(array: Any, kind: Any, *_: Any) -> Tensor:
        nonlocal room
        if (values := _numbers_of(array)) is None:
            raise PickleError("a tensor without an array of numbers")
        if not isinstance(kind, Name) or kind.text not in types:
            raise PickleError("a tensor without a type of weights")
        room -= values.size * types[kind.text].itemsize
        if room < 0:
            raise PickleError("tensors that take more memory than a file of its size needs")
        return _tensor_of_type(values, types[kind.text])

    return rebuild


def bytes_of(value: Any) -> int:
    """What ``tensor_of`` takes in memory for it."""
    return value.values.nbytes if isinstance(value, Array) and isinstance(value.values, np.ndarray) else 0


def tensor_of(value: Any) -> Any:
    """A tensor of an ``Array`` of numbers, of its own memory; anything else as it is."""
    values = _numbers_of(value)
    if values is None:
        return value
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def _numbers_of(value: Any) -> NDArray[Any] | None:
    """The values of an ``Array`` of numbers that torch has too."""
    values = value.values if isinstance(value, Array) else None
    types = [str(kind).removeprefix("torch.") for kind in _TYPES.values()]
    return values if isinstance(values, np.ndarray) and values.dtype.name in types else None


def _tensor_of_type(values: NDArray[Any], kind: torch.dtype) -> Tensor:
    """The values as a tensor of another type; a second copy of them is never in memory whole."""
    tensor = torch.empty(values.shape, dtype=kind)
    elements = tensor.view(-1)
    for start in range(0, values.size, _PIECE):
        piece = np.array(values.flat[start : start + _PIECE], dtype=values.dtype.newbyteorder("="))
        elements[start : start + _PIECE] = torch.from_numpy(piece)
    return tensor


def _are_counts(values: Any) -> bool:
    return isinstance(values, Sequence) and all(
        isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48 for value in values
    )


def _new_dict(items: Any = ()) -> dict[Any, Any]:
    """``OrderedDict``; its items mostly follow, older files give them as pairs."""
    if not isinstance(items, list | tuple) or not all(
        isinstance(item, list | tuple) and len(item) == 2 for item in items
    ):
        raise PickleError("a dict of items that are no pairs")
    return {name_of(key): value for key, value in items}


def _only_named(*_: Any) -> Any:
    raise PickleError("a call of a class that is only named in sound files")


def _items(values: Any = None) -> Any:
    """What a set or a list, a Counter or a Namespace is made of, as the list or dict that the file gives."""
    return values if isinstance(values, list | dict) else {}


# Settings that trainers keep beside the weights: read as what they hold, and passed over.
_SETTINGS: dict[tuple[str, str], Callable[..., Any]] = {
    ("argparse", "Namespace"): _items,
    ("types", "SimpleNamespace"): _items,
    ("easydict", "EasyDict"): _items,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _items,
    ("lightning_fabric.utilities.data", "AttributeDict"): _items,
    ("lightning.fabric.utilities.data", "AttributeDict"): _items,
    ("collections", "Counter"): _items,  # torch's MultiStepLR
    ("collections", "defaultdict"): lambda *_: {},
    ("pathlib", "PosixPath"): lambda *parts: list(parts),
    ("pathlib", "WindowsPath"): lambda *parts: list(parts),
    ("torch", "device"): lambda *parts: list(parts),
    # Lightning up to 1.4 keeps the state of its callbacks under their classes.
    ("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): _only_named,
    ("pytorch_lightning.callbacks.early_stopping", "EarlyStopping"): _only_named,
    ("pytorch_lightning.callbacks.lr_monitor", "LearningRateMonitor"): _only_named,
}
for _module in ("builtins", "__builtin__"):
    _SETTINGS |= {(_module, name): _items for name in ("list", "set", "frozenset", "dict")}
    _SETTINGS |= {(_module, name): _only_named for name in ("int", "float", "str")}


def _names(rebuild: Callable[..., Any], size: int) -> dict[tuple[str, str], Callable[..., Any]]:
    """What torch's files of ``size`` bytes name; ``rebuild`` answers for all that makes a tensor of a storage."""
    from_numpy = _from_numpy(size)
    return {
        **PLAIN_NAMES,
        **_SETTINGS,
        **{("torch", f"{name}Storage"): _only_named for name in _TYPES},
        ("collections", "OrderedDict"): _new_dict,
        ("torch", "Size"): lambda sizes=(): sizes,
        ("torch._utils", "_rebuild_tensor"): rebuild,
        ("torch._utils", "_rebuild_tensor_v2"): rebuild,
        ("torch_npu.utils.storage", "_rebuild_npu_tensor"): rebuild,
        ("torch._utils", "_rebuild_npu_tensor"): rebuild,  # Ascend's own builds of torch, before the extension
        ("torch._utils", "_rebuild_device_tensor_from_numpy"): from_numpy,  # devices whose storages torch cannot see
        ("torch._utils", "_rebuild_xla_tensor"): from_numpy,
        **{("torch", str(kind).removeprefix("torch.")): _only_named for kind in _TYPES.values()},
        ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
    }
