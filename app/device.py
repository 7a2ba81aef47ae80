"""The only file that calls what torch has for NPUs and CUDA: everything else asks a ``Device``, or compares its kind.

torch is loaded when a device is asked for, so that a node can be checked, and refused, without waiting for it.

Nothing here has been run on an NPU: the Ascend branch is thin, follows torch_npu's documented API, and is exercised
by tests with a stub of it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import AppError

if TYPE_CHECKING:
    import torch

# Device nodes by kind; their number is that of the devices which this pod or machine may use.
DEVICE_FILES = {"npu": "/dev/davinci[0-9]*", "cuda": "/dev/nvidia[0-9]*"}


class DeviceError(AppError):
    """The asked-for device is not there, or its driver does not load."""


@dataclass(frozen=True)
class Device:
    """One process's device and the choices that follow from it."""

    kind: str  # npu | cuda | cpu
    torch_device: torch.device
    backend: str  # process-group backend, CPU included: asynchronous checkpoints need a CPU backend

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        if self.kind != "cpu":
            _module(self.kind).synchronize()

    def memory_bytes(self) -> int:
        """Peak bytes allocated on the device so far; on CPU the resident set of the process."""
        if self.kind != "cpu":
            return int(_module(self.kind).max_memory_allocated())
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def make_reproducible(self) -> None:
        """From here on, the same operation on the same numbers gives the same bits, whatever else this process does.

        On a CPU: one thread, as sums are divided among threads. On accelerators: torch's deterministic algorithms,
        and for CUDA the workspace of cuBLAS that they ask for; no search for the fastest kernels, which finds others
        in another process.
        """
        import torch

        if self.kind == "cpu":
            torch.set_num_threads(1)
            return
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False

    def autocast(self, precision: str) -> contextlib.AbstractContextManager[Any]:
        """Autocast context of a precision: fp32 (none), bf16 or fp16."""
        if precision == "fp32":
            return contextlib.nullcontext()
        import torch

        return torch.autocast(self.kind, dtype=dtype_of(precision))

    @property
    def has_sync_bn(self) -> bool:
        """Whether torch has a synchronised BatchNorm for it."""
        return self.kind != "cpu"

    def clear_overflow(self) -> None:
        """Forget overflows so far, on a device that hides them; see ``overflowed``."""
        if self._saturates:
            _module("npu").clear_npu_overflow_flag()

    def overflowed(self) -> bool:
        """Whether an operation overflowed since ``clear_overflow``, where results do not show it.

        An Ascend 910A saturates half-precision numbers instead of making them Inf, and raises a flag. Everywhere else
        this is False: Inf and NaN are in the results.
        """
        return self._saturates and bool(_module("npu").get_npu_overflow_flag())

    @property
    def _saturates(self) -> bool:
        return self.kind == "npu" and not bool(_module("npu").is_support_inf_nan())

    @property
    def block_bytes(self) -> int:
        """Memory for a block of class centres: what a CPU's caches hold; enough to keep an accelerator busy.

        On an H200 a block takes 30 operations of 10 us to launch; below this the device waits for the host.
        """
        return 8 << 20 if self.kind == "cpu" else 512 << 20

    def copies(self) -> BatchCopies | None:
        """What copies batches ahead of need; None on a CPU, which needs no copy."""
        return None if self.kind == "cpu" else BatchCopies(self)

    def aside(self) -> Aside:
        """Where work runs beside what is queued next; see ``Aside``."""
        return Aside(self)

    def arrived(self, tensor: torch.Tensor, there: Any) -> torch.Tensor:
        """The tensor on this device; work queued from now on waits for a copy that ``BatchCopies`` began."""
        if there is None:
            return tensor.to(self.torch_device, non_blocking=True)
        stream = _module(self.kind).current_stream()
        stream.wait_event(there)
        tensor.record_stream(stream)  # its memory is not given away before this stream has used it
        return tensor

    @contextlib.contextmanager
    def profiler(self, folder: str, *, skip: int = 2, steps: int = 5) -> Iterator[Any]:
        """Trace ``steps`` steps after ``skip`` (call ``.step()`` after each) for TensorBoard and Perfetto."""
        import torch

        module = importlib.import_module("torch_npu").profiler if self.kind == "npu" else torch.profiler
        activities = [module.ProfilerActivity.CPU]
        if self.kind == "npu":
            activities.append(module.ProfilerActivity.NPU)
        elif self.kind == "cuda":
            activities.append(module.ProfilerActivity.CUDA)
        with module.profile(
            activities=activities,
            schedule=module.schedule(wait=max(0, skip - 1), warmup=min(1, skip), active=steps, repeat=1),
            on_trace_ready=module.tensorboard_trace_handler(folder),
        ) as profiler:
            yield profiler


class Aside:
    """One piece of work at a time on a stream of its own, beside what is queued next; on a CPU it runs at once.

    What it reads must stay alive, and what it writes alone, until ``join``: the allocator of the stream that made
    those tensors would give their memory away as soon as Python forgets them.
    """

    def __init__(self, device: Device) -> None:
        self._module = None if device.kind == "cpu" else _module(device.kind)
        self._stream = self._module.Stream(device=device.torch_device) if self._module else None
        self._held: tuple[Any, ...] | None = None  # while work may be under way

    def run(self, work: Callable[[], None], *held: Any) -> None:
        """Queue ``work`` behind all that is queued so far; ``held`` are kept until ``join``."""
        self.join()
        if self._module is None or self._stream is None:
            work()
            return
        self._stream.wait_stream(self._module.current_stream())
        self._held = held
        with self._module.stream(self._stream):
            work()

    def join(self) -> None:
        """What is queued from now on comes after the work; the host does not wait."""
        if self._module is not None and self._held is not None:
            self._module.current_stream().wait_stream(self._stream)
            self._held = None


