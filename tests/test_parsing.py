"""JSON, TOML and text: what is honest is read as the libraries read it, the rest is one error in little time."""

from __future__ import annotations

import json
import time
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.config.options import parse_recipe
from app.config.recipe import RecipeError
from app.parsing import ParseError, dump_json, parse_json, parse_json_object, parse_text, parse_toml

_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=20,
)


@given(_json)
def test_json_is_read_as_written(value: Any) -> None:
    assert parse_json(dump_json(value).encode(), "x") == value
    assert parse_json(b"\xef\xbb\xbf" + json.dumps(value).encode(), "x") == value


def test_what_is_written_is_json_for_every_parser() -> None:
    value = {"loss": float("nan"), "rates": [1.0, float("inf"), (float("-inf"), 2)]}
    assert json.loads(dump_json(value), parse_constant=pytest.fail) == {"loss": None, "rates": [1.0, None, [None, 2]]}


BAD_JSON = {
    "not utf-8": b'{"a": "\xff"}',
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "digits": b"9" * 100_000,
    "beyond float64": b'{"a": 1e999}',
    "NaN": b'{"a": NaN}',
    "infinity": b'{"a": -Infinity}',
    "many values": b"[" + b"[]," * 1_000_000 + b"[]]",
    "long": b'"' + b"a" * (17 << 20) + b'"',
    "empty": b"",
    "cut off": b'{"a": ',
}


@pytest.mark.parametrize("data", BAD_JSON.values(), ids=list(BAD_JSON))
def test_bad_json_is_one_error(data: bytes) -> None:
    with pytest.raises(ParseError, match=r"^where: "):
        parse_json(data, "where")


def test_an_object_is_an_object() -> None:
    with pytest.raises(ParseError, match="found list"):
        parse_json_object(b"[]", "where")


BAD_TOML = {
    "a key of 100,000 parts": "a" + ".a" * 100_000 + " = 1",
    "a table of 100,000 parts": "[a" + ".a" * 100_000 + "]",
    "nested arrays": "a = " + "[" * 100_000,
    "nested tables": "a = " + "{a = " * 50_000,
    "digits": "a = " + "9" * 100_000,
    "long": "# " + "a" * (2 << 20),
    "cut off": "a = ",
    "control character": "a = '\0'",
}


@pytest.mark.parametrize("text", BAD_TOML.values(), ids=list(BAD_TOML))
def test_bad_toml_is_one_error_in_seconds(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(ParseError, match=r"^where"):
        parse_toml(text, "where")
    with pytest.raises(RecipeError, match=r"^where"):
        parse_recipe(text, "name", "where")
    assert time.monotonic() - started < 20  # 60 s each without the bound


def test_long_lists_of_numbers_are_still_toml() -> None:
    text = "a = [" + ", ".join(f"{i}.5" for i in range(200)) + "]"
    assert parse_toml(text, "x") == tomllib.loads(text)


@pytest.mark.parametrize(
    "line",
    [
        "train.epochs = 1e999",
        "train.epochs = nan",
        "optim.lr = inf",
        "train.epochs = 9223372036854775808",
        "verify.sets = 5",
        "verify.sets = 1979-05-27",
        "data.url = [1]",
        "train = 1",
    ],
)
def test_values_that_fit_no_field_are_told(line: str) -> None:
    with pytest.raises(RecipeError, match=r"^where: "):
        parse_recipe(line, "name", "where")


def test_text_is_utf_8_with_or_without_a_mark() -> None:
    assert parse_text(b"\xef\xbb\xbfa\xc3\xa9", "x") == "aé"
    with pytest.raises(ParseError, match="not UTF-8 at byte 1"):
        parse_text(b"a\xff", "x")
    with pytest.raises(ParseError, match="too many"):
        parse_text(b"a" * 11, "x", limit=10)
