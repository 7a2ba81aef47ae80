"""Exports a backbone to ONNX, and checks the result against PyTorch before it counts."""

from __future__ import annotations

import copy
import io
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from app import storage
from app.data.pixels import HALF_RANGE
from app.errors import AppError

OPSET = 17


class ExportError(AppError):
    """The exported model does not compute what the backbone computes, or the export extra is missing."""


@dataclass(frozen=True)
class OnnxOptions:
    """The form of an ONNX file.

    ``batch``: pictures at a time, 0 for any number. ``normalise``: ``inside`` takes pixels 0..255, ``outside`` takes
    of app.data.pixels. ``colours``: their order in the input. ``half``: weights, input and output in float16.
    ``simplified``: what does not depend on the input is computed, and what nobody uses left out, by onnxscript.
    ``about``: said in the file's metadata, beside colour_order, mean, scale, size and normalisation.
    """

    opset: int = OPSET
    input_name: str = "input"
    output_name: str = "embedding"
    batch: int = 0
    normalise: str = "outside"
    colours: str = "RGB"
    half: bool = False
    simplified: bool = False
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def input_type(self) -> torch.dtype:
        """Of the graph's input."""
        return torch.float16 if self.half else torch.float32


class _Wrapped(nn.Module):
    """The backbone as the file shall compute it: from its input's colours and range to embeddings."""

    def __init__(self, backbone: nn.Module, options: OnnxOptions) -> None:
        super().__init__()
        self.backbone, self.options = backbone, options

    def forward(self, images: Tensor) -> Tensor:
        if self.options.normalise == "inside":
            images = (images - HALF_RANGE) / HALF_RANGE
        if self.options.colours == "BGR":
            images = images[:, [2, 1, 0]]
        embeddings: Tensor = self.backbone(images)
        return embeddings


def export_onnx(url: str, backbone: nn.Module, image_size: int, options: OnnxOptions | None = None) -> float:
    """Write ``url`` and return the largest difference of normalised embeddings between ONNX Runtime and PyTorch.

    The graph takes float [B, 3, S, S] and gives float [B, D]; constants are folded.

    Raises:
        ExportError: the difference is above 1e-3 (fp16: 2e-2), or onnx is not installed; nothing is written then.
    """
    options = options or OnnxOptions()
    training = backbone.training
    backbone.eval()
    try:
        data = _describe(_to_onnx(backbone, image_size, options), image_size, options)
        difference = _difference(data, backbone, image_size, options)
    finally:
        backbone.train(training)
    if not difference < (2e-2 if options.half else 1e-3):
        raise ExportError(f"{url}: ONNX Runtime and PyTorch differ by {difference:.2e}: the export was not written")
    storage.write_bytes(url, data)
    return difference


def _to_onnx(backbone: nn.Module, image_size: int, options: OnnxOptions) -> bytes:
    device = next(backbone.parameters()).device
    model: nn.Module = _Wrapped(backbone, options).eval()  # the exporter restores the mode that it finds
    if options.half:
        model = copy.deepcopy(model).half()
    images = torch.zeros(options.batch or 2, 3, image_size, image_size, device=device, dtype=options.input_type)
    names = (options.input_name, options.output_name)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracing exporter announces its age; its graphs run everywhere
            torch.onnx.export(
                model,
                (images,),
                buffer,  # type: ignore[arg-type]
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_axes=None if options.batch else {name: {0: "batch"} for name in names},
                opset_version=options.opset,
                do_constant_folding=True,
                dynamo=False,
            )
    except ImportError as error:
        raise ExportError(f"ONNX export needs the extra [export]: {error}") from error
    except torch.onnx.errors.UnsupportedOperatorError as error:
        text = str(error).splitlines()[0]
        raise ExportError(f"opset {options.opset} cannot say what this backbone does: {text}; take a newer") from error
    return _simplify(buffer.getvalue()) if options.simplified else buffer.getvalue()


def _simplify(data: bytes) -> bytes:
    """The same graph with fewer nodes; its names of input and output, its opset and its free sizes stay."""
    import onnx
    from onnxscript import optimizer

    simplified: bytes = optimizer.optimize(onnx.load_from_string(data)).SerializeToString()
    return simplified


def _describe(data: bytes, image_size: int, options: OnnxOptions) -> bytes:
    """The file with metadata that says how to feed it."""
    import onnx

    model = onnx.load_from_string(data)
    inside = options.normalise == "inside"
    said = {
        **options.about,
        "normalisation": options.normalise,
        "colour_order": options.colours,
        "mean": 0.0 if inside else HALF_RANGE,
        "scale": 1.0 if inside else HALF_RANGE,
        "size": image_size,
    }
    onnx.helper.set_model_props(model, {name: str(value) for name, value in said.items()})
    onnx.checker.check_model(model)
    described: bytes = model.SerializeToString()
    return described


def _difference(data: bytes, backbone: nn.Module, image_size: int, options: OnnxOptions) -> float:
    """Of batches of one and of three images, or of the fixed size, the largest."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    device = next(backbone.parameters()).device
    largest = []
    for batch in (options.batch,) if options.batch else (1, 3):
        pixels = np.random.default_rng(0).integers(0, 256, (batch, 3, image_size, image_size)).astype(np.float32)
        given = pixels if options.normalise == "inside" else (pixels - HALF_RANGE) / HALF_RANGE
        given = given[:, ::-1] if options.colours == "BGR" else given
        kind = np.float16 if options.half else np.float32
        (out,) = session.run(None, {options.input_name: np.ascontiguousarray(given.astype(kind))})
        with torch.inference_mode():
            expected = backbone(torch.from_numpy((pixels - HALF_RANGE) / HALF_RANGE).to(device)).float().cpu().numpy()
        found = np.asarray(out, dtype=np.float32)
        found, expected = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (found, expected))
        largest.append(float(np.abs(found - expected).max()))
    return max(largest)
