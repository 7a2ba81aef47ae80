"""What a run leaves for people who come from insightface: its lines, training.log, model.pt after epochs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from app import storage
from app.config.recipe import OutputConfig, Recipe
from app.device import detect_device
from app.observe.progress import Speed
from app.parsing import parse_json_object
from app.run_folder import load_model, save_model
from app.training.build import make_trainer
from app.training.finish import final_lines
from app.training.loop import Loop
from app.training.plan import ElasticPlan
from app.weights import ModelError
from app.world import World
from tests.jobs import train, write_faces
from tests.training.test_trainer import CLASSES, RECIPE


def loop_at(recipe: Recipe, step: int) -> Loop:
    """A loop of five steps an epoch and four epochs, as far as keeping the model needs one."""
    world = World(0, 1, 0, detect_device("cpu"))
    loop = object.__new__(Loop)
    loop.recipe, loop.world, loop.step, loop.steps_per_epoch, loop.last_step = recipe, world, step, 5, 20
    loop.trainer = make_trainer(recipe, world, ElasticPlan(2, 1), CLASSES)
    loop._speed = Speed()
    return loop


def test_model_pt_is_written_after_epochs(tmp_path: Path) -> None:
    recipe = replace(RECIPE, output=OutputConfig(url=str(tmp_path), model_every=2))
    url = f"{tmp_path}/{recipe.name}"
    for step, kept in [(5, None), (10, 10), (11, 10), (15, 10), (20, 10)]:  # the end writes its own
        loop_at(recipe, step)._keep_model()
        found = load_model(url)[1]["step"] if storage.exists(f"{url}/model.pt") else None
        assert found == kept
    loop_at(replace(recipe, output=replace(recipe.output, model_every=0)), 10)._keep_model()
    (tmp_path / "file").write_text("")
    broken = replace(recipe, output=OutputConfig(url=str(tmp_path / "file")))
    with pytest.warns(UserWarning, match=r"model\.pt of step 10 could not be written"):
        loop_at(broken, 10)._keep_model()


def test_weights_and_description_belong_together_at_every_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(RECIPE, output=OutputConfig(url=str(tmp_path)))
    url, whole, seen = str(tmp_path / "run"), storage.write_bytes, list[tuple[int, float]]()

    def save(step: int, *, dies_after: int = 9) -> None:
        backbone = loop_at(recipe, step).trainer.backbone
        with torch.no_grad():
            next(backbone.parameters()).fill_(float(step))
        done = [0]

        def write(url_: str, data: bytes) -> bool:
            if done[0] == dies_after:
                raise KeyboardInterrupt
            done[0] += 1
            result = whole(url_, data)
            if step > 1:  # before that there is nothing whole to be read
                model, about = load_model(url)
                seen.append((about["step"], next(model.parameters()).flatten()[0].item()))
                assert "before" not in about
            return result

        monkeypatch.setattr(storage, "write_bytes", write)
        save_model(url, backbone, recipe, step)

    save(1)
    save(2)
    assert seen == [(1, 1.0), (2, 2.0)]
    with pytest.raises(KeyboardInterrupt):
        save(3, dies_after=1)
    assert seen[2:] == [(2, 2.0)]
    save(4)
    assert seen[3:] == [(2, 2.0), (4, 4.0)]
    before = json.loads((tmp_path / "run" / "model.json").read_text())["before"]
    assert [said["step"] for said in before] == [3, 2, 1]
    (tmp_path / "run" / "model.pt").write_bytes(b"another's")
    with pytest.raises(ModelError, match="damaged or replaced"):
        load_model(url)
    monkeypatch.undo()
    save_model(url, loop_at(recipe, 5).trainer.backbone, recipe, 5)
    assert load_model(url)[1]["step"] == 5


def test_the_last_lines_are_those_of_the_ascend_scripts() -> None:
    assert final_lines({"accuracy_highest": {"lfw": 0.99817, "agedb_30": 0.98}, "fps": 1234.567, "seconds": 61.2}) == [
        "Final Performance images/sec : 1234.57",
        "Final Train Accuracy : 0.99817",
        "E2E Training Duration sec : 61",
    ]


@pytest.mark.slow
def test_a_run_in_insightfaces_style(tmp_path: Path) -> None:
    data, runs = str(tmp_path / "faces"), str(tmp_path / "runs")
    write_faces(data)
    style = ("--output.log-style", "insightface", "--train.epochs", "2", "--train.log-every", "2")
    done = train(1, data, runs, *style, "--train.last-step", "4")
    stamped = re.findall(r"^Training: \S+ \S+?,\d{3}-Speed ([\d.]+) samples/sec   Loss ([\d.]+) ", done.stdout, re.M)
    assert len(stamped) == 2
    assert all(float(speed) > 0 and float(loss) > 0 for speed, loss in stamped)
    assert "Final Performance images/sec : " in done.stdout
    train(1, data, runs, *style, "--train.last-step", "8")
    text = storage.read_bytes(f"{runs}/orl/training.log").decode()
    assert re.findall(r"Global Step: (\d+)", text) == ["2", "4", "6", "8"]
    about = parse_json_object(storage.read_bytes(f"{runs}/orl/model.json"), "model.json")
    assert about["step"] == 8