class BatchCopies:
    """Copies of host batches to an accelerator, begun ahead of need on a stream of their own.

    Batches are decoded into page-locked buffers, which are used again once their copy is done: locking fresh memory
    costs more than the copy. Threads may share one object.
    """

    def __init__(self, device: Device) -> None:
        self._module, self._device = _module(device.kind), device.torch_device
        self._stream = self._module.Stream(device=self._device)
        self._free: list[torch.Tensor] = []
        self._busy: list[tuple[Any, torch.Tensor]] = []
        self._lock = threading.Lock()

    def buffer(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A page-locked uint8 array of this shape, whatever it held before."""
        with self._lock:
            done = [buffer for event, buffer in self._busy if event.query()]
            self._busy = [pair for pair in self._busy if not any(pair[1] is buffer for buffer in done)]
            self._free += done
            for place, buffer in enumerate(self._free):
                if tuple(buffer.shape) == shape:
                    return self._free.pop(place)
        return _page_locked(shape)

    def send(self, buffer: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Begin the copy of a ``buffer``; the copy, and what ``Device.arrived`` waits for. The buffer is given back."""
        with self._module.stream(self._stream):  # of this thread: each has a current stream of its own
            copied = buffer.to(self._device, non_blocking=True, copy=True)
            event = self._module.Event()
            event.record(self._stream)
        with self._lock:
            self._busy.append((event, buffer))
        return copied, event


def _page_locked(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.empty(shape, dtype=torch.uint8, pin_memory=True)


def dtype_of(name: str) -> torch.dtype:
    """torch's type for the name of a precision, as recipes write it: fp32, bf16, fp16, float32, bfloat16, float16."""
    import torch

    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    found: torch.dtype = getattr(torch, short.get(name, name))
    return found


def detect_device(kind: str = "auto", local_rank: int | None = None) -> Device:
    """Choose and initialise this process's device.

    Args:
        kind: auto (npu, then cuda, then cpu), npu, cuda or cpu. The environment's ``ARCFACE_DEVICE`` replaces auto.
        local_rank: index on the node; the default is ``LOCAL_RANK``.

    Raises:
        DeviceError: the device was asked for by name and is not usable, or the node has fewer than ``local_rank + 1``.
    """
    import torch

    kind = os.environ.get("ARCFACE_DEVICE", "auto") if kind == "auto" else kind
    index = int(os.environ.get("LOCAL_RANK", "0")) if local_rank is None else local_rank
    if kind == "auto":
        kind = "npu" if _npu_available() else "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "cpu":
        return Device("cpu", torch.device("cpu"), "gloo")
    if kind == "npu":
        if not _npu_available():
            raise DeviceError("no NPU is usable: install the [npu] extra and CANN, and check npu-smi info")
        backend = "cpu:gloo,npu:hccl"
    elif kind == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError("no CUDA device is usable: check nvidia-smi and the driver's version")
        backend = "cpu:gloo,cuda:nccl"
        # Shapes stay the same for a whole run: the fastest kernel of each layer is worth the search.
        torch.backends.cudnn.benchmark = True
    else:
        raise DeviceError(f"unknown device {kind!r}: use auto, npu, cuda or cpu")
    module = _module(kind)
    if kind == "npu":
        _keep_fp32(module)
    count = int(module.device_count())
    if index >= count:
        raise DeviceError(f"local rank {index} has no {kind} device: the node offers {count}; lower --nproc_per_node")
    module.set_device(index)
    return Device(kind, torch.device(kind, index), backend)


def _keep_fp32(npu: Any) -> None:
    """Make fp32 on an NPU mean fp32, as the Ascend port sets it.

    Else a 910A computes its fp32 convolutions and products in fp16, a 910B convolutions in HF32 (torch_npu's default),
    and weights change their layout in memory. ``ARCFACE_HF32=1`` leaves all that as CANN likes.
    """
    if os.environ.get("ARCFACE_HF32") == "1":
        return
    npu.config.allow_internal_format = False
    npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
    npu.matmul.allow_hf32 = False
    npu.conv.allow_hf32 = False


def _npu_available() -> bool:
    if importlib.util.find_spec("torch_npu") is None:
        return False
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # without CANN's libraries the import itself fails
        raise DeviceError(f"torch_npu is installed but does not load ({error}): source CANN's set_env.sh") from error
    return bool(_module("npu").is_available())


def _module(kind: str) -> Any:
    import torch

    return getattr(torch, kind)


def onnx_providers(available: Sequence[str]) -> list[str]:
    """ONNX Runtime's execution providers to use, of those that are there: CUDA, CANN, and CPU for what they lack.

    The environment's ``ARCFACE_DEVICE`` decides as it does for torch.
    """
    kind = os.environ.get("ARCFACE_DEVICE", "auto")
    wanted = {"cuda": ["CUDAExecutionProvider"], "npu": ["CANNExecutionProvider"], "cpu": []}
    preferred = wanted.get(kind, ["CUDAExecutionProvider", "CANNExecutionProvider"])
    return [name for name in [*preferred, "CPUExecutionProvider"] if name in available]
