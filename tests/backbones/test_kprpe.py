"""ViT with KP-RPE: its size, its starting point, and its bias against loops over the paper's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from app.backbones.kprpe import KeyPointViT, bucket_of
from app.backbones.registry import BackboneError, build_backbone
from app.evaluate.export_onnx import export_onnx
from app.face_points import TEMPLATE


def small() -> KeyPointViT:
    torch.manual_seed(0)
    model = build_backbone("vit_t_kprpe", embedding_size=8, image_size=45, dim=16, depth=3, drop_path=0.0)
    assert isinstance(model, KeyPointViT)
    torch.nn.init.normal_(model.keypoint_linear.weight)
    torch.nn.init.normal_(model.keypoint_linear.bias)
    return model.eval()


@pytest.mark.parametrize(("name", "depth"), [("vit_s", 12), ("vit_b", 24)])
def test_the_size_follows_from_the_published_configuration(name: str, depth: int) -> None:
    """CVLface's: product, ratio 1.9, five points, a map a head and block ("splithead_unshared"), nothing masked.

    That is the ViT without its mask token and, of (2 int(3.8) + 1)^2 = 49 buckets, a map of 10 numbers with offset.
    """
    with torch.device("meta"):
        plain, model = build_backbone(name), build_backbone(f"{name}_kprpe")
    added = (10 + 1) * 49 * 8 * depth
    sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in (plain, model)]
    assert sizes[1] == sizes[0] - 512 + added
    if name == "vit_b":
        assert sizes[1] == 113_936_448
    assert model.state_dict().keys() ^ plain.state_dict().keys() == {
        "mask_token",
        "keypoint_linear.weight",
        "keypoint_linear.bias",
    }
    with pytest.raises(BackboneError, match="has no mask_ratio"):
        build_backbone(f"{name}_kprpe", mask_ratio=0.1)


def test_buckets_are_irpes() -> None:
    """1.9 + 1.9 ln(d / 1.9) / ln(8) at d = 2, 3, 4, 5, 6, 11: 1.947, 2.317, 2.580, 2.784, 2.951, 3.505 (at most 3)."""
    assert [bucket_of(distance) for distance in (0, 1, 2, 3, 4, 5, 6, 11)] == [0, 1, 2, 2, 3, 3, 3, 3]
    assert [bucket_of(-distance) for distance in (1, 2, 11)] == [-1, -2, -3]


def test_the_bias_is_that_of_loops() -> None:
    model = small()
    points = torch.rand(2, 5, 2)
    found = model._biases(points).detach().numpy()
    side, weight, offset = 5, model.keypoint_linear.weight.detach().numpy(), model.keypoint_linear.bias.detach().numpy()
    assert found.shape == (3, 2, 8, 25, 25)
    generator = np.random.default_rng(0)
    for block, image, head, query, key in generator.integers(0, found.shape, (300, 5)):
        row, column = divmod(query, side)
        way = [((column + 0.5) / side - x, (row + 0.5) / side - y) for x, y in points[image].tolist()]
        down, right = row - key // side, column - key % side
        bucket = (bucket_of(down) + 3) * 7 + bucket_of(right) + 3
        output = (block * 8 + head) * 49 + bucket
        expected = weight[output] @ np.array(way).ravel() + offset[output]
        assert found[block, image, head, query, key] == pytest.approx(expected, abs=1e-5)


def test_it_begins_as_a_plain_vit() -> None:
    model = build_backbone("vit_t_kprpe", embedding_size=8, image_size=45, dim=16, depth=3).eval()
    plain = build_backbone("vit_t", embedding_size=8, image_size=45, dim=16, depth=3).eval()
    shared = {name: value for name, value in model.state_dict().items() if not name.startswith("keypoint")}
    plain.load_state_dict(shared, strict=False)
    images = torch.randn(2, 3, 45, 45)
    torch.testing.assert_close(model(images), plain(images))


def test_points_matter_and_aligned_faces_have_the_templates() -> None:
    model, images = small(), torch.randn(2, 3, 45, 45)
    template = torch.tensor(TEMPLATE / 112, dtype=torch.float32).expand(2, 5, 2)
    torch.testing.assert_close(model(images), model(images, template))
    assert not torch.allclose(model(images), model(images, template + 0.1))
    one_moved = template.clone()
    one_moved[1] += 0.1
    assert torch.allclose(model(images, one_moved)[0], model(images)[0], atol=1e-5)


def test_recomputed_blocks_give_the_same_gradients() -> None:
    images, gradients = torch.randn(4, 3, 45, 45), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = small().train()
        model.gradient_checkpointing = checkpointing
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(gradient is not None for gradient in gradients[0])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_it_is_exported_with_the_templates_points(tmp_path: Path) -> None:
    model = small()
    assert export_onnx(str(tmp_path / "m.onnx"), model, 45) < 1e-3
    images = np.random.default_rng(0).normal(size=(3, 3, 45, 45)).astype(np.float32)
    found = np.asarray(onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"input": images})[0])
    np.testing.assert_allclose(found, model(torch.from_numpy(images)).detach().numpy(), rtol=1e-3, atol=1e-4)
