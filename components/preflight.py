"""Asks before anything is submitted: ``python -m components.preflight -- --nnodes 4 …`` (arguments of arcface_dist).

Builds the job as ``torchx run`` would, looks into the bucket with the credentials of this shell, and lets the cluster
validate the job without creating it. A line each; ends with 1 when something would fail.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchx.runner import config, get_runner
from torchx.runner.config import load_sections
from torchx.specs import AppDef, CfgVal
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_component

from app.command_line import CommandLine
from components.app_options import AppMissing, plan, settings
from components.arguments import as_handed_on, is_path
from components.hardware import load_profile
from components.image_registry import RegistryUnknown, require_image
from components.jobs import TrainJob
from components.store import Skipped, StoreError, size_of, try_commit
from torchx_plugins.schedulers._command_line import REFUSALS, leave_usage_out

FILE = "components.py"


def build(arguments: list[str], name: str = "arcface_dist") -> AppDef:
    """The job, from the arguments and ``.torchxconfig``; refuses as the component does."""
    component = get_component(f"{FILE}:{name}")
    defaults = load_sections(prefix="component").get(f"{FILE}:{name}", {})
    return materialize_appdef(component.fn, arguments, defaults)


def resolve(app: AppDef) -> dict[str, Any]:
    """The recipe as the trainers will run it.

    Raises:
        ComponentError: the app refuses an option.
        Skipped: the app cannot be asked from here.
    """
    try:
        return settings(app_words(app))
    except AppMissing as reason:
        raise Skipped(f"the app cannot be asked from here: {reason}") from reason


def app_words(app: AppDef) -> list[str]:
    """The options of ``app.train``, as it will get them."""
    arguments = app.roles[-1].args
    return [as_handed_on(word) for word in arguments[arguments.index("--") + 1 :]]


def check_options(recipe: dict[str, Any]) -> str:
    """The app takes the options; it was asked when the recipe was resolved."""
    train = recipe["train"]
    return f"{recipe['model']['backbone']}, {train['epochs']} epochs, {train['precision']}"


def check_memory(app: AppDef, recipe: dict[str, Any], hardware: str, scheduler: str) -> str:
    """The run fits into devices and hosts, as far as can be told beforehand (``app.plan``).

    Raises:
        ComponentError: it does not; says what would.
        Skipped: nobody knows how many classes there are, or what this machine can spare.
    """
    if scheduler.startswith("local"):
        raise Skipped(f"{scheduler} gives a job what this machine can spare; ask python -m app.plan --hardware cpu")
    if not recipe["data"]["num_classes"]:
        raise Skipped(
            "the recipe leaves the number of classes to the dataset; give --data.num-classes to have it asked"
        )
    trainer = app.roles[-1]
    words = trainer.args[: trainer.args.index("--")]
    layout = [word for name in ("--nnodes", "--nproc-per-node") for word in (name, words[words.index(name) + 1])]
    # A pod's limit is in units of 10^6 bytes, what the app counts in MiB.
    node = ["--hardware", hardware, "--host-mb", str(trainer.resource.memMB * 10**6 >> 20)]
    try:
        return plan([*layout, *node, *app_words(app)])
    except AppMissing as reason:
        raise Skipped(f"the app cannot be asked from here: {reason}") from reason


def hardware_of(arguments: list[str]) -> str:
    """The name of the hardware profile that the job asks for."""
    given = [word for word in arguments[: arguments.index("--")] if word] if "--" in arguments else arguments
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    defaults = load_sections(prefix="component").get(f"{FILE}:arcface_dist", {})
    parser.add_argument("--hardware", default=defaults.get("hardware", TrainJob.hardware))
    named: str = parser.parse_known_args(given)[0].hardware
    load_profile(named)
    return named


def check_image(app: AppDef, scheduler: str) -> str:
    """The registry has the image.

    Raises:
        ValueError: it has not; a pod would wait in ImagePullBackOff.
    """
    image = app.roles[-1].image
    if scheduler.startswith("local") or is_path(image):
        raise Skipped(f"{scheduler} asks no registry for it")
    try:
        return f"{image} is {require_image(image)}"
    except RegistryUnknown as reason:
        raise Skipped(f"{image}: {reason}") from reason


def check_dataset(recipe: dict[str, Any]) -> str:
    """``train.rec`` and ``train.idx`` of every dataset are there and readable.

    Raises:
        ValueError: one is not; names it.
    """
    url = recipe["data"]["url"]
    if url == "synthetic":
        return "synthetic"
    if not url:
        raise ValueError("no dataset: pass --data, or set it in .torchxconfig")
    urls = [part.strip() for part in url.split(",") if part.strip()]
    for part in urls:
        _check_records(part)
    return f"{', '.join(urls)} {'is' if len(urls) == 1 else 'are'} readable"


def _check_records(url: str) -> None:
    for name in ("train.rec", "train.idx"):
        if size_of(place := f"{url.rstrip('/')}/{name}") == 0:
            raise ValueError(f"{place} is empty: upload it again")


def check_output(recipe: dict[str, Any]) -> str:
    """The output's bucket can be listed, and a checkpoint be committed there.

    Raises:
        ValueError: it cannot.
        Skipped: this shell may not write there.
    """
    url = recipe["output"]["url"]
    if not url:
        raise ValueError("no output: pass --output, or set it in .torchxconfig")
    scheme, found, path = url.partition("://")
    if found and scheme != "file":
        bucket = f"{scheme}://{path.split('/', 1)[0]}"
    else:
        bucket = os.path.dirname(os.path.abspath(url.removeprefix("file://")))
    try:
        size_of(bucket)
    except StoreError as error:
        if error.absent:
            raise ValueError(f"{url}: {bucket} does not exist: create it") from error
        raise
    if found and scheme != "file" and recipe["checkpoint"]["commit"] == "conditional":
        try_commit(url)
        return f"{url} is writable, and only once"
    return f"{url} can be reached"


def check_cluster(app: AppDef, scheduler: str, cfg_text: str) -> str:
    """The scheduler takes the job, and the cluster its pods: dry runs at the API server, with queue and Secret."""
    with get_runner() as runner:
        cfg: dict[str, CfgVal] = dict(runner.scheduler_run_opts(scheduler).cfg_from_str(cfg_text))
        config.apply(scheduler, cfg)
        asked = cfg.get("validate_spec") is not False
        ours = getattr(runner._scheduler(scheduler), "validate", None)
        if ours is None:
            runner.dryrun(app, scheduler, cfg=cfg)
            return f"{scheduler} takes the job"
        info = runner.dryrun(app, scheduler, cfg={**cfg, "validate_spec": False})
        if not asked:
            raise Skipped("validate_spec=False")
        ours(info.request.resource, info.cfg, strict=True)
    return f"{scheduler} takes the job and its pods"


def main(arguments: list[str]) -> int:
    """Ask everything; returns 1 when something would fail."""
    parser = CommandLine("python -m components.preflight", description=__doc__)
    parser.add_argument("-s", "--scheduler", default="kubernetes")
    parser.add_argument("-cfg", "--cfg", default="", help="scheduler options, KEY=VALUE,...")
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    try:
        app = build(arguments[cut + 1 :])
    except ValueError as error:
        print(f"failed  arguments: {error}")
        return 1
    print(f"ok      arguments: {' + '.join(f'{role.num_replicas} x {role.name}' for role in app.roles)}")
    recipe = functools.cache(lambda: resolve(app))
    questions: dict[str, Callable[[], str]] = {
        "options": lambda: check_options(recipe()),
        "memory": lambda: check_memory(app, recipe(), hardware_of(arguments[cut + 1 :]), options.scheduler),
        "image": lambda: check_image(app, options.scheduler),
        "dataset": lambda: check_dataset(recipe()),
        "output": lambda: check_output(recipe()),
        "cluster": lambda: check_cluster(app, options.scheduler, options.cfg),
    }
    failed = 0
    for name, ask in questions.items():
        try:
            print(f"ok      {name}: {ask()}")
        except Skipped as reason:
            print(f"skipped {name}: {reason}")
        except REFUSALS as error:
            failed += 1
            print(f"failed  {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    leave_usage_out()
    # TorchX finds components.py and .torchxconfig in the working directory.
    asked = {"-h", "--help", "--version"} & set(sys.argv[1:])
    if not asked and not Path(FILE).exists():
        sys.exit(f"error: {FILE} is not in {Path.cwd()}: run this from the repository's root")
    sys.exit(main(sys.argv[1:]))
