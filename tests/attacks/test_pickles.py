"""Verification sets and weights whose pickles take memory or time, or want something run."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from tests.attacks.bounded import read

_MANY = 100_000
_DTYPE = b"cnumpy\ndtype\nX\x02\0\0\0f8\x85R"
_JPEG = b"\xff\xd8" + b"x" * 100
_LONG = 80_000_000  # bytes of which a third copy is too much


def _text(content: bytes) -> bytes:
    return b"\x8d" + struct.pack("<Q", len(content)) + content


def _as_bytes(text: bytes) -> bytes:
    """As Python 3 writes bytes in the old protocols."""
    return b"c_codecs\nencode\n(" + text + b"X\6\0\0\0latin1tR."


def _array(size: int, kind: bytes, times: int = 1) -> bytes:
    """Arrays of the same ``size`` bytes, as a tuple where they are several."""
    itemsize = int(kind[1:])
    arguments = _DTYPE.replace(b"f8", kind) + b"J" + struct.pack("<I", size // itemsize) + b"\x85X\1\0\0\0Ct"
    first = b"cnumpy.core.numeric\n_frombuffer\nq\x07(\x8e" + struct.pack("<Q", size) + bytes(size) + arguments
    if times == 1:
        return first + b"R"
    return first + b"q\x080(" + b"h\x07h\x08R" * times + b"t"


def _called(name: bytes, arguments: bytes, count: int = 3 * _MANY) -> bytes:
    """The same call with the same arguments, five bytes each."""
    return b"\x80\x02" + name + b"q\0" + arguments + b"q\2(" + b"h\0h\2R" * count + b"t."


SETS = {
    "many arrays": _called(b"cnumpy.core.multiarray\n_reconstruct\n", b")"),
    "many types": _called(b"cnumpy\ndtype\n", b"X\x02\0\0\0f4\x85"),
    "many numbers": _called(b"cnumpy.core.multiarray\nscalar\n", _DTYPE + b"C\x0812345678\x86"),
    "many views": _called(
        b"cnumpy.core.numeric\n_frombuffer\n", b"(C\x0812345678" + _DTYPE + b"K\1\x85X\1\0\0\0Ct", _MANY
    ),
    "a million arguments": _called(b"cnumpy\ndtype\n", b"(X\x02\0\0\0f4" + b"N" * 1_000_000 + b"t"),
    "a number of many bytes": b"cnumpy.core.multiarray\nscalar\n("
    + _DTYPE
    + b"\x8e"
    + struct.pack("<Q", 20_000_000)
    + bytes(20_000_000)
    + b"tR.",
    "many keys": b"\x80\x02T\0\1\0\0" + b"\xe9" * 256 + b"q\0(" + b"}h\0Ns" * (3 * _MANY) + b"t.",
    "many keys of wide letters": b"\x80\x02X\0\1\0\0"
    + b"x" * 252
    + b"\xf0\x9f\x98\x80"
    + b"q\0("
    + b"}h\0Ns" * (3 * _MANY)
    + b"t.",
    "a long string in quotes": b"S'" + b"x" * _LONG + b"'\n.",
    "a long text of one wide letter": _as_bytes(_text(b"x" * _LONG + "\U0001f600".encode())),
    "a long text of one escaped letter": _as_bytes(b"V" + b"x" * _LONG + b"\\U0001f600\n"),
    "a long text of letters of two bytes": _as_bytes(_text("\xe9".encode() * (_LONG // 2))),
    "the same bytes in many arrays of images": _array(1_000_000, b"u1", 200) + b"(" + b"\x88" * 100 + b"t\x86.",
    "many flags in an array": pickle.dumps(([_JPEG] * 2, np.ones(20_000_000, np.uint8)), 4),
    "images of an array of numbers": pickle.dumps((np.full(20_000_000, 60_000, np.uint16), [True]), 4),
    "a list in itself": b"]q\0(h\0h\0e.",
    "nested": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "marks": b"(" * 1_000_000 + b".",
    "duplicates": b"N" + b"2" * 3_000_000 + b".",
    "memo": b"N" + b"".join(b"r" + struct.pack("<I", n * 7 + 9) for n in range(500_000)) + b".",
    "NaN for a flag": pickle.dumps(([_JPEG] * 2, [float("nan")]), 2),
    "a shape of large sizes": b"cnumpy.core.multiarray\n_reconstruct\n)R(K\1("
    + (b"\x8a\x10" + b"\xff" * 15 + b"\x7f") * 7
    + b"K\0t"
    + _DTYPE
    + b"NC\0tb.",
    "an escape sequence for a name": b"c\x1b[31mevil\x1b[2J\nname\x07\nN.",
    "a line break in a name": b"\x8c\x06a\nerror\x8c\x03b\rc\x93.",
}
# What pickletools knows and plain data does not need, with what each takes for an argument.
OPCODES = {
    **{"PERSID": b"Px\n.", "BINPERSID": b"NQ.", "INST": b"(ios\nsystem\n.", "OBJ": b"(cos\nsystem\no."},
    **{
        "EXT1": b"\x82\1.",
        "EXT2": b"\x83\1\1.",
        "EXT4": b"\x84\1\1\1\1.",
        "NEWOBJ": b"N)\x81.",
        "NEWOBJ_EX": b"N)}\x92.",
    },
    **{"EMPTY_SET": b"\x8f.", "ADDITEMS": b"\x8f(K\1\x90.", "FROZENSET": b"(K\1\x91."},
    **{"NEXT_BUFFER": b"\x97.", "READONLY_BUFFER": b"C\0\x98.", "LONG4": b"\x8b\xff\xff\xff\x7f.", "BUILD": b"N}b."},
    **{"BYTEARRAY8": b"\x96" + b"\xff" * 8 + b".", "REDUCE": b"NN\x85R.", "GLOBAL": b"cos\nsystem\n."},
    "STACK_GLOBAL": b"\x8c\x02os\x8c\x06system\x93.",
}


@pytest.mark.parametrize("name", SETS)
def test_a_set_made_to_take_memory_or_time_is_refused(name: str) -> None:
    read("bin", SETS[name]).refused(len(SETS[name]))


@pytest.mark.parametrize("name", OPCODES)
def test_an_opcode_that_plain_data_does_not_need_is_refused(name: str) -> None:
    read("bin", OPCODES[name]).refused(len(OPCODES[name]))
    data = b"\x80\x02" + OPCODES[name]
    archive = _archive({"x/data.pkl": data})
    read("pt", archive).refused(len(archive))


def _archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def _tensor(
    *, offset: bytes = b"K\0", size: bytes = b"K\4K\4\x86", stride: bytes = b"K\4K\1\x86", count: bytes = b"K\x10"
) -> bytes:
    """Opcodes that make a tensor of the storage 0, of 16 elements."""
    storage = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + count + b"tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + size + stride + b"\x89}t"


def _weights(body: bytes) -> bytes:
    return _archive({"x/data.pkl": b"\x80\x02" + body, "x/byteorder": b"little", "x/data/0": bytes(64)})


def _one(**changes: bytes) -> bytes:
    return _weights(b"}X\1\0\0\0a" + _tensor(**changes) + b"Rs.")


def _saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(4)}, buffer)
    return buffer.getvalue()


def _legacy(body: bytes, facts: bytes = b"}q\x00.", keys: bytes = b"].") -> bytes:
    head = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03." + b"\x80\x02" + facts
    return head + b"\x80\x02" + body + b"\x80\x02" + keys


_LARGE, _LARGEST = b"\x8a\x06\0\0\0\0\0\x40", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"
_PAIRS = b"(" + b"".join(b"X\6\0\0\0%06dN\x86" % number for number in range(_MANY)) + b"l\x85q\2"
_WIDE_PAIRS = (  # with keys of 256 bytes that take a kilobyte
    b"("
    + b"".join(b"X\0\1\0\0%06d" % number + b"x" * 246 + b"\xf0\x9f\x98\x80N\x86" for number in range(1000))
    + b"l\x85q\2"
)
_ARRAY = _array(4_000_000, b"f4")
_MEGABYTES = (  # 45 times the same, each made anew
    b"c_codecs\nencode\nq\x010X\6\0\0\0latin1q\x030"
    + _text(b"x" * 1_000_000)
    + b"h\3\x86q\x020("
    + b"h\1h\2R" * 45
    + b"t."
)
_REPEATED = b"".join(b"X\6\0\0\0%06dh\5" % number for number in range(_MANY))
WEIGHTS = {
    "many tensors": _weights(_tensor().replace(b"_v2\n", b"_v2\nq\0", 1) + b"q\x020(" + b"h\0h\2R" * _MANY + b"t."),
    "many dicts of long keys": _legacy(
        b"ccollections\nOrderedDict\nq\0" + _WIDE_PAIRS + b"0(" + b"h\0h\2R" * 170 + b"t."
    ),
    "much of everything before the storages": _legacy(_MEGABYTES[:-1] + b".", _MEGABYTES, _MEGABYTES),
    "an array of bytes as one of doubles": _weights(
        b"}X\1\0\0\0actorch._utils\n_rebuild_xla_tensor\n(" + _array(30_000_000, b"u1") + b"ctorch\nfloat64\n\x89tRs."
    ),
    "a long array under two names": b"\x80\x02" + _array(_LONG, b"f4") + b"q\0" + b"0}(X\1\0\0\0ah\0X\1\0\0\0bh\0u.",
    "many names that are wide": _archive(
        {"x/data.pkl": b"N.", **{f"{n}" + "\U0001f600" * 16_000: b"" for n in range(600)}}
    ),
    "many dicts of a long list": _legacy(
        b"ccollections\nOrderedDict\nq\0" + _PAIRS + b"0(" + b"h\0h\2R" * _MANY + b"t."
    ),
    "packed": _archive({"x/data.pkl": b"N.", "x/data/0": bytes(100_000_000)}, zipfile.ZIP_DEFLATED),
    "an archive in an archive": _archive({"x/data.pkl": _saved(), "x/data/0": _saved()}),
    "two pickles": _archive({"x/data.pkl": b"N.", "y/data.pkl": b"N."}),
    "a name that leaves the folder": _archive({"../../etc/data.pkl": b"N."}),
    "many entries": _archive({f"x/{number}": b"" for number in range(50_001)}),
    "expanded by strides of 0": _one(size=b"J\0\0\0\x40J\0\0\0\x40\x86", stride=b"K\0K\0\x86"),
    "a huge stride": _one(stride=_LARGEST + b"K\1\x86"),
    "a negative stride": _one(stride=b"J\xfc\xff\xff\xffK\1\x86"),
    "a negative offset": _one(offset=b"J\xff\xff\xff\xff"),
    "sizes beyond int64": _one(size=_LARGE + _LARGE + b"\x86"),
    "a size that is a flag": _one(size=b"\x88\x88\x86"),
    "a storage beyond int64": _one(count=_LARGEST),
    "a negative storage": _one(count=b"J\xff\xff\xff\xff"),
    "a state dict in itself": _weights(b"}q\0X\x0a\0\0\0state_dicth\0s."),
    "one array under many names": b"\x80\x02" + _ARRAY + b"q\x050}(" + _REPEATED + b"u.",
    "one array in many tensors": _weights(
        _ARRAY + b"ctorch\nfloat16\n\x86q\x050ctorch._utils\n_rebuild_xla_tensor\nq\x060(" + b"h\6h\5R" * _MANY + b"t."
    ),
    "many namespaces": _weights(b"cargparse\nNamespace\nq\0(" + b"h\0)\x81" * (10 * _MANY) + b"t."),
    "a namespace of another class": _weights(b"csubprocess\nPopen\n)\x81}b."),
    "an escape sequence for a key": _weights(b"}X\x0a\0\0\0\x1b[31mevil\x07K\1s."),
    "a header of safetensors beyond the file": struct.pack("<Q", 2**62) + b'{"a":1}',
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_made_to_take_memory_or_time_are_refused(name: str) -> None:
    read("pt", WEIGHTS[name]).refused(len(WEIGHTS[name]))


def test_one_array_for_many_images_is_copied_once() -> None:
    data = b"\x80\x02" + _array(1_000_000, b"u1") + b"q\0(" + b"h\0" * 200 + b"t(" + b"\x88" * 100 + b"t\x86."
    outcome = read("bin", data)
    outcome.bounded(len(data))
    assert not outcome.error


def test_long_arrays_that_are_sound_are_read_in_twice_their_size() -> None:
    narrow = b"ctorch._utils\n_rebuild_xla_tensor\n(" + _array(_LONG, b"f4") + b"ctorch\nbfloat16\n\x89tR"
    for data in (
        _weights(b"}X\1\0\0\0a" + narrow + b"s."),
        b"\x80\x02}X\1\0\0\0a" + _array(_LONG, b"f4") + b"s.",
    ):
        outcome = read("pt", data)
        outcome.bounded(len(data))
        assert not outcome.error


def test_what_is_sound_is_read_by_the_same_helper() -> None:
    for data in (_one(), _saved()):
        assert not read("pt", data).error
    assert not read("bin", pickle.dumps(([_JPEG] * 2, [True]), 4)).error
