"""Verifies trained weights: ``python -m app.verify --model RUN_URL --sets-url URL``; prints the table, writes a report.

The report goes to ``<model>/verification/`` unless ``--report`` says otherwise: report.json and report.png, and
of each set hardest_NAME.jpg, the pairs on which the model is most wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from app import storage
from app.command_line import CommandLine
from app.data.bin_sets import load_set
from app.device import detect_device
from app.errors import AppError, run_main
from app.evaluate.hardest import draw_hardest
from app.evaluate.judgement import verification_folder
from app.evaluate.model_source import add_model_options, model_options, open_model
from app.evaluate.report_figure import draw_report
from app.evaluate.verification import SetResult, embed_pixels, format_table, verify_set
from app.parsing import dump_json

EXIT_BELOW_FLOOR = 3


class VerifyError(AppError):
    """Nothing to verify with."""


def main(arguments: list[str]) -> int:
    """Load weights, embed the sets, print and write the report; 3 when an accuracy is below the floor."""
    options = parse(arguments)
    device = detect_device()
    model = open_model(options.model, device, precision=options.precision, **model_options(options))
    about = model.about
    urls = set_urls(options)
    started = time.perf_counter()
    results, baseline, hardest = [], [], []
    for url in urls:
        pairs = load_set(url)
        sizes = {"image_size": model.image_size, "batch_size": options.batch_size}
        results.append(verify_set(pairs, model.embed, **sizes))
        hardest.append(draw_hardest(pairs, results[-1]))
        if not options.no_baseline:
            baseline.append(verify_set(pairs, embed_pixels, **sizes))
    print(f"model {storage.redact(options.model)}: {about['backbone']}, step {about['step']}, on {device.kind}\n")
    print(format_table(results, baseline), flush=True)
    report = make_report(about, results, baseline, seconds=time.perf_counter() - started)
    folder = options.report or verification_folder(options.model)
    storage.write_bytes(storage.join(folder, "report.png"), draw_report(about, results, baseline))
    for result, picture in zip(results, hardest, strict=True):
        storage.write_bytes(storage.join(folder, f"hardest_{result.name}.jpg"), picture)
    storage.write_bytes(storage.join(folder, "report.json"), dump_json(report, indent=1).encode())
    print(f"\nreport: {storage.redact(storage.join(folder, 'report.json'))}, report.png, hardest_*.jpg")
    low = [result for result in results if result.metrics.accuracy < options.floor]
    for result in low:
        print(f"error: {result.name}: accuracy {result.metrics.accuracy:.5f} is below {options.floor}", file=sys.stderr)
    return EXIT_BELOW_FLOOR if low else 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("python -m app.verify", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_model_options(parser)
    parser.add_argument("--sets-url", required=True, help="URL of the folder with the .bin files, or of one")
    parser.add_argument("--sets", default="", help="names, comma separated; default: every .bin in the folder")
    parser.add_argument("--report", default="", help="URL of the report's folder")
    parser.add_argument("--floor", type=float, default=0.0, help="lowest accuracy that is a success")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--no-baseline", action="store_true", help="leave out the raw-pixel baseline")
    return parser.parse_args(arguments)


def set_urls(options: argparse.Namespace) -> list[str]:
    """URLs of the ``.bin`` files to verify on.

    Raises:
        VerifyError: there is none.
    """
    names = [name.strip() for name in options.sets.split(",") if name.strip()]
    if not names and options.sets_url.endswith(".bin"):
        return [options.sets_url]
    if not names:
        found = storage.list_names(options.sets_url)
        names = [name.removesuffix(".bin") for name in found if name.endswith(".bin")]
    if not names:
        raise VerifyError(f"{storage.redact(options.sets_url)}: no .bin file there: correct --sets-url")
    return [storage.join(options.sets_url, f"{name}.bin") for name in names]


def make_report(
    about: dict[str, Any], results: list[SetResult], baseline: list[SetResult], *, seconds: float
) -> dict[str, Any]:
    """The report as plain JSON."""
    return {
        "model": about,
        "seconds": round(seconds, 3),
        "sets": {result.name: result.summary() for result in results},
        "raw_pixels": {result.name: result.summary() for result in baseline},
    }


if __name__ == "__main__":
    run_main(main)
