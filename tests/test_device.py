"""Devices: the CPU for real, the NPU branch against a stub of torch_npu's documented API."""

from __future__ import annotations

import contextlib
import sys
import types
import weakref
from typing import Any

import pytest
import torch

from app.device import Device, DeviceError, detect_device


class EventStub:
    """Of a copy that is done when ``done`` is set."""

    done = False
    stream = ""

    def record(self, stream: str) -> None:
        self.stream = stream

    def query(self) -> bool:
        return self.done


class StreamStub(str):
    """A stream by its name; notes what it waits for."""

    calls: list[Any]

    def wait_stream(self, other: object) -> None:
        self.calls.append(("wait_stream", str(self), other))


class NpuStub(types.ModuleType):
    """torch.npu as torch_npu registers it, with a record of the calls."""

    def __init__(self, devices: int) -> None:
        super().__init__("npu")
        self.devices, self.calls = devices, list[Any]()
        self.shows_inf, self.flag = True, False
        # As torch_npu has them before anybody sets them.
        self.config = types.SimpleNamespace(allow_internal_format=True)
        self.conv, self.matmul = types.SimpleNamespace(allow_hf32=True), types.SimpleNamespace(allow_hf32=False)
        self.options: dict[str, str] = {}

    def set_option(self, options: dict[str, str]) -> None:
        self.options |= options

    def is_available(self) -> bool:
        return self.devices > 0

    def device_count(self) -> int:
        return self.devices

    def set_device(self, index: int) -> None:
        self.calls.append(("set_device", index))

    def synchronize(self) -> None:
        self.calls.append(("synchronize",))

    def max_memory_allocated(self) -> int:
        return 123

    def Stream(self, device: object) -> StreamStub:
        stream = StreamStub(f"side stream of {device}")
        stream.calls = self.calls
        return stream

    def stream(self, stream: str) -> contextlib.AbstractContextManager[None]:
        self.calls.append(("stream", stream))
        return contextlib.nullcontext()

    def current_stream(self) -> NpuStub:
        return self

    def wait_stream(self, other: object) -> None:
        self.calls.append(("wait_stream", "current", other))

    def wait_event(self, event: EventStub) -> None:
        self.calls.append(("wait_event", event))

    def Event(self) -> EventStub:
        return EventStub()

    def is_support_inf_nan(self) -> bool:
        return self.shows_inf

    def get_npu_overflow_flag(self) -> bool:
        self.calls.append(("get_npu_overflow_flag",))
        return self.flag

    def clear_npu_overflow_flag(self) -> None:
        self.flag = False


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> NpuStub:
    stub = NpuStub(2)
    module = types.ModuleType("torch_npu")
    module.__spec__ = types.SimpleNamespace(name="torch_npu")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "torch_npu", module)
    monkeypatch.setattr(torch, "npu", stub, raising=False)
    monkeypatch.delenv("ARCFACE_DEVICE", raising=False)
    # torch knows the device type "npu" only once a backend was renamed, which cannot be undone in this process.
    monkeypatch.setattr(torch, "device", lambda kind, index=None: f"{kind}:{index}")
    return stub


