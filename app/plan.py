"""What a run will need, before anybody pays for it: ``python -m app.plan --recipe R --nnodes N --hardware H``.

Bytes a device and a host by part, checkpoint size, and, where ``--rate`` gives the speed, hours and bytes a second from
the store. Ends with 65 when it cannot fit, and says what would. Nothing is allocated: the backbone is built without
memory, and what its backward pass will hold is counted by torch as it is saved. Peaks of libraries (workspaces of
convolutions, fragmentation) are not in it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch

from app.config.options import parse_arguments
from app.config.recipe import Recipe
from app.errors import AppError, run_main
from app.head.class_shards import class_range
from app.run_folder import build_model

_PROFILES = Path(__file__).resolve().parent.parent / "components" / "hardware_profiles"
_MIB = 1 << 20
_FACE_BYTES = 8 << 10  # a 112 x 112 JPEG of the public datasets, with its header
_HALVES = 8


class ResourceError(AppError):
    """The run cannot fit, or its sizes are not known; says what to do."""


@dataclass(frozen=True)
class Needs:
    """Bytes of one process, by part.

    ``kept``: always there. ``backward``: beside them at the end of the forward pass. ``update``: beside them while the
    optimizers run, when activations are gone. ``host``: of the process itself and of its data.
    """

    kept: dict[str, int]
    backward: dict[str, int]
    update: dict[str, int]
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """Most bytes at any moment, without ``host``."""
        return sum(self.kept.values()) + max(sum(self.backward.values()), sum(self.update.values()))


def predict(recipe: Recipe, processes: int) -> Needs:
    """Needs of the first of ``processes`` processes, which holds the most classes.

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
    centre_bytes = 2 if head.centre_dtype == "bfloat16" else 4
    moments = 1 if recipe.optim.name == "sgd" else 2
    parameters = count_parameters(recipe)
    gathered = recipe.train.batch_size * processes
    kept = {
        "backbone": 4 * parameters,
        "optimizer": 4 * parameters * moments,
        "gradients": 4 * parameters,
        "centres": rows * width * centre_bytes,
        "momentum": 4 * rows * width * moments,
        "centre gradient": sampled * width * centre_bytes,
        "sampled centres": sampled * width * centre_bytes if head.sample_rate < 1 else 0,
    }
    block_rows = min(sampled, max(1024, (head.block_memory_mb << 20) // (12 * gathered)))
    # Logits, gradient and exponentials of a block, its normalised centres and their gradient.
    block = block_rows * (12 * gathered + 12 * width)
    backward = {"activations": activation_bytes(recipe), "block of logits": block}
    # Scaled gradient, gradient with decay, step and result; of sampled rows the state is copied too.
    copies = 4 if head.sample_rate >= 1 else 5 + moments
    update = {"centre update": 4 * sampled * width * copies}
    return Needs(kept, backward, update, host_bytes(recipe))


def count_parameters(recipe: Recipe) -> int:
    """Of the backbone."""
    with torch.device("meta"):
        model = build_model(recipe.model, recipe.data.image_size)
    return sum(parameter.numel() for parameter in model.parameters())


def activation_bytes(recipe: Recipe) -> int:
    """What the forward pass of one micro-batch saves for the backward pass, without the parameters.

    Under 16-bit precision saved tensors have half the bytes; the few that stay float32 are taken as halved too.
    """
    size = recipe.data.image_size
    saved: dict[int, int] = {}
    with torch.device("meta"):
        model = build_model(recipe.model, size).train()
        images = torch.zeros(recipe.train.batch_size, 3, size, size)
        parameters = {tensor.untyped_storage()._cdata for tensor in model.parameters()}
        keep = []  # a storage that went would lend its identity to another

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            keep.append(storage)
            if storage._cdata not in parameters:
                saved[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            output = model(images)
    del output
    total = sum(saved.values())
    return total if recipe.train.precision == "fp32" else total // 2


def host_bytes(recipe: Recipe) -> dict[str, int]:
    """The interpreter with its libraries, as measured in this process, and the micro-batches decoded ahead."""
    image = 3 * recipe.data.image_size**2
    ahead = max(1, recipe.data.prefetch) + 2
    window = recipe.data.window * _FACE_BYTES * 2 if recipe.data.url != "synthetic" else 0
    return {"process": resident_bytes(), "batches ahead": ahead * recipe.train.batch_size * image, "window": window}


def resident_bytes() -> int:
    """Of this process; a quarter of a GiB where the system does not tell."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) << 10
    return 256 * _MIB


def checkpoint_bytes(recipe: Recipe) -> int:
    """Weights, centres and the optimizers' state of the whole run."""
    moments = 1 if recipe.optim.name == "sgd" else 2
    centre_bytes = 2 if recipe.head.centre_dtype == "bfloat16" else 4
    centres = recipe.data.num_classes * recipe.model.embedding_size * (centre_bytes + 4 * moments)
    return 4 * count_parameters(recipe) * (1 + moments) + centres


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
    path = _PROFILES / f"{name.removesuffix('-host')}.toml"
    if not path.exists():
        names = ", ".join(sorted(found.stem for found in _PROFILES.glob("*.toml"))) or "none: this is no checkout"
        raise ResourceError(f"unknown hardware {name!r}: one of {names}; or give --device-mb and --host-mb")
    fields = tomllib.loads(path.read_text())
    return Node(fields["devices"], fields.get("device_memory_mb", 0), fields["memory_mb"])


def problems(recipe: Recipe, processes: int, each: int, node: Node) -> list[str]:
    """What does not fit, in words; empty when all does."""
    needs = predict(recipe, processes)
    host = sum(needs.host.values()) * each + (0 if node.device_mb else needs.peak * each)
    found = []
    if node.device_mb and needs.peak > node.device_mb * _MIB:
        found.append(f"a device has {node.device_mb} MiB and {needs.peak // _MIB} MiB are needed")
    if host > node.host_mb * _MIB:
        found.append(f"a host has {node.host_mb} MiB and {host // _MIB} MiB are needed")
    return found


def remedy(recipe: Recipe, processes: int, each: int, node: Node) -> str:
    """The first change that would fit, of those that are tried; they say what else changes."""
    batch = recipe.train.batch_size
    for halvings in range(1, _HALVES):
        size = batch >> halvings
        if size < 1:
            break
        smaller = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=size))
        if not problems(smaller, processes, each, node):
            keep = f" --train.gradient-accumulation {recipe.train.gradient_accumulation << halvings}"
            return f"--train.batch-size {size}{keep} would fit, with the same global batch"
    for factor in (2, 4, 8, 16):
        if not problems(recipe, processes * factor, each, node):
            return f"{factor} times the nodes would fit"
    return "smaller batches and more nodes alone would not do: take a smaller backbone or other hardware"


def main(arguments: list[str]) -> int:
    """Print the parts; refuse what cannot fit."""
    parser = argparse.ArgumentParser(
        "app.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--nnodes", default="1", help="N or MIN:MAX; the least number is the hardest")
    parser.add_argument("--nproc-per-node", type=int, default=0, help="0: as many as the profile has devices")
    parser.add_argument("--hardware", default="ascend-910b")
    parser.add_argument("--device-mb", type=int, help="memory of a device in MiB; default: the profile's")
    parser.add_argument("--host-mb", type=int, help="memory of a host in MiB; default: the profile's")
    parser.add_argument("--rate", type=float, default=0.0, help="img/s of the whole job, where it is known")
    options, rest = parser.parse_known_args(arguments)
    recipe = parse_arguments(rest)
    least = options.nnodes.partition(":")[0]
    if not least.isdigit() or int(least) < 1:
        raise ResourceError(f"--nnodes must be N or MIN:MAX, as in 4 or 2:4; got {options.nnodes!r}")
    node = load_node(options.hardware)
    given = {"device_mb": options.device_mb, "host_mb": options.host_mb}
    node = dataclasses.replace(node, **{key: value for key, value in given.items() if value is not None})
    each = options.nproc_per_node or node.devices
    processes = int(least) * each
    print(report(recipe, processes, options.rate), flush=True)
    if found := problems(recipe, processes, each, node):
        raise ResourceError(f"{'; '.join(found)}: {remedy(recipe, processes, each, node)}")
    return 0


def report(recipe: Recipe, processes: int, rate: float) -> str:
    """The parts of one process in MiB, and the figures of the run."""
    needs = predict(recipe, processes)
    lines = [f"{recipe.name} on {processes} processes, MiB a process:"]
    for title, parts in (
        ("kept", needs.kept),
        ("backward", needs.backward),
        ("update", needs.update),
        ("host", needs.host),
    ):
        lines += [f"  {title:<9} {name:<16} {size / _MIB:>10.1f}" for name, size in parts.items() if size]
    lines.append(f"  {'peak':<9} {'of a device':<16} {needs.peak / _MIB:>10.1f}")
    lines.append(f"checkpoint: {checkpoint_bytes(recipe) / _MIB:.1f} MiB")
    if rate and recipe.data.num_images:
        hours = recipe.data.num_images * recipe.train.epochs / rate / 3600
        lines.append(f"{hours:.1f} hours at {rate:.0f} img/s, {rate * _FACE_BYTES / 1e6:.1f} MB/s from the store")
    elif not rate:
        lines.append("hours: not known; measure img/s with --train.perf-steps 100 and give --rate")
    return "\n".join(lines)


if __name__ == "__main__":
    run_main(main)
