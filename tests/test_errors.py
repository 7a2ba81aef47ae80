"""No message of ours holds a credential, whoever made it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from app import storage
from app.config.options import parse_arguments, to_toml
from app.data.index import parse_lines
from app.data.recordio import RecordError
from app.errors import AppError, printable, redact, run_main
from tests.jobs import ROOT


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


def test_what_comes_from_elsewhere_is_one_bounded_line_that_no_terminal_obeys() -> None:
    assert printable("a\x1b[2Jb\nc\x07\u202e") == "a\\x1b[2Jb\\nc\\x07\\u202e"
    assert printable("Zo\u00eb 李 é") == "Zo\u00eb 李 é"
    assert str(AppError("class \x1b]0;x\x07: gone\r\nerror: forged")) == "class \\x1b]0;x\\x07: gone\\r\\nerror: forged"
    assert len(str(AppError("x" * 10**7))) < 4100


def test_a_secret_across_the_cut_of_a_long_message_is_not_shown() -> None:
    for start in range(3900, 4050):
        assert "hunter22" not in str(AppError("x" * start + " http://user:hunter22@host/a"))


_PROGRAM = """
import warnings
from app.errors import run_main
def main(arguments):
    if "warn" in arguments:
        warnings.warn("http://user:hunter22@host/a \\x1b[2J")
        return 0
    raise RuntimeError("cannot open http://user:hunter22@host/a \\x1b[2J")
run_main(main)
"""


@pytest.mark.parametrize("argument", ["warn", "fail"])
def test_warnings_and_tracebacks_of_any_program_hold_no_secret(argument: str) -> None:
    command = [sys.executable, "-c", _PROGRAM, argument]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert "http://***@host/a \\x1b[2J" in done.stderr
    assert "hunter22" not in done.stderr + done.stdout
    assert "\x1b" not in done.stderr
    assert ("RuntimeError" in done.stderr) == (argument == "fail") == bool(done.returncode)
