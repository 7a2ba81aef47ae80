"""The pipeline knows before it trains what it will verify, and that the second job will be taken."""

from __future__ import annotations

import pytest
from torchx.runner import get_runner

from components.arguments import ComponentError
from components.pipeline import look_at_verification, parse, verify_arguments
from tests.jobs import ROOT
from torchx_plugins.schedulers._cluster import ClusterError

GIVEN = ["--image", "a/b:1", "--hardware", "cpu", "--recipe", "orl", "--output", "s3://runs"]
CFG = {"validate_spec": False}


@pytest.mark.parametrize(
    ("words", "model", "sets"),
    [
        (["--data", "s3://faces/orl"], "s3://runs/orl", "s3://faces/orl"),
        (["--data", "s3://one, s3://two"], "s3://runs/orl", "s3://one"),  # as the trainer looks for them
        (["--data", "s3://one", "--", "--verify.url", "s3://sets"], "s3://runs/orl", "s3://sets"),
        (["--data", "s3://one", "--sets", "s3://x", "--", "--verify.url=s3://sets"], "s3://runs/orl", "s3://x"),
        (["--data", "s3://one", "--name", "mine"], "s3://runs/mine", "s3://one"),
        (["--data", "s3://one", "--", "--optim.lr", "0.1", "--train.bogus", "1"], "", ""),
    ],
)
def test_it_verifies_what_was_trained_on_the_sets_of_the_training(
    monkeypatch: pytest.MonkeyPatch, words: list[str], model: str, sets: str
) -> None:
    monkeypatch.chdir(ROOT)
    options = parse([*GIVEN, *words])
    if not model:
        with pytest.raises(ComponentError, match=r"unknown option --train\.bogus"):
            verify_arguments(options, {})
        return
    found = verify_arguments(options, {})
    assert found[found.index("--model") + 1] == model
    assert found[found.index("--sets") + 1] == sets


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--floor", "98"], ComponentError, "--floor must be from 0 to 1; got 98"),
        (["--verify_image", "A B"], ComponentError, "image 'A B' is no image reference"),
    ],
)
def test_what_the_second_job_is_refused_for_is_told_before_the_first(
    monkeypatch: pytest.MonkeyPatch, words: list[str], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(ROOT)
    options = parse([*GIVEN, "--data", "s3://faces/orl", *words])
    with get_runner() as runner, pytest.raises(error, match=message):
        look_at_verification(runner, verify_arguments(options, {}), options, dict(CFG))


def test_the_cluster_is_asked_about_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    options = parse([*GIVEN, "--data", "s3://faces/orl", "--sets", "/home/me/sets"])
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    with get_runner() as runner, pytest.raises(ClusterError, match="--sets-url /home/me/sets: no pod has this folder"):
        look_at_verification(runner, verify_arguments(options, {}), options, {"queue": "default"})
