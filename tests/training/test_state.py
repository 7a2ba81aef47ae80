"""A second start: every field of the recipe is applied, refused or said; nothing passes in silence."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from app import storage
from app.checkpoint.config import CheckpointConfig
from app.checkpoint.manifest import CheckpointError
from app.config.options import parse_arguments
from app.config.recipe import OutputConfig, Recipe, RecipeError, all_settings
from app.data.config import DataConfig
from app.data.dataset import open_dataset
from app.device import detect_device
from app.observe.events import EventLog, read_events
from app.settings import Setting
from app.training.start import look_for_lost_commits
from app.training.state import FIXED, RunState, compare, kind_of_change, recipe_fields
from app.world import World
from tests.jobs import train, write_faces


def other_value(about: Setting, value: Any) -> Any:
    if about.choices:
        return next(choice for choice in about.choices if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return (*value, "x") if isinstance(value, tuple) else f"{value}x"


def changed(path: str, about: Setting) -> Recipe:
    section, name = path.split(".")
    old = getattr(getattr(Recipe(), section), name)
    return dataclasses.replace(
        Recipe(), **{section: dataclasses.replace(getattr(Recipe(), section), **{name: other_value(about, old)})}
    )


BEFORE = RunState(recipe_fields(Recipe()), 4, 10, "tag")


@pytest.mark.parametrize(("path", "about"), list(all_settings()), ids=[path for path, _ in all_settings()])
def test_every_field_that_changes_is_refused_or_said(path: str, about: Setting) -> None:
    recipe = changed(path, about)
    if path in FIXED or path == "train.logical_workers":
        with pytest.raises(RecipeError, match=path) as caught:
            compare(BEFORE, recipe, 10, "tag", "s3://runs/x")
        assert "this one has" in str(caught.value)
        return
    free, applied = compare(BEFORE, recipe, 10, "tag", "s3://runs/x")
    said = {"free": free, "applied": applied}[kind_of_change(path)]
    assert len(said) == 1
    assert said[0].startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.backbone", "fixed"),
        ("model.embedding_size", "fixed"),
        ("optim.name", "fixed"),
        ("train.seed", "fixed"),
        ("train.batch_size", "fixed"),
        ("head.m2", "fixed"),
        ("data.image_size", "fixed"),
        ("optim.lr", "applied"),
        ("optim.schedule", "applied"),
        ("train.precision", "applied"),
        ("data.augment", "applied"),
        ("head.sample_rate", "applied"),
        ("head.precision", "applied"),
        ("head.update", "applied"),
        ("head.momentum_dtype", "fixed"),
        ("head.block_memory_mb", "free"),
        ("train.epochs", "free"),
        ("train.log_every", "free"),
        ("data.workers", "free"),
        ("output.url", "free"),
    ],
)
def test_what_kind_of_change_a_field_is(path: str, kind: str) -> None:
    assert kind_of_change(path) == kind


@pytest.mark.parametrize(("classes", "tag"), [(11, "tag"), (9, "tag"), (10, "other")])
def test_another_dataset_is_refused(classes: int, tag: str) -> None:
    with pytest.raises(RecipeError, match="holds a run with"):
        compare(BEFORE, Recipe(), classes, tag, "x")


def test_of_several_datasets_the_one_that_changed_is_named() -> None:
    before = dataclasses.replace(BEFORE, data_tag="idx-1-20x4+idx-2-40x8+shared-ab")
    recipe = Recipe(data=DataConfig(url="s3://faces/a,s3://key:word@faces/b"))
    for now, told, untold in [
        ("idx-1-20x4+idx-3-40x8+shared-ab", "of s3://.*@faces/b 'idx-2-40x8', now 'idx-3-40x8': take", "faces/a"),
        ("idx-1-20x4+idx-2-40x8+shared-cd", "of the classes that people.json shares 'shared-ab', now", "faces/"),
        ("idx-3-20x4+idx-2-40x9+shared-ab", "of s3://faces/a .*, of s3://.*@faces/b ", "people.json"),
        ("idx-2-40x8+idx-1-20x4+shared-ab", "the same datasets in another order of data.url", "idx-"),
        ("idx-1-20x4+idx-2-40x8", "content.*'idx-1-20x4.idx-2-40x8.shared-ab', this one has", "faces/"),
    ]:
        with pytest.raises(RecipeError, match=told) as refused:
            compare(before, recipe, 10, now, "x")
        assert untold not in str(refused.value)
        assert "word" not in str(refused.value)


@pytest.mark.parametrize(("setting", "value"), [("people", "shared"), ("weights", ("1", "3")), ("labels", "train.lst")])
def test_a_setting_that_makes_other_content_of_the_same_files_is_named(setting: str, value: Any) -> None:
    recipe = Recipe(data=DataConfig(**{setting: value}))
    with pytest.raises(RecipeError, match=f"holds a run with data.{setting}: .* -> ") as refused:
        compare(BEFORE, recipe, 10, "other", "x")
    assert "data_tag" not in str(refused.value)


def test_the_state_survives_json() -> None:
    assert RunState.from_meta(BEFORE.to_meta(), "x") == BEFORE


def test_bad_records_go_on_from_where_they_were() -> None:
    meta = dataclasses.replace(BEFORE, bad_records=7).to_meta()
    assert RunState.from_meta(meta, "x").bad_records == 7
    del meta["bad_records"]
    assert RunState.from_meta(meta, "x").bad_records == 0


def test_checkpoints_of_another_version_are_told_in_one_sentence() -> None:
    with pytest.raises(CheckpointError, match="written by another version"):
        RunState.from_meta({"logical_workers": 2, "batch_size": 3}, "s3://runs/x")


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_unless_told(tmp_path: Path) -> None:
    recipe = dataclasses.replace(Recipe(name="run"), output=OutputConfig(url=str(tmp_path)))
    world = World(0, 1, 0, detect_device("cpu"))
    events = EventLog(str(tmp_path / "run"), enabled=True, tensorboard=False)
    events.add("start", 0)
    events.flush(wait=True)
    (tmp_path / "run" / "events" / "a.jsonl").write_text('[1]\n7\n{"kind": "checkpoint"}\n{"time": "x"}\n{"ti')
    look_for_lost_commits(recipe, world)  # killed before its first commit
    events.add("checkpoint", 30)
    events.flush(wait=True)
    with pytest.raises(CheckpointError, match=r"tells of a checkpoint of step 30, .*--checkpoint.resume never") as told:
        look_for_lost_commits(recipe, world)
    assert not told.value.transient
    look_for_lost_commits(dataclasses.replace(recipe, checkpoint=CheckpointConfig(resume="never")), world)
    look_for_lost_commits(dataclasses.replace(recipe, name="other"), world)


@pytest.mark.slow
def test_second_starts_of_a_real_run(tmp_path: Path) -> None:
    data, runs = str(tmp_path / "faces"), str(tmp_path / "runs")
    write_faces(data)
    more = ("--train.epochs", "1", "--train.last-step", "4")
    train(1, data, runs, *more)
    summary = storage.read_bytes(f"{runs}/orl/summary.md")
    done = train(1, data, runs, *more)
    assert "this run is complete (step 4 of" in done.stdout
    assert storage.read_bytes(f"{runs}/orl/summary.md") == summary
    for options, names in [
        (("--data.num-classes", "12", "--data.empty-classes", "warn"), "data.num_classes 10, this one has 12"),
        (("--optim.name", "adamw"), "optim.name 'sgd', this one has 'adamw'"),
        (("--model.embedding-size", "16"), "model.embedding_size 32, this one has 16"),
        (("--head.m2", "0.45"), "head.m2"),
    ]:
        refused = train(1, data, runs, *more, *options, check=False)
        assert refused.returncode == 65
        assert names in refused.stderr
        assert "Traceback" not in refused.stderr
    assert storage.read_bytes(f"{runs}/orl/summary.md") == summary
    longer = train(1, data, runs, "--train.epochs", "1", "--train.last-step", "6", "--optim.lr", "0.01")
    assert "from step 4 of" in longer.stdout
    assert "train.last_step: 4 -> 6" in longer.stdout
    assert "optim.lr: " in longer.stderr
    assert "lr = 0.01" in storage.read_bytes(f"{runs}/orl/recipe.toml").decode()


@pytest.mark.slow
def test_bad_records_are_counted_once_over_two_starts_of_two_processes(tmp_path: Path) -> None:
    data, runs = str(tmp_path / "faces"), str(tmp_path / "runs")
    write_faces(data)  # 120 images: 10 steps of 2 x 6 an epoch
    dataset = open_dataset(data)
    with (tmp_path / "faces" / "train.rec").open("r+b") as file:
        for position in (3, 50, 99):
            file.seek(int(dataset.starts[position]) + 40)  # behind the headers, in the JPEG's first bytes
            file.write(b"no JPEG at all")
    more = ("--train.logical-workers", "2", "--data.max-bad-share", "0.01", "--train.epochs", "2")
    train(2, data, runs, *more, "--train.last-step", "7")
    train(1, data, runs, *more)
    counts = [event["bad_records"] for event in read_events(f"{runs}/orl") if event["kind"] == "train"]
    assert counts == sorted(counts)
    assert counts[-1] == json.loads(storage.read_bytes(f"{runs}/orl/summary.json"))["bad_records"] == 6


def test_what_checkpoints_and_trackers_keep_holds_no_credentials() -> None:
    arguments = ["--data.url", "http://user:hunter22@host/faces,s3://k:hunter22@b/x", "--output.url", "s3://t@b/r"]
    recipe = parse_arguments([*arguments, "--verify.sets", "https://h/a?X-Amz-Signature=hunter22"])
    fields = recipe_fields(recipe)
    assert "hunter22" not in json.dumps(fields)
    assert fields["data.url"] == "http://***@host/faces,s3://***@b/x"
    other = parse_arguments([word.replace("hunter22", "anew") for word in arguments])
    assert recipe_fields(other)["data.url"] == fields["data.url"]  # another password is no other run
