"""Backbones: the published state-dict keys, parameter counts, gradient checkpointing and embeddings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from app.backbones.registry import BackboneError, build_backbone
from app.backbones.vit import Attention, VisionTransformer

HERE = Path(__file__).parent
# Facts about insightface's networks (embedding 512, image 112): a hash over "key shape" lines, in order.
REFERENCE = json.loads((HERE / "reference_state_dicts.json").read_text())
NAMES = list(REFERENCE)


def key_lines(model: torch.nn.Module) -> str:
    return "\n".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys_and_shapes_are_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        model = build_backbone(name, embedding_size=512)
    lines = key_lines(model)
    listed = HERE / f"{name}.keys.txt"
    if listed.exists():
        assert lines.splitlines() == listed.read_text().splitlines()
    assert hashlib.sha256(lines.encode()).hexdigest() == REFERENCE[name]["sha256"]
    assert sum(p.numel() for p in model.parameters()) == REFERENCE[name]["params"]


@pytest.mark.parametrize("name", ["r10_small", "mbf", "vit_t"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    images = torch.randn(4, 3, 112, 112)
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build_backbone(name, embedding_size=64, gradient_checkpointing=checkpointing)
        torch.manual_seed(1)
        model(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_embeddings_are_float32_under_autocast() -> None:
    model = build_backbone("r10_small", embedding_size=128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embeddings = model(torch.randn(2, 3, 112, 112))
    assert embeddings.dtype == torch.float32
    assert embeddings.shape == (2, 128)


def test_an_unknown_name_or_option_is_told_with_the_nearest() -> None:
    with pytest.raises(BackboneError, match="did you mean 'r50'"):
        build_backbone("r5O")
    with pytest.raises(BackboneError, match="has no"):
        build_backbone("mbf", drop_path=0.1)


def test_masked_tokens_get_the_learned_token_and_eval_masks_nothing() -> None:
    torch.manual_seed(0)
    model = build_backbone("vit_t", embedding_size=16, mask_ratio=0.5, drop_path=0.0)
    assert isinstance(model, VisionTransformer)
    tokens = torch.randn(3, 144, 256)
    kept, restore = model._leave_out(tokens)
    assert kept.shape == (3, 72, 256)
    whole = model._put_back(kept, restore)
    from_input = (whole == tokens).all(2)
    assert from_input.sum(1).tolist() == [72, 72, 72]
    assert torch.equal(whole[~from_input], model.mask_token[0].expand(3 * 72, -1))
    model.eval()
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(model(images), model(images))


def test_attention_is_the_plain_formula() -> None:
    attention = Attention(32, 4, 0.0)
    x = torch.randn(2, 5, 32)
    q, k, v = attention.qkv(x).reshape(2, 5, 3, 4, 8).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 32))
    torch.testing.assert_close(attention(x), expected)


def outputs_of(name: str, images: torch.Tensor, option: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings, and the largest gradient-carrying parameter's gradient, in float64: only bugs are left to differ."""
    torch.manual_seed(0)
    options = {"mask_ratio": 0.0, "drop_path": 0.0} if name == "vit_t" else {}
    size = images.shape[-1]
    model = build_backbone(name, embedding_size=64, image_size=size, **options).double()
    if option == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.to(memory_format=torch.channels_last)
    elif option == "compile":
        model.compile()
    out = model(images)
    out.square().sum().backward()
    return out.detach(), next(p.grad for p in model.parameters() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "option"),
    [("r10_small", "channels_last"), ("mbf", "channels_last"), ("vit_t", "channels_last"), ("r10_small", "compile")],
)
def test_channels_last_and_compile_change_no_result(name: str, option: str) -> None:
    images = torch.randn(4, 3, 36, 36, dtype=torch.float64)
    plain, changed = outputs_of(name, images, "plain"), outputs_of(name, images, option)
    torch.testing.assert_close(changed[0], plain[0], rtol=1e-5, atol=1e-5)
    scale = plain[1].abs().max()
    torch.testing.assert_close(changed[1] / scale, plain[1] / scale, rtol=1e-5, atol=1e-5)
