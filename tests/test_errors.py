"""No message of ours holds a credential, whoever made it."""

from __future__ import annotations

import pytest

from app import storage
from app.config.options import parse_arguments, to_toml
from app.data.index import parse_lines
from app.data.recordio import RecordError
from app.errors import AppError, redact, run_main


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:hunter22@host/a.rec: gone", "http://***@host/a.rec: gone"),
        ("http://user:p@ss:w0rd@host:9000/a", "http://***@host:9000/a"),
        ("http://user:pa/ss@host/a", "http://***@host/a"),
        ("http://user:p?a#s@host/a", "http://***@host/a"),
        ("https://ghp_0123456789@host/a", "https://***@host/a"),
        ("two: s3://k:s@b/x and https://t@c/y", "two: s3://***@b/x and https://***@c/y"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("http://host:9000/path/a@b", "http://host:9000/path/a@b"),
        ("https://h/a?X-Amz-Date=1&X-Amz-Signature=abc123&x=1", "https://h/a?X-Amz-Date=1&X-Amz-Signature=***&x=1"),
        ("https://h/a?x-amz-credential=AK%2Fus&y", "https://h/a?x-amz-credential=***&y"),
        ("https://h/a?X-Amz-Security-Token=FwoGZ==", "https://h/a?X-Amz-Security-Token=***"),
        ("https://h/a?sv=1&sig=a%2Bb%3D", "https://h/a?sv=1&sig=***"),
        ("https://h/a?OSSAccessKeyId=AK&Signature=zz", "https://h/a?OSSAccessKeyId=***&Signature=***"),
        ("https://h/a?GoogleAccessId=me&X-Goog-Signature=zz", "https://h/a?GoogleAccessId=me&X-Goog-Signature=***"),
        ("https://h/a?access_token=abc", "https://h/a?access_token=***"),
        ("https://h/a?step=3&rows=10", "https://h/a?step=3&rows=10"),
        ("Authorization: Bearer abcdefgh.ijk", "Authorization: Bearer ***"),
    ],
)
def test_urls_lose_their_credentials_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown
    assert str(AppError(text)) == shown
    assert storage.redact(text) == shown


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wJalr/XUtn+FEMI"),
        ("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE"),
        ("WANDB_API_KEY", "0123456789abcdef"),
        ("FSSPEC_OSS_SECRET", "aliyun-secret"),
        ("FSSPEC_HTTP_PASSWORD", "correct horse"),
        ("FSSPEC_S3", '{"key": "AKIA00000000", "secret": "wJalr/XUtn+FEMI"}'),
        ("HF_TOKEN", "hf_0123456789"),
    ],
)
def test_secrets_of_the_environment_are_taken_out(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    secret = "wJalr/XUtn+FEMI" if name == "FSSPEC_S3" else value
    assert str(AppError(f"driver says: {secret} is wrong")) == "driver says: *** is wrong"


def test_plain_variables_stay_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false-or-true")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    assert redact("false-or-true /var/run/token") == "false-or-true /var/run/token"


def test_an_error_is_one_line_whatever_a_file_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: list[str]) -> int:
        raise AppError("a\nb\tc\x1b[31m\u2028é李.jpg: no picture")

    with pytest.raises(SystemExit):
        run_main(fail, [])
    assert capsys.readouterr().err == "error: a\\nb\\tc\\x1b[31m\\u2028é李.jpg: no picture\n"


def test_errors_of_an_index_hide_the_password() -> None:
    with pytest.raises(RecordError) as caught:
        parse_lines("http://user:hunter22@host/train.idx", b"no index")
    assert "hunter22" not in str(caught.value)
    assert "host/train.idx" in str(caught.value)


def test_a_recipe_as_text_holds_no_credentials() -> None:
    recipe = parse_arguments(["--data.url", "http://user:hunter22@host/faces", "--output.url", "s3://key:secret@b/r"])
    assert recipe.data.url == "http://user:hunter22@host/faces"  # the run itself needs it
    text = to_toml(recipe)
    assert "hunter22" not in text
    assert "secret" not in text
    assert 'url = "http://***@host/faces"' in text
