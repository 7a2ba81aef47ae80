"""The end of a run: last checkpoint, verification, final weights, summary."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app import storage
from app.elastic import watchdog
from app.elastic.signals import StopRequest
from app.observe.tracking import track_run
from app.parsing import dump_json
from app.run_folder import run_url, save_model
from app.storage import StorageError
from app.training.loop import Loop, Outcome
from app.training.provenance import describe_origin

_EXPORT_SECONDS = 600.0  # of a model on a busy host it takes less than one


def finish_run(loop: Loop) -> Outcome:
    """Write what remains of a finished run to its folder; a collective.

    A node that is asked to go while the last verification runs stops it: the next start does it again.
    """
    if loop.recipe.train.perf_steps:
        loop.progress.say(f"speed: {loop.images_per_second:.1f} img/s, median over {loop.step} steps")
        return Outcome.FINISHED
    loop.save()
    if not loop.verify():
        return Outcome.STOPPED
    watchdog.leave("results")
    if loop.world.rank == 0:
        write_results(loop)
    return Outcome.FINISHED


def write_results(loop: Loop) -> None:
    """The final weights, the summary, and what else is made of them; on one rank."""
    url = run_url(loop.recipe)
    loop.verifier.write_best(loop.events, must=True)
    save_model(url, loop.trainer.backbone, loop.recipe, loop.step)
    summary = summarize(loop)
    storage.write_bytes(storage.join(url, "summary.md"), format_summary(summary).encode())
    # With this the run is complete, whatever becomes of what is made besides.
    storage.write_bytes(storage.join(url, "summary.json"), dump_json(summary, indent=1).encode())
    if loop.recipe.output.onnx:
        write_onnx(loop, url)
    artifacts = {name: storage.join(url, name) for name in ("model.pt", "summary.json", "recipe.toml")}
    track_run({**summary, "run_url": url}, artifacts)
    loop.progress.say(f"\n{format_summary(summary)}\nmodel: {storage.redact(storage.join(url, 'model.pt'))}")
    if loop.recipe.output.log_style == "insightface":
        for line in final_lines(summary):
            loop.progress.say(line)
    if len(loop.events.trackers):
        try:
            for name, place in artifacts.items():
                loop.events.trackers.add_artifact(name, storage.read_bytes(place))
        except StorageError as error:
            loop.progress.say(f"warning: the trackers did not get all files: {error}")


def final_lines(summary: dict[str, Any]) -> list[str]:
    """The lines with which the Ascend port's scripts end; the accuracy is that of the first set."""
    accuracy = next(iter(summary["accuracy_highest"].values()), None)
    return [
        f"Final Performance images/sec : {summary['fps']:.2f}",
        f"Final Train Accuracy : {'-' if accuracy is None else format(accuracy, '.5f')}",
        f"E2E Training Duration sec : {summary['seconds']:.0f}",
    ]


def write_onnx(loop: Loop, url: str) -> None:
    """Write model.onnx; a failure is said and does not lose the run, and neither does an exporter that hangs."""
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxruntime") is None:
        loop.progress.say("no model.onnx: the extra [export] is not installed")
        return
    loop.progress.say(export(url, min(_EXPORT_SECONDS, loop.recipe.train.step_timeout), loop.stop))


def export(url: str, seconds: float, stop: StopRequest) -> str:
    """Make model.onnx of a run folder's model.pt; returns what there is to say.

    In a process of its own, which can be ended whatever hangs in it: after so many seconds, or when this one is to go.
    """
    command = [sys.executable, "-m", "app.export", "--model", url, "--output", storage.join(url, "model.onnx")]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        exporter = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            while exporter.poll() is None and time.monotonic() < deadline and not stop.received:
                time.sleep(0.1)
                watchdog.enter("results")
            ended = exporter.poll() is not None
        finally:
            exporter.kill()
            exporter.wait()
        said.seek(0)
        lines = said.read().splitlines() or [""]
    if exporter.returncode == 0:
        return lines[-1]
    how = f"python -m app.export --model {storage.redact(url)} makes it"
    if not ended:
        reason = "this process is to go" if stop.received else f"the exporter did not end in {seconds:.0f} s"
        return f"warning: no model.onnx: {reason}; {how}"
    if exporter.returncode < 0:
        return f"warning: no model.onnx: the exporter was ended by signal {-exporter.returncode}; {how}"
    # Behind a traceback's last indented line stands what went wrong.
    last = max((number for number, line in enumerate(lines) if line.startswith(" ")), default=-1)
    reason = " ".join(" ".join(lines[last + 1 :] or lines).split()).removeprefix("error: ")
    return f"warning: no model.onnx: {reason[:500]}"


def summarize(loop: Loop) -> dict[str, Any]:
    """The figures of a run, and what it came from, as plain JSON."""
    recipe = loop.recipe
    return {
        "name": recipe.name,
        "recipe": recipe.origin,
        "accuracy_highest": dict(loop.verifier.highest),
        "best_mean_accuracy": loop.verifier.best_mean,  # of the backbone in best/
        "fps": loop.images_per_second,
        "epochs": recipe.train.epochs,
        "steps": loop.step,
        "seconds": round(time.monotonic() - loop.started, 1),  # of this start
        "backbone": recipe.model.backbone,
        "dataset": storage.redact(recipe.data.url),
        "classes": loop.trainer.head.shape.num_classes,
        "global_batch": loop.global_batch,
        "amp_type": recipe.train.precision,
        "bad_records": loop.bad_records,
        **describe_origin(loop.world),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """The closing table, with the figures that the reference's users compare, and below it what the run came from."""
    highest = ", ".join(f"{name} {value:.5f}" for name, value in summary["accuracy_highest"].items()) or "-"
    cells = {
        "Name": summary["name"],
        "Accuracy-Highest": highest,
        "FPS": f"{summary['fps']:.1f}",
        "Epochs": str(summary["epochs"]),
        "AMP type": summary["amp_type"],
        "Torch version": summary["torch_version"],
    }
    head, row = " | ".join(cells), " | ".join(cells.values())
    rest = {
        "Recipe": summary["recipe"],
        "Backbone": summary["backbone"],
        "Dataset": f"{summary['dataset']}, {summary['classes']} classes",
        "Steps": f"{summary['steps']} of {summary['global_batch']} images; {summary['seconds']} s in the last start",
        "Code": f"arcface-torchx {summary['app_version']}, commit {summary['commit'] or 'unknown'}",
        "Hardware": f"{summary['processes']} x {summary['device']}; {summary['cpus']} x {summary['processor']}",
        "System": f"Python {summary['python_version']}, {summary['system']}",
    }
    lines = "".join(f"- {name}: {value}\n" for name, value in rest.items())
    return f"| {head} |\n|{'|'.join(' --- ' for _ in cells)}|\n| {row} |\n\n{lines}"
