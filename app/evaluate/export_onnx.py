"""Exports a backbone to ONNX with a dynamic batch, and checks the result against PyTorch before it counts."""

from __future__ import annotations

import io
import warnings

import numpy as np
import torch
from torch import nn

from app import storage
from app.errors import AppError

OPSET = 17


class ExportError(AppError):
    """The exported model does not compute what the backbone computes, or the export extra is missing."""


def export_onnx(url: str, backbone: nn.Module, image_size: int) -> float:
    """Write ``url`` and return the largest difference of normalised embeddings between ONNX Runtime and PyTorch.

    The graph takes ``input`` float32 [B, 3, S, S] in [-1, 1] and gives ``embedding`` float32 [B, D].

    Raises:
        ExportError: the difference is above 1e-3, or onnx is not installed; nothing is written then.
    """
    training = backbone.training
    backbone.eval()
    try:
        data = _to_onnx(backbone, image_size)
        difference = _difference(data, backbone, image_size)
    finally:
        backbone.train(training)
    if not difference < 1e-3:
        raise ExportError(f"{url}: ONNX Runtime and PyTorch differ by {difference:.2e}: the export was not written")
    storage.write_bytes(url, data)
    return difference


def _to_onnx(backbone: nn.Module, image_size: int) -> bytes:
    device = next(backbone.parameters()).device
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracing exporter announces its age; its graphs run everywhere
            torch.onnx.export(
                backbone,
                (torch.zeros(2, 3, image_size, image_size, device=device),),
                buffer,  # type: ignore[arg-type]
                input_names=["input"],
                output_names=["embedding"],
                dynamic_axes={"input": {0: "batch"}, "embedding": {0: "batch"}},
                opset_version=OPSET,
                dynamo=False,
            )
    except ImportError as error:
        raise ExportError(f"ONNX export needs the extra [export]: {error}") from error
    return buffer.getvalue()


def _difference(data: bytes, backbone: nn.Module, image_size: int) -> float:
    """Of batches of one and of three images, the largest."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    device = next(backbone.parameters()).device
    largest = []
    for batch in (1, 3):
        images = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (batch, 3, image_size, image_size))).float()
        with torch.inference_mode():
            expected = backbone(images.to(device)).float().cpu().numpy()
        found = np.asarray(session.run(None, {"input": images.numpy()})[0])
        units = [value / np.maximum(np.linalg.norm(value, axis=1, keepdims=True), 1e-12) for value in (expected, found)]
        largest.append(np.abs(units[0] - units[1]).max())
    return float(np.max(largest))
