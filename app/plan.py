"""What a run will need, before anybody pays for it: ``python -m app.plan --recipe R --nnodes N --hardware H``.

Bytes a device and a host by part, checkpoint size, and, where ``--rate`` gives the speed, hours and bytes a second from
the store. Ends with 65 when it cannot fit, and says what would. Nothing is allocated: the backbone is built on torch's
meta device, and its forward and backward pass run there under a count of what would be alive. ``benchmarks/plan.py``
compares the result with what runs on the CPU take. Not in it: what a device's driver and libraries keep for themselves.
"""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app import storage
from app.backbones.config import ModelConfig
from app.command_line import CommandLine
from app.config.options import parse_arguments
from app.config.recipe import Recipe
from app.errors import AppError, run_main
from app.evaluate.model_source import describe_backbone
from app.head.class_shards import class_range
from app.model_memory import bytes_of_embedding, bytes_of_training, parameter_count

_PROFILES = Path(__file__).resolve().parent.parent / "components" / "hardware_profiles"
_MIB = 1 << 20
_FACE_BYTES = 8 << 10  # a 112 x 112 JPEG of the public datasets, with its header
_SET_BYTES = 12_000 * _FACE_BYTES  # a verification set of 6,000 pairs, kept encoded
_PROCESS_BYTES = 256 * _MIB  # the interpreter with torch and all that app.train imports
_BLOCK_BYTES = {"cpu": 8 * _MIB, "device": 512 * _MIB}  # app.device.Device.block_bytes
# What the C library's allocator holds beyond what is alive, as a share of the backbone's pass: measured on the CPU by
# benchmarks/plan.py (0.19 to 0.42 of it in five runs). Accelerators: not measured, not counted.
_RESERVE = 0.25
_HALVES = 8


class ResourceError(AppError):
    """The run cannot fit, or its sizes are not known; says what to do."""


@dataclass(frozen=True)
class Needs:
    """Bytes of one process, by part.

    ``kept``: always there. ``backward``: beside them when most of the forward and backward pass is alive. ``update``:
    beside them while the optimizers run, when activations are gone. ``host``: of the process itself and of its data.
    """

    kept: dict[str, int]
    backward: dict[str, int]
    update: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """Most bytes at any moment, without ``host``."""
        return sum(self.kept.values()) + max(sum(self.backward.values()), sum(self.update.values()))


def predict(recipe: Recipe, processes: int, most: int = 0, *, on_device: bool = False) -> Needs:
    """Needs of the first of ``processes`` processes, which holds the most classes and the most logical workers.

    Args:
        most: processes of the largest world that the run may have; it sets the number of logical workers.
        on_device: whether an accelerator trains.

    Raises:
        ResourceError: the recipe does not say how many classes there are.
    """
    classes = recipe.data.num_classes
    if not classes:
        raise ResourceError("how many classes? set --data.num-classes: the recipe leaves it to the dataset")
    start, stop = class_range(classes, processes, 0)
    width, head = recipe.model.embedding_size, recipe.head
    rows = stop - start
    sampled = rows if head.sample_rate >= 1 else int(rows * head.sample_rate)
    model = 4 * count_parameters(recipe)
    rounds = workers_of_first(recipe, processes, most)
    gathered = recipe.train.batch_size * processes
    block = head.block_memory_mb << 20 or _BLOCK_BYTES["device" if on_device else "cpu"]
    forward, both = pass_bytes(recipe)
    kept = {
        "backbone": model,
        "optimizer": model * moments(recipe),
        "centres": rows * width * head.sub_centres * _bytes_of(head.centre_dtype),
        "momentum": rows * width * head.sub_centres * _state_bytes(recipe),
    }
    teacher, watching = teacher_bytes(recipe)
    if teacher:
        kept["teacher"] = teacher
    # Indices of the classes that a step samples, and their centres' lengths.
    chosen = sampled * (4 + (8 if sampled < rows else 0))
    # Embeddings of all processes: as they are, of length 1, their gradients twice; float32.
    samples = 4 * 4 * gathered * width
    backward = {"block of logits": 2 * block, "embeddings": samples + chosen}
    if processes > 1 or rounds > 1:
        kept["gradients"] = model  # they wait for the others, or for the next micro-batch
        backward["activations"] = max(forward + watching, both - model)
    else:
        backward["activations and gradients"] = max(forward + watching, both)
    update = {"block of centres": 2 * block, "embeddings": 4 * gathered * width * rounds * 2 + chosen}
    if "gradients" not in kept:
        update["gradients"] = model
    if on_device:
        update["optimizer's arrays"] = model  # its multi-tensor form makes one more of every gradient
    host = host_bytes(recipe, processes, rounds)
    if not on_device:
        host["allocator's reserve"] = int(_RESERVE * both)
    return Needs(kept, backward, update, host)


