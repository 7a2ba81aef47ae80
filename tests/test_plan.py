"""The plan: sizes that follow from shapes, what cannot fit is refused, and what would fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from app.backbones.registry import build_backbone
from app.config.options import parse_arguments
from app.errors import AppError
from app.evaluate.model_source import describe_backbone
from app.plan import Layout, Node, ResourceError, compare, main, parse_nodes, pass_bytes, predict
from app.run_folder import build_model

SMALL = ["--recipe", "orl", "--data.num-classes", "1000", "--data.url", "synthetic"]
ALONE = Layout(1, 1, 1)


def test_what_follows_from_shapes_is_exact() -> None:
    recipe = parse_arguments(SMALL)
    needs = predict(recipe, 4)
    width = recipe.model.embedding_size
    parameters = sum(p.numel() for p in build_model(recipe.model, recipe.data.image_size).parameters())
    assert needs.kept["backbone"] == needs.kept["gradients"] == 4 * parameters
    assert needs.kept["centres"] == needs.kept["momentum"] == 4 * 250 * width
    assert needs.host["checkpoint's copy"] == 2 * 4 * (parameters + 250 * width)
    assert predict(recipe, 8).kept["centres"] == 4 * 125 * width
    halved = parse_arguments([*SMALL, "--head.centre-dtype", "bfloat16", "--head.momentum-dtype", "bfloat16"])
    assert predict(halved, 4).kept["centres"] == predict(halved, 4).kept["momentum"] == 2 * 250 * width


def test_the_pass_holds_what_autograd_really_saves() -> None:
    recipe = parse_arguments([*SMALL, "--train.batch-size", "4"])
    saved: dict[int, torch.Tensor] = {}
    model = build_model(recipe.model, recipe.data.image_size).train()
    own = {tensor.data_ptr() for tensor in model.parameters()}
    images = torch.zeros(4, 3, recipe.data.image_size, recipe.data.image_size)

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    really = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    forward, both = pass_bytes(recipe)
    assert forward == pytest.approx(really, rel=0.15)
    assert forward <= both < 2 * forward


def test_a_teacher_keeps_its_weights_and_needs_room_for_its_pass(tmp_path: Path) -> None:
    """A large teacher of a small student: its weights stay, and its pass outgrows the student's backward pass."""
    options = [*SMALL, "--distill.teacher", f"{tmp_path}/t.pth", "--distill.teacher-backbone", "r18"]
    alone, taught = (predict(parse_arguments(given), 2) for given in (SMALL, options))
    weights = 4 * sum(p.numel() for p in build_backbone("r18", embedding_size=512, image_size=112).parameters())
    size = parse_arguments(SMALL).data.image_size
    assert taught.kept["teacher"] == weights
    assert "teacher" not in alone.kept
    # The widest moment of r18's pass in eval mode is in its first block: three maps of 64 channels at full size.
    batch = parse_arguments(SMALL).train.batch_size
    more = taught.backward["activations"] - pass_bytes(parse_arguments(SMALL))[0]
    assert more >= 3 * 4 * batch * 64 * size * size
    assert taught.peak >= alone.peak + weights


def test_a_teachers_description_is_read_where_it_lies(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(AppError, match="not finished"):
        describe_backbone(str(run))
    (run / "recipe.toml").write_text('[model]\nbackbone = "mbf"\nembedding_size = 128\n')
    assert describe_backbone(f"{run}/checkpoints/") == ("mbf", 128)
    (run / "model.json").write_text('{"backbone": "r50", "embedding_size": 256}')
    assert describe_backbone(str(run)) == describe_backbone(f"{run}/model.pt") == ("r50", 256)
    assert describe_backbone(f"{run}/model.pt", "r34", 64) == ("r34", 64)
    (run / "model.json").write_text("{}")
    with pytest.raises(AppError, match="does not say backbone"):
        describe_backbone(str(run))


def test_activations_grow_with_the_batch_halve_with_the_precision_and_shrink_when_recomputed() -> None:
    sizes = [pass_bytes(parse_arguments([*SMALL, "--train.batch-size", str(size)]))[0] for size in (8, 16)]
    assert sizes[1] == pytest.approx(2 * sizes[0], rel=0.05)
    recipe = parse_arguments([*SMALL, "--train.batch-size", "16", "--train.precision", "bf16"])
    parameters = sum(p.numel() for p in build_model(recipe.model, recipe.data.image_size).parameters())
    assert pass_bytes(recipe)[0] == sizes[1] // 2 + 2 * parameters
    again = parse_arguments([*SMALL, "--train.batch-size", "16", "--model.gradient-checkpointing", "true"])
    assert pass_bytes(again)[1] < sizes[1]


def test_fewer_nodes_than_the_most_run_more_logical_workers_each() -> None:
    recipe = parse_arguments(["--recipe", "ms1mv3_r50", "--data.url", "s3://faces/x"])
    few, all_of_them = (predict(recipe, processes, most=8).host["window"] for processes in (2, 8))
    assert few == 4 * all_of_them


def test_what_cannot_fit_is_refused_with_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = parse_arguments([*SMALL, "--train.batch-size", "64"])
    needed = compare(recipe, ALONE, Node(1, 0, 1 << 20)).host_mb
    few = ["--hardware", "cpu", "--host-mb", str(needed - 20), "--train.batch-size", "64"]
    with pytest.raises(ResourceError, match=r"--model.gradient-checkpointing true would fit"):
        main([*SMALL, *few])
    assert "activations" in capsys.readouterr().out
    with pytest.raises(ResourceError, match=r"MiB are needed: .*(\(the same global batch\)|bfloat16) would fit"):
        main([*SMALL, *few, "--model.gradient-checkpointing", "true", "--host-mb", str(needed * 5 // 6)])
    with pytest.raises(ResourceError, match="take a smaller backbone or other hardware"):
        main([*SMALL, *few, "--host-mb", "100"])
    assert main([*SMALL, *few, "--host-mb", str(needed + 20)]) == 0
    assert f"fits: a host needs {needed} of {needed + 20} MiB" in capsys.readouterr().out


def test_speed_gives_hours_and_what_the_store_must_deliver(capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["--data.num-images", "36000", "--train.epochs", "10", "--rate", "100", "--hardware", "cpu"]
    assert main([*SMALL, *rest]) == 0
    assert "1.0 hours at 100 img/s, 0.8 MB/s from the store" in capsys.readouterr().out


def test_nodes() -> None:
    assert parse_nodes("4") == (4, 4)
    assert parse_nodes("2:4") == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "orl", "--data.num-classes", "0"], "set --data.num-classes"),
        ([*SMALL, "--hardware", "abacus"], "unknown hardware 'abacus'"),
        ([*SMALL, "--nproc-per-node", "-1"], "at least 1"),
        *(([*SMALL, "--nnodes", nodes], "--nnodes must be N or MIN:MAX") for nodes in ("many", "4:2", "0", "2:", "²")),
    ],
)
def test_unknown_sizes_are_asked_for(arguments: list[str], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        main(arguments)
