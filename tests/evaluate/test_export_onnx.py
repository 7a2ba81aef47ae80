"""Every family of backbones as ONNX: the same embeddings as PyTorch, for any batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from app.backbones.registry import build_backbone
from app.evaluate.export_onnx import export_onnx


@pytest.mark.parametrize("name", ["r18", "mbf", "vit_t_dp005_mask0"])
def test_embeddings_are_those_of_pytorch_for_any_batch(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = build_backbone(name, embedding_size=512, image_size=112)
    with torch.no_grad():
        model(torch.randn(4, 3, 112, 112))  # in training mode: running statistics that are not the initial ones
    export_onnx(str(tmp_path / "model.onnx"), model, 112)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    for batch in (1, 3):
        images = torch.randn(batch, 3, 112, 112)
        (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            expected = model.eval()(images).numpy()
        assert isinstance(found, np.ndarray)
        assert found.shape == (batch, 512)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
