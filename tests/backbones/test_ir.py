"""IR-18, -50 and -101: AdaFace's names and sizes, its formula from the names alone, its files with their BGR."""

from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from app.backbones.ir import IR
from app.backbones.registry import build_backbone
from app.weights import load_foreign, parse_weights

# Of the reference's networks of the same depth, without the first shortcut (a convolution of 64 to 64 channels and its
# BatchNorm) and without scale and shift of the embedding.
SIZES = {"ir_18": 24_025_600, "ir_50": 43_590_848, "ir_101": 65_156_160}


def with_statistics(name: str, image_size: int) -> torch.nn.Module:
    """A backbone whose every tensor is random: nothing in it is 0 or 1 by chance."""
    torch.manual_seed(3)
    model = build_backbone(name, embedding_size=16, image_size=image_size).eval()
    for key, value in model.state_dict().items():
        if value.is_floating_point() and value.dim() == 1:
            value.uniform_(0.5, 1.5) if "var" in key or "weight" in key else value.uniform_(-0.2, 0.2)
    return model


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    affine = (state.get(f"{name}.weight"), state.get(f"{name}.bias"))
    return F.batch_norm(x, state[f"{name}.running_mean"], state[f"{name}.running_var"], *affine, eps=1e-5)


def embed(state: dict[str, Tensor], images: Tensor, blocks: list[int]) -> Tensor:
    """The published network, from a state dict by its names."""
    x = F.conv2d(images, state["input_layer.0.weight"], padding=1)
    x = F.prelu(norm(state, "input_layer.1", x), state["input_layer.2.weight"])
    number = 0
    for depth in blocks:
        for stride in [2, *[1] * (depth - 1)]:
            block, number = f"body.{number}", number + 1
            shortcut = x[..., ::stride, ::stride]
            if f"{block}.shortcut_layer.0.weight" in state:
                shortcut = F.conv2d(x, state[f"{block}.shortcut_layer.0.weight"], stride=stride)
                shortcut = norm(state, f"{block}.shortcut_layer.1", shortcut)
            y = F.conv2d(norm(state, f"{block}.res_layer.0", x), state[f"{block}.res_layer.1.weight"], padding=1)
            y = F.prelu(norm(state, f"{block}.res_layer.2", y), state[f"{block}.res_layer.3.weight"])
            y = F.conv2d(y, state[f"{block}.res_layer.4.weight"], stride=stride, padding=1)
            x = norm(state, f"{block}.res_layer.5", y) + shortcut
    x = norm(state, "output_layer.0", x).flatten(1)
    x = F.linear(x, state["output_layer.3.weight"], state["output_layer.3.bias"])
    return norm(state, "output_layer.4", x)


@pytest.mark.parametrize("name", SIZES)
def test_they_have_the_published_size(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(name)
    assert sum(p.numel() for p in model.parameters()) == SIZES[name] - (64 * 64 + 2 * 64) - 2 * 512
    assert isinstance(model, IR)
    stages = model.freezable()
    assert stages[-1][-1] == f"body.{sum(map(len, stages)) - 2}"


@pytest.mark.parametrize(("name", "blocks"), [("ir_18", [2, 2, 2, 2]), ("ir_50", [3, 4, 14, 3])])
def test_the_published_network_computes_the_same_from_their_names(name: str, blocks: list[int]) -> None:
    model = with_statistics(name, 32)
    images = torch.rand(3, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        expected = embed(dict(model.state_dict()), images, blocks)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_a_published_checkpoint_loads_and_its_bgr_is_turned() -> None:
    """A checkpoint of Lightning holds the backbone as ``model.``, and the head."""
    published = with_statistics("ir_18", 32)
    state = {f"model.{name}": value for name, value in published.state_dict().items()}
    file = io.BytesIO()
    torch.save({"epoch": 3, "state_dict": {**state, "head.kernel": torch.zeros(16, 9)}}, file)
    model = build_backbone("ir_18", embedding_size=16, image_size=32).eval()
    with pytest.warns(UserWarning, match="left out, as no part of the backbone: head.kernel"):
        load_foreign(model, parse_weights("adaface_ir18.ckpt", file.getvalue()), "adaface_ir18.ckpt", colours="BGR")
    rgb = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(rgb), published(rgb.flip(1)), rtol=1e-4, atol=1e-5)


def test_it_trains_with_recomputed_blocks() -> None:
    model = build_backbone("ir_18", embedding_size=8, image_size=16, gradient_checkpointing=True, dropout=0.0)
    assert isinstance(model, IR)
    images, weights = torch.rand(4, 3, 16, 16), torch.randn(4, 8)
    (model(images) * weights).sum().backward()
    recomputed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.gradient_checkpointing = False
    (model(images) * weights).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(recomputed[name], parameter.grad, rtol=1e-4, atol=1e-6)