def test_the_npu_is_preferred_and_set_to_the_local_rank(npu: NpuStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    device = detect_device()
    assert (device.kind, str(device.torch_device), device.backend) == ("npu", "npu:1", "cpu:gloo,npu:hccl")
    assert npu.calls == [("set_device", 1)]
    device.synchronize()
    assert npu.calls[-1] == ("synchronize",)
    assert device.memory_bytes() == 123


def test_fp32_on_an_npu_stays_fp32_unless_hf32_is_asked_for(npu: NpuStub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARCFACE_HF32", "1")
    detect_device(local_rank=0)
    assert (npu.conv.allow_hf32, npu.config.allow_internal_format, npu.options) == (True, True, {})
    monkeypatch.delenv("ARCFACE_HF32")
    npu.matmul.allow_hf32 = True
    detect_device(local_rank=0)
    assert not npu.conv.allow_hf32
    assert not npu.matmul.allow_hf32
    assert not npu.config.allow_internal_format
    assert npu.options == {"ACL_PRECISION_MODE": "must_keep_origin_dtype"}


def test_more_processes_than_npus_are_told(npu: NpuStub) -> None:
    assert npu.devices == 2
    with pytest.raises(DeviceError, match=r"local rank 2 has no npu device: the node offers 2; lower --nproc_per_node"):
        detect_device(local_rank=2)


def test_an_npu_that_is_not_there_is_told(npu: NpuStub) -> None:
    npu.devices = 0
    with pytest.raises(DeviceError, match="no NPU is usable"):
        detect_device("npu")


def test_without_accelerator_the_cpu_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ARCFACE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device = detect_device()
    assert (device.kind, device.backend) == ("cpu", "gloo")
    assert device.memory_bytes() > 1_000_000
    with pytest.raises(DeviceError, match="no CUDA device is usable"):
        detect_device("cuda")
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        detect_device("tpu")


def test_autocast_on_the_cpu_computes_in_the_asked_precision() -> None:
    device = Device("cpu", torch.device("cpu"), "gloo")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with device.autocast(precision):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_no_file_but_one_names_a_device_call() -> None:
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent / "app"
    for path in root.rglob("*.py"):
        if path.name != "device.py":
            # The name of a function that pickles of torch_npu call is data: it is never imported.
            text = path.read_text().replace("torch_npu.utils.storage", "").replace("(torch_npu writes", "")
            for forbidden in (".cuda(", ".npu(", "torch.cuda", "torch.npu", "torch_npu", '"hccl"', '"nccl"'):
                assert forbidden not in text, f"{path}: {forbidden}"


def test_a_910a_that_saturates_is_asked_for_its_overflow_flag(npu: NpuStub) -> None:
    device = detect_device(local_rank=0)
    npu.flag = True
    assert not device.overflowed()  # a 910B shows Inf: nobody asks for a flag
    assert ("get_npu_overflow_flag",) not in npu.calls
    npu.shows_inf = False
    assert device.overflowed()
    device.clear_overflow()
    assert not device.overflowed()
    cpu = Device("cpu", torch.device, "gloo")  # type: ignore[arg-type]
    cpu.clear_overflow()
    assert not cpu.overflowed()


def test_batches_are_copied_on_a_stream_of_their_own_from_buffers_that_are_used_again(
    npu: NpuStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.device._page_locked", lambda shape: torch.empty(shape, dtype=torch.uint8))
    recorded: list[object] = []
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _, stream: recorded.append(stream))
    device = Device("npu", "cpu", "")  # type: ignore[arg-type]
    copies = device.copies()
    assert copies is not None
    first = copies.buffer((2, 3))
    first.fill_(7)
    copied, there = copies.send(first)
    assert there.stream == "side stream of cpu"
    assert ("stream", "side stream of cpu") in npu.calls
    other = copies.buffer((2, 3))
    assert other is not first  # its copy is still on the way
    there.done = True
    assert copies.buffer((4,)) is not first
    assert copies.buffer((2, 3)) is first
    first.fill_(9)
    arrived = device.arrived(copied, there)
    assert npu.calls[-1] == ("wait_event", there)
    assert recorded == [npu]
    assert arrived.tolist() == [[7] * 3] * 2


def test_work_runs_aside_between_what_was_queued_and_what_joins_it(npu: NpuStub) -> None:
    aside = Device("npu", "cpu", "").aside()  # type: ignore[arg-type]
    aside.join()
    assert not npu.calls  # nothing to wait for

    class Read:
        """A tensor that the work reads."""

    read = Read()
    alive = weakref.ref(read)
    aside.run(lambda: npu.calls.append("work"), read)
    del read
    side = "side stream of cpu"
    assert npu.calls == [("wait_stream", side, npu), ("stream", side), "work"]
    assert alive() is not None
    aside.join()
    assert npu.calls[3:] == [("wait_stream", "current", side)]
    assert alive() is None
    aside.join()
    assert len(npu.calls) == 4
    aside.run(lambda: npu.calls.append("first"))
    aside.run(lambda: npu.calls.append("second"))  # one piece of work at a time
    assert npu.calls[6:8] == ["first", ("wait_stream", "current", side)]


def test_on_a_cpu_work_aside_is_done_at_once() -> None:
    done = []
    aside = Device("cpu", torch.device("cpu"), "gloo").aside()
    aside.run(lambda: done.append(1))
    assert done == [1]
    aside.join()


def test_a_cpu_copies_nothing() -> None:
    device = Device("cpu", torch.device("cpu"), "gloo")
    assert device.copies() is None
    batch = torch.ones(2)
    assert device.arrived(batch, None) is batch


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """torch.cuda with two devices; notes which was set."""
    chosen: list[int] = []
    monkeypatch.delenv("ARCFACE_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return chosen


def test_cuda_searches_for_the_fastest_kernels_and_a_cpu_does_not(cuda: list[int]) -> None:
    assert detect_device("cpu").kind == "cpu"
    assert not torch.backends.cudnn.benchmark
    device = detect_device(local_rank=1)
    assert (str(device.torch_device), device.backend, cuda) == ("cuda:1", "cpu:gloo,cuda:nccl", [1])
    assert torch.backends.cudnn.benchmark


def test_buffers_for_copies_are_page_locked(npu: NpuStub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []
    empty = torch.empty

    def noted(shape: tuple[int, ...], **options: Any) -> torch.Tensor:
        asked.append(options)
        return empty(shape, dtype=options["dtype"])

    copies = Device("npu", "cpu", "").copies()  # type: ignore[arg-type]
    assert copies is not None
    monkeypatch.setattr(torch, "empty", noted)
    assert copies.buffer((2, 3)).shape == (2, 3)
    assert asked == [{"dtype": torch.uint8, "pin_memory": True}]
    assert not npu.calls  # nothing is copied yet
