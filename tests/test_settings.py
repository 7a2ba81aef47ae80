"""What a field says of itself, and that nothing else has to be said."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.options import override, parse_arguments, parse_recipe, to_toml
from app.config.recipe import OptimConfig, Recipe, RecipeError, all_settings, sections, validate
from app.settings import Setting, setting, settings_of

NUMBERS = [(path, about) for path, about in all_settings() if about.kind in (int, float)]
CHOICES = [(path, about) for path, about in all_settings() if about.choices]


def set_field(path: str, value: Any) -> Recipe:
    section, name = path.split(".")
    recipe = Recipe()
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **{name: value})})


def test_every_field_says_what_it_is_and_its_default_fits() -> None:
    for path, about in all_settings():
        section, name = path.split(".")
        assert about.meaning, path
        assert not about.meaning.endswith("."), path
        assert about.default == getattr(getattr(Recipe(), section), name)
        assert not about.problem(about.default), path


def test_a_field_without_a_meaning_is_our_own_mistake() -> None:
    @dataclasses.dataclass
    class Bare:
        size: int = 3

    with pytest.raises(TypeError, match=r"Bare\.size says nothing of itself"):
        settings_of(Bare)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model.dropout", "-3", r"model\.dropout must be at least 0 and below 1; got -3"),
        ("--optim.momentum", "7", r"optim\.momentum must be at least 0 and below 1; got 7"),
        ("--data.workers", "-4", r"data\.workers must be at least 1; got -4"),
        ("--optim.lr", "inf", r"optim\.lr must be finite; got inf"),
        ("--optim.lr", "nan", r"optim\.lr must be finite; got nan"),
        ("--optim.weight-decay", "1e999", r"must be finite"),
        ("--train.seed", str(2**70), r"train\.seed must fit 64 bits"),
        ("--train.seed", "1" + 400 * "0", r"train\.seed must fit 64 bits"),
        ("--model.mask-ratio", "-0.5", r"at least 0 and below 1, or -1; got -0\.5"),
        ("--head.m1", "0", r"head\.m1 must be above 0"),
        ("--output.prometheus-port", "70000", r"at least 0 and at most 65535"),
        ("--optim.name", "sdg", r"optim\.name must be one of sgd, adamw; got 'sdg'"),
        ("--train.epochs", "1.5", r"train\.epochs must be a whole number, got '1\.5'"),
        ("--name", "../up", r"cannot be called '\.\./up'"),
        ("--name", "a\nb", r"cannot be called"),
    ],
)
def test_a_value_that_cannot_be_is_refused_in_words(option: str, value: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        parse_arguments([option, value])


@pytest.mark.parametrize("text", ["[train]\nepochs = inf", "[optim]\nlr = nan", "[optim]\nlr = -inf"])
def test_floats_that_a_recipe_cannot_hold_are_refused_in_toml_too(text: str) -> None:
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        parse_recipe(text, "mine", "mine.toml")


@pytest.mark.parametrize(("path", "about"), NUMBERS, ids=[path for path, _ in NUMBERS])
def test_every_number_has_a_range_and_keeps_it(path: str, about: Setting) -> None:
    assert about.takes, f"{path} has no range"
    for value in [math.inf, -math.inf, math.nan]:
        with pytest.raises(RecipeError, match=path):
            validate(set_field(path, value))
    low = about.minimum if about.minimum is not None else about.above
    assert low is not None
    with pytest.raises(RecipeError, match=path):
        validate(set_field(path, low - 7))
    assert bool(about.problem(low)) == (about.minimum is None)


@pytest.mark.parametrize(("path", "about"), CHOICES, ids=[path for path, _ in CHOICES])
def test_every_choice_is_taken_and_no_other(path: str, about: Setting) -> None:
    for choice in about.choices:
        assert validate(set_field(path, choice))
    with pytest.raises(RecipeError, match=path):
        validate(set_field(path, "other"))


@hypothesis.settings(deadline=None)
@given(
    lr=st.floats(min_value=1e-300, max_value=1e300),
    text=st.text(st.characters(exclude_categories=["Cs"])),
    names=st.lists(st.text("abc\x7f\"'\\\U0001f600é", min_size=1)),
)
def test_whatever_fits_survives_toml(lr: float, text: str, names: list[str]) -> None:
    recipe = override(set_field("data.url", text), "optim.lr", lr, "test")
    recipe = override(recipe, "verify.sets", names, "test")
    assert parse_recipe(to_toml(recipe), recipe.name, "printed") == recipe


def test_sections_stand_beside_their_owners() -> None:
    homes = {name: kind.__module__ for name, kind in sections().items()}
    owners = {"head": "app.head", "model": "app.backbones", "data": "app.data", "checkpoint": "app.checkpoint"}
    assert {name: homes[name].rpartition(".")[0] for name in owners} == owners
    assert settings_of(OptimConfig)["lr"].default == 0.1


def test_bounds_in_words() -> None:
    @dataclasses.dataclass
    class Toy:
        share: float = setting(0.5, "a share", above=0, maximum=1)

    assert settings_of(Toy)["share"].takes == "above 0 and at most 1"
    assert settings_of(Toy)["share"].kind_name == "a number"
