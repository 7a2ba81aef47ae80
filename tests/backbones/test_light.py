"""EdgeFace and GhostFaceNet: published sizes and names, formulas of their parts, training, ONNX."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from app.backbones.edgeface import ChannelAttention, FourierPositions, LowRankLinear
from app.backbones.ghostfacenet import GhostModule
from app.backbones.registry import build_backbone
from app.evaluate import flops
from app.evaluate.export_onnx import export_onnx
from app.weights import load_foreign

LIGHT = ["edgeface_xxs", "edgeface_xs_gamma_06", "ghostface_v1_s2", "ghostface_v2_s2"]


@pytest.mark.parametrize(
    ("name", "million", "mega"),
    [
        ("edgeface_xxs", 1.24, 94.72),
        ("edgeface_xs_gamma_06", 1.77, 154.00),
        ("edgeface_s_gamma_05", 3.65, 306.12),
        ("edgeface_base", 18.23, 1398.83),
    ],
)
def test_edgeface_has_the_published_size(name: str, million: float, mega: float) -> None:
    """Table of the authors' README; an addition and a multiplication are two operations there."""
    operations, parameters = flops.count(name)
    assert round(parameters / 1e6, 2) == million
    assert 2 * operations / 1e6 == pytest.approx(mega, rel=0.005)


def test_ghostfacenets_span_the_published_operations() -> None:
    """ "A computational complexity of approximately 60-275 MFLOPs" (the paper's abstract), one a multiply-add."""
    assert flops.count("ghostface_v2_s1")[0] / 1e6 == pytest.approx(275, rel=0.01)
    assert flops.count("ghostface_v1_s2")[0] / 1e6 == pytest.approx(60, rel=0.05)


def test_edgefaces_names_are_timms_with_low_rank_layers() -> None:
    """Names of timm's edgenext_x_small after the authors' replacement of every linear layer."""
    with torch.device("meta"):
        state = build_backbone("edgeface_xs_gamma_06").state_dict()
    shapes = {
        "stem.0.weight": (32, 3, 4, 4),
        "stem.1.bias": (32,),
        "stages.0.blocks.2.conv_dw.weight": (32, 1, 3, 3),
        "stages.0.blocks.0.mlp.fc1.linear1.weight": (19, 32),
        "stages.0.blocks.0.gamma": (32,),
        "stages.1.downsample.0.weight": (32,),
        "stages.1.downsample.1.weight": (64, 32, 2, 2),
        "stages.1.blocks.2.pos_embd.token_projection.weight": (64, 64, 1, 1),
        "stages.1.blocks.2.convs.0.weight": (32, 1, 3, 3),
        "stages.1.blocks.2.xca.temperature": (4, 1, 1),
        "stages.1.blocks.2.xca.qkv.linear2.bias": (192,),
        "stages.2.blocks.8.convs.1.weight": (34, 1, 3, 3),
        "stages.2.blocks.8.gamma_xca": (100,),
        "stages.3.blocks.1.conv_dw.weight": (192, 1, 9, 9),
        "head.norm.weight": (192,),
        "head.fc.linear1.weight": (115, 192),
        "head.fc.linear2.weight": (512, 115),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_the_authors_files_load_with_their_prefix() -> None:
    model, other = build_backbone("edgeface_xxs"), build_backbone("edgeface_xxs")
    load_foreign(model, {f"model.{name}": value for name, value in other.state_dict().items()}, "edgeface_xxs.pt")
    assert torch.equal(model.state_dict()["head.fc.weight"], other.state_dict()["head.fc.weight"])


def test_channel_attention_is_the_papers_formula() -> None:
    """softmax(normalised K^T Q times a temperature) over channels (arXiv:2106.09681, eq. 3), a head at a time."""
    torch.manual_seed(0)
    attention = ChannelAttention(12, 3, 0.0)
    nn.init.uniform_(attention.temperature, 0.5, 2.0)
    x = torch.randn(2, 7, 12)
    q, k, v = attention.qkv(x).chunk(3, -1)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        unit_q, unit_k = F.normalize(q[..., part], dim=1), F.normalize(k[..., part], dim=1)  # each channel over tokens
        weights = torch.softmax(unit_q.transpose(1, 2) @ unit_k * attention.temperature[head], -1)
        heads.append(v[..., part] @ weights.transpose(1, 2))
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, -1)))


def test_positions_are_sines_and_cosines_of_rows_then_columns() -> None:
    positions = FourierPositions(64)
    positions.token_projection.weight.data = torch.eye(64)[:, :, None, None]
    nn.init.zeros_(positions.token_projection.bias)  # type: ignore[arg-type]
    found = positions(3, 5).detach()
    assert found.shape == (1, 64, 3, 5)
    for channel, row, column in [(0, 1, 4), (1, 2, 0), (9, 0, 3), (32, 1, 4), (33, 2, 2), (63, 0, 1)]:
        place, count = (row, 3) if channel < 32 else (column, 5)
        angle = (place + 1) / (count + 1e-6) * 2 * math.pi / 10000 ** (2 * (channel % 32 // 2) / 32)
        wave = math.cos(angle) if channel % 2 else math.sin(angle)
        assert float(found[0, channel, row, column]) == pytest.approx(wave, abs=1e-5)


def test_a_low_rank_layer_is_the_product_of_two() -> None:
    layer, x = LowRankLinear(6, 5, 2), torch.randn(3, 6)
    whole = layer.linear2.weight @ layer.linear1.weight
    torch.testing.assert_close(layer(x), x @ whole.T + layer.linear2.bias)


def test_a_gated_ghost_module_is_the_plain_one_times_its_gate() -> None:
    gated = GhostModule(6, 8, activation=True, attention=True).eval()
    plain = GhostModule(6, 8, activation=True, attention=False).eval()
    plain.load_state_dict({name: value for name, value in gated.state_dict().items() if not name.startswith("gate")})
    x = torch.randn(2, 6, 8, 8)
    assert gated.gate is not None
    gate = torch.sigmoid(gated.gate(F.avg_pool2d(x, 2))).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(gated(x), plain(x) * gate)


@pytest.mark.parametrize("name", LIGHT)
def test_every_parameter_learns_and_recomputation_changes_nothing(name: str) -> None:
    images = torch.randn(3, 3, 64, 64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = build_backbone(name, embedding_size=16, image_size=64, gradient_checkpointing=recompute)
        model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["edgeface_xs_gamma_06", "ghostface_v2_s2"])
def test_the_onnx_export_computes_the_same(name: str, tmp_path: object) -> None:
    model = build_backbone(name, embedding_size=16, image_size=64)
    assert export_onnx(f"{tmp_path}/m.onnx", model, 64) < 1e-4
