"""Exports a trained backbone: ``python -m app.export --model RUN --output model.onnx``; also .pt2 and .pt.

``--model`` is a run folder, its /checkpoints (``--step`` chooses one), or weights in a file. What ``--output`` ends
with says the format: ``.onnx``, ``.pt2`` (torch.export) or ``.pt`` (a state dict with a .json beside it: a checkpoint
of any step becomes a model without training). An ONNX file is run against PyTorch before it counts.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from typing import Any

import torch
from torch import nn

from app import storage
from app.command_line import CommandLine
from app.device import detect_device
from app.errors import run_main
from app.evaluate.export_onnx import ExportError, OnnxOptions, export_onnx
from app.evaluate.model_source import add_model_options, model_options, open_backbone


def main(arguments: list[str]) -> int:
    """Open the model, write what was asked for, say where it is."""
    options = parse(arguments)
    model, about = open_backbone(
        options.model,
        detect_device("cpu"),
        image_size=options.image_size,
        step=options.step,
        **model_options(options),
    )
    model.eval()
    about["weights_sha256"] = weights_hash(model)
    if options.output.endswith(".onnx"):
        for url, batch in onnx_files(options.output, options.batch):
            form = OnnxOptions(
                opset=options.opset,
                input_name=options.input_name,
                output_name=options.output_name,
                batch=batch,
                normalise=options.normalise,
                colours=options.colours,
                half=options.fp16,
                simplified=options.simplified,
                about=about,
            )
            difference = export_onnx(url, model, int(about["image_size"]), form)
            print(f"{storage.redact(url)}: differs from PyTorch by at most {difference:.1e}")
    elif options.output.endswith(".pt2"):
        storage.write_bytes(options.output, to_exported_program(model, int(about["image_size"])))
        print(storage.redact(options.output))
    elif options.output.endswith(".pt"):
        write_state_dict(options.output, model, about)
        print(storage.redact(options.output))
    else:
        raise ExportError(f"{options.output}: the name must end with .onnx, .pt2 or .pt, which says the format")
    return 0


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names, types and values of a state dict: the same weights, the same hash, whatever the file."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def onnx_files(url: str, batch: str) -> list[tuple[str, int]]:
    """Each file to write and its batch, 0 for any: one file, or for ``1,8`` one a size: ``model_b1.onnx``, ...

    Raises:
        ExportError: the batch is neither ``dynamic`` nor whole numbers above 0.
    """
    if batch == "dynamic":
        return [(url, 0)]
    try:
        sizes = [int(word) for word in batch.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        raise ExportError(f"--batch must be dynamic, a number, or numbers as in 1,8,32; got {batch!r}")
    if len(sizes) == 1:
        return [(url, sizes[0])]
    return [(f"{url.removesuffix('.onnx')}_b{size}.onnx", size) for size in sizes]


def to_exported_program(model: nn.Module, image_size: int) -> bytes:
    """A ``torch.export`` program with a dynamic batch; its input is that of the backbone, [-1, 1]."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.export.export(
        model, (torch.zeros(2, 3, image_size, image_size),), dynamic_shapes={"images": {0: batch}}
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def write_state_dict(url: str, model: nn.Module, about: dict[str, Any]) -> None:
    """The weights as the trainer writes them at its end, and their description beside them."""
    buffer = io.BytesIO()
    torch.save({name: value.detach().cpu().clone() for name, value in model.state_dict().items()}, buffer)
    storage.write_bytes(url, buffer.getvalue())
    described = {**about, "sha256": hashlib.sha256(buffer.getvalue()).hexdigest()}
    storage.write_bytes(f"{url.removesuffix('.pt')}.json", json.dumps(described, indent=1).encode())


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("python -m app.export", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser, what="URL of a run folder, its /checkpoints, or weights: .pt, .pth, .ckpt, .safetensors")
    parser.add_argument("--output", required=True, help="URL ending with .onnx, .pt2 or .pt")
    parser.add_argument("--step", type=int, default=-1, help="of a checkpoint; default: the final or newest weights")
    parser.add_argument("--image-size", type=int, default=112, help="of a bare state dict")
    onnx = parser.add_argument_group("ONNX")
    onnx.add_argument("--opset", type=int, choices=range(11, 21), default=17, metavar="11..20")
    onnx.add_argument("--input-name", default="input")
    onnx.add_argument("--output-name", default="embedding")
    onnx.add_argument("--batch", default="dynamic", help="dynamic, a number, or several: a file each")
    onnx.add_argument("--normalise", choices=("outside", "inside"), default="outside", help="inside: takes 0..255")
    onnx.add_argument("--colours", choices=("RGB", "BGR"), default="RGB", help="order in which the input has them")
    onnx.add_argument("--fp16", action="store_true", help="half-precision weights and input")
    onnx.add_argument("--simplified", action="store_true", help="constants folded, unused nodes left out")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