def workers_of_first(recipe: Recipe, processes: int, most: int = 0) -> int:
    """Logical workers that the busiest of ``processes`` processes runs, one after the other."""
    train = recipe.train
    logical = train.logical_workers or max(train.max_processes, most, processes) * train.gradient_accumulation
    return max(1, -(-logical // processes))


def moments(recipe: Recipe) -> int:
    """Arrays that the optimizer keeps beside each weight."""
    return 1 if recipe.optim.name == "sgd" else 2


def _bytes_of(dtype: str) -> int:
    return 2 if dtype == "bfloat16" else 4


def _state_bytes(recipe: Recipe) -> int:
    """Of the optimizer's state, a number of a centre; AdamW's second moment is float32 always."""
    return _bytes_of(recipe.head.momentum_dtype) + 4 * (moments(recipe) - 1)


def count_parameters(recipe: Recipe) -> int:
    """Of the backbone."""
    return parameter_count(recipe.model, recipe.data.image_size)


def pass_bytes(recipe: Recipe) -> tuple[int, int]:
    """What is alive when the forward pass of a micro-batch ends, and the most until its backward pass ends.

    Without the parameters, with the images as float32 and, in the second number, the gradients that are there by then.
    Under 16-bit precision activations have half the bytes, and the weights are there in it too.
    """
    forward, both = bytes_of_training(recipe.model, recipe.data.image_size, recipe.train.batch_size)
    if recipe.train.precision == "fp32":
        return forward, both
    halves = 2 * count_parameters(recipe)
    return forward // 2 + halves, both // 2 + halves


def teacher_bytes(recipe: Recipe) -> tuple[int, int]:
    """Of a distillation's teacher: its weights, and what is alive in its pass while the student's activations wait.

    Of a teacher in ONNX the weights alone are known: what a runtime takes for a pass depends on the runtime.
    """
    url = recipe.distill.teacher.rstrip("/")
    if not url:
        return 0, 0
    if url.endswith(".onnx"):
        return storage.info(url).size, 0
    name, width = describe_backbone(url, recipe.distill.teacher_backbone, recipe.distill.teacher_embedding_size)
    model = ModelConfig(backbone=name, embedding_size=width)
    size = recipe.data.image_size
    weights, watching = 4 * parameter_count(model, size), bytes_of_embedding(model, size, recipe.train.batch_size)
    return weights, watching if recipe.train.precision == "fp32" else (watching + weights) // 2


def host_bytes(recipe: Recipe, processes: int, rounds: int) -> dict[str, int]:
    """Of one process beside what it computes with: libraries, data on its way, the copy that a checkpoint makes."""
    data = recipe.data
    image = 3 * data.image_size**2
    ahead = max(1, data.prefetch, rounds) + data.workers
    parts = {"process": _PROCESS_BYTES, "batches ahead": ahead * recipe.train.batch_size * image}
    if data.url != "synthetic":
        window = data.window / (rounds * processes) * _FACE_BYTES if data.window else data.window_mb * _MIB
        stretch = data.num_images * _FACE_BYTES / (rounds * processes) if data.num_images else window
        parts["window"] = int(1.5 * min(window, stretch) * rounds)
        parts["verification sets"] = len(recipe.verify.sets) * _SET_BYTES
    if not recipe.train.perf_steps:
        parts["checkpoint's copy"] = checkpoint_bytes(recipe, class_range(data.num_classes, processes, 0))
    return parts


def checkpoint_bytes(recipe: Recipe, rows: tuple[int, int] | None = None) -> int:
    """Weights, centres and the optimizers' state of the whole run, or of the process that has the classes ``rows``."""
    start, stop = rows or (0, recipe.data.num_classes)
    of_a_number = _bytes_of(recipe.head.centre_dtype) + _state_bytes(recipe)
    return (
        4 * count_parameters(recipe) * (1 + moments(recipe))
        + (stop - start) * recipe.model.embedding_size * recipe.head.sub_centres * of_a_number
    )


@dataclass(frozen=True)
class Node:
    """What a node offers: ``device_mb`` a device, 0 where the host's memory is the device's."""

    devices: int
    device_mb: int
    host_mb: int


def load_node(name: str) -> Node:
    """A hardware profile of the checkout, read as data.

    Raises:
        ResourceError: there is none of that name here.
    """
    own: dict[str, Any] = {}
    base = name
    if name.endswith(".toml"):  # a file of one's own, which says what differs from its base
        try:
            own = tomllib.loads(Path(name).expanduser().read_text())
        except (OSError, ValueError) as error:
            raise ResourceError(f"--hardware {name}: {error}") from error
        base = str(own.get("base"))
    path = _PROFILES / f"{base.removesuffix('-host')}.toml"
    if not path.exists():
        names = ", ".join(sorted(found.stem for found in _PROFILES.glob("*.toml"))) or "none: this is no checkout"
        raise ResourceError(f"unknown hardware {base!r}: one of {names}; or give --device-mb and --host-mb")
    fields = tomllib.loads(path.read_text()) | own
    # A pod's limit is in units of 10^6 bytes.
    return Node(fields["devices"], fields.get("device_memory_mb", 0), fields["memory_mb"] * 10**6 >> 20)


@dataclass(frozen=True)
class Layout:
    """Where the processes are: ``processes`` in all, ``each`` a node; ``most`` in the largest world of the run."""

    processes: int
    each: int
    most: int

    def times(self, factor: int) -> Layout:
        """As many times the nodes."""
        return Layout(self.processes * factor, self.each, max(self.most, self.processes * factor))


@dataclass(frozen=True)
class Demand:
    """MiB that a device and a host need, and what of it does not fit, in words."""

    device_mb: int
    host_mb: int
    problems: tuple[str, ...]


def compare(recipe: Recipe, layout: Layout, node: Node) -> Demand:
    """What a node of the layout needs, against what it has."""
    needs = predict(recipe, layout.processes, layout.most, on_device=node.device_mb > 0)
    host = sum(needs.host.values()) * layout.each + (0 if node.device_mb else needs.peak * layout.each)
    found = []
    if node.device_mb and needs.peak > node.device_mb * _MIB:
        found.append(f"a device has {node.device_mb} MiB and {needs.peak // _MIB} MiB are needed")
    if host > node.host_mb * _MIB:
        found.append(f"a host has {node.host_mb} MiB and {host // _MIB} MiB are needed")
    return Demand(needs.peak // _MIB, host // _MIB, tuple(found))


def remedy(recipe: Recipe, layout: Layout, node: Node) -> str:
    """The first change that would fit, of those that are tried; the least harmful first."""
    for words, other in _smaller(recipe):
        if not compare(other, layout, node).problems:
            return f"{words} would fit"
    for factor in (2, 4, 8, 16):
        if not compare(recipe, layout.times(factor), node).problems:
            return f"{factor} times the nodes would fit"
    for words, other in _smaller(recipe):
        for factor in (2, 4, 8, 16):
            if not compare(other, layout.times(factor), node).problems:
                return f"{factor} times the nodes with {words} would fit"
    return "smaller batches and more nodes alone would not do: take a smaller backbone or other hardware"


def _smaller(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """The same run with less memory, and the options that make it so."""
    data, model, train, head = recipe.data, recipe.model, recipe.train, recipe.head
    if data.url != "synthetic" and data.window_mb > 64 and not data.window:
        yield "--data.window-mb 64", dataclasses.replace(recipe, data=dataclasses.replace(data, window_mb=64.0))
    if not model.gradient_checkpointing:
        changed = dataclasses.replace(model, gradient_checkpointing=True)
        yield "--model.gradient-checkpointing true", dataclasses.replace(recipe, model=changed)
    for halvings in range(1, _HALVES):
        if (size := train.batch_size >> halvings) < 2:
            break
        times = train.gradient_accumulation << halvings
        changed_train = dataclasses.replace(train, batch_size=size, gradient_accumulation=times)
        words = f"--train.batch-size {size} --train.gradient-accumulation {times} (the same global batch)"
        yield words, dataclasses.replace(recipe, train=changed_train)
    changed_head = dataclasses.replace(head, centre_dtype="bfloat16", momentum_dtype="bfloat16")
    words = "--head.centre-dtype bfloat16 --head.momentum-dtype bfloat16"
    yield words, dataclasses.replace(recipe, head=changed_head)


def main(arguments: list[str]) -> int:
    """Print the parts; refuse what cannot fit."""
    parser = CommandLine(
        "python -m app.plan",
        usage="%(prog)s --recipe NAME [--nnodes N] [--hardware NAME] [--rate R] [--section.field VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--nnodes", default="1", metavar="N", help="N or MIN:MAX; the least number is the hardest")
    parser.add_argument("--nproc-per-node", type=int, default=0, metavar="N", help="0: one a device of the profile")
    parser.add_argument(
        "--hardware", default="ascend-910b", metavar="NAME", help="a node, or .toml file; default: %(default)s"
    )
    parser.add_argument("--device-mb", type=int, metavar="MIB", help="memory of a device; default: the profile's")
    parser.add_argument("--host-mb", type=int, metavar="MIB", help="memory of a host; default: the profile's share")
    parser.add_argument("--rate", type=float, default=0.0, metavar="R", help="img/s of the whole job, if known")
    options, rest = parser.parse_known_args(arguments)
    recipe = parse_arguments(rest)
    least, most = parse_nodes(options.nnodes)
    node = load_node(options.hardware)
    each = options.nproc_per_node or node.devices
    if each < 1:
        raise ResourceError(f"--nproc-per-node {each}: at least 1, or 0 for as many as there are devices")
    if each < node.devices:
        node = dataclasses.replace(node, host_mb=node.host_mb * each // node.devices)
    given = {"device_mb": options.device_mb, "host_mb": options.host_mb}
    node = dataclasses.replace(node, **{key: value for key, value in given.items() if value is not None})
    layout = Layout(least * each, each, most * each)
    print(report(recipe, layout, node, options.rate), flush=True)
    demand = compare(recipe, layout, node)
    if demand.problems:
        raise ResourceError(f"{'; '.join(demand.problems)}: {remedy(recipe, layout, node)}")
    device = f"a device needs {demand.device_mb} of {node.device_mb} MiB, " if node.device_mb else ""
    print(f"fits: {device}a host needs {demand.host_mb} of {node.host_mb} MiB", flush=True)
    return 0


def parse_nodes(text: str) -> tuple[int, int]:
    """``"4"`` -> (4, 4), ``"2:4"`` -> (2, 4).

    Raises:
        ResourceError: it is neither.
    """
    least, colon, most = text.partition(":")
    numbers = [least, most] if colon else [least, least]
    if not all(number.isascii() and number.isdigit() for number in numbers) or not 1 <= int(least) <= int(numbers[1]):
        raise ResourceError(f"--nnodes must be N or MIN:MAX, as in 4 or 2:4; got {text!r}")
    return int(least), int(numbers[1])


def report(recipe: Recipe, layout: Layout, node: Node, rate: float) -> str:
    """The parts of one process in MiB, and the figures of the run."""
    needs = predict(recipe, layout.processes, layout.most, on_device=node.device_mb > 0)
    lines = [f"{recipe.name} on {layout.processes} process{'es' * (layout.processes > 1)}, MiB a process:"]
    for title, parts in (
        ("kept", needs.kept),
        ("backward", needs.backward),
        ("update", needs.update),
        ("host", needs.host),
    ):
        lines += [f"  {title:<9} {name:<25} {size / _MIB:>10.1f}" for name, size in parts.items() if size]
    where = "of a device" if node.device_mb else "without host"
    lines.append(f"  {'peak':<9} {where:<25} {needs.peak / _MIB:>10.1f}")
    lines.append(f"checkpoint: {checkpoint_bytes(recipe) / _MIB:.1f} MiB")
    if rate and recipe.data.num_images:
        hours = recipe.data.num_images * recipe.train.epochs / rate / 3600
        lines.append(f"{hours:.1f} hours at {rate:.0f} img/s, {rate * _FACE_BYTES / 1e6:.1f} MB/s from the store")
    elif rate:
        lines.append(f"{rate * _FACE_BYTES / 1e6:.1f} MB/s from the store; hours: set --data.num-images")
    else:
        lines.append("hours: not known; measure img/s with --train.perf-steps 100 and give --rate")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
