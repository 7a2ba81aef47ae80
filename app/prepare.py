"""Makes datasets and looks after them: ``python -m app.prepare KIND ...``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from app import storage
from app.command_line import CommandLine
from app.data.folder_url import check_folder_url, explain_missing_dataset
from app.data.prepare.errors import PrepareError
from app.data.prepare.export import export_images
from app.data.prepare.folder import FaceOptions, FolderOptions, prepare_folder
from app.data.prepare.index import rebuild_index
from app.data.prepare.merge import mend_dataset, merge_datasets
from app.data.prepare.orl import prepare_orl
from app.data.prepare.pairs import draw_dataset_pairs, draw_folder_pairs, prepare_pairs
from app.data.prepare.photograph import FITS
from app.data.prepare.reorder import shuffle_dataset, split_dataset
from app.data.prepare.sheet import contact_sheet
from app.data.prepare.tools import check_dataset
from app.errors import printable, printable_lines, run_main
from app.observe.progress import Progress, format_duration

_NOT_ALIGNED = (
    "warning: the faces are not aligned (no --align detector, no --landmarks). A model that was trained on aligned "
    "faces, as every published one is, compares such pictures badly: on AT&T/ORL's faces it takes 3 more of 100 pairs "
    "wrong as whole portraits, and 10 more where faces lie 12 pixels off or are a quarter too large or too small "
    "(python -m benchmarks.alignment); one trained on them has to learn every position and tilt by itself"
)


def main(arguments: list[str]) -> int:
    """Do what was asked for and print about it; 1 when ``check`` found something wrong."""
    options = parse(arguments)
    _check_places(options)
    if options.kind == "check":
        text, problems = check_dataset(options.data, decode=not options.no_decode)
        print(printable_lines(text))
        for problem in problems:
            print(printable(f"problem: {storage.redact(problem)}"), file=sys.stderr)
        return 1 if problems else 0
    if options.kind == "index":
        print(f"{storage.redact(options.data)}: {rebuild_index(options.data)}")
        return 0
    print(printable_lines(f"{storage.redact(options.output)}: {_prepare(options)}"))
    return 0


def _check_places(options: argparse.Namespace) -> None:
    """Refuse URLs that are none, and say where the dataset is that was meant."""
    data = getattr(options, "data", [])
    datasets = data if isinstance(data, list) else [data]
    either = options.kind == "pairs"  # a folder of photographs or a dataset, the other left empty
    places = {
        "--source": ["."] if either else [getattr(options, "source", ".")],
        "--data": ["."] if either else datasets,
        "--output": [getattr(options, "output", ".")],
    }
    for name, urls in places.items():
        if not all(map(str.strip, urls)):
            raise PrepareError(f"{name} is empty: name a folder; . is this one")
    for url in filter(None, datasets):
        check_folder_url(url)
        if not storage.exists(storage.join(url, "train.rec")) and (why := explain_missing_dataset(url)):
            raise PrepareError(why)


def _prepare(options: argparse.Namespace) -> str:
    if options.kind == "orl":
        people = {"train_people": options.train_people, "shuffle_people": options.shuffle_people}
        return prepare_orl(options.output, seed=options.seed, **people)
    if options.kind == "folder":
        return _prepare_folder(options)
    if options.kind == "pairs":
        return _prepare_pairs(options)
    if options.kind == "merge":
        return merge_datasets(options.data, options.output, options.people)
    if options.kind == "mend":
        return mend_dataset(options.data, options.output)
    if options.kind == "export":
        return export_images(options.data, options.output)
    if options.kind == "shuffle":
        return shuffle_dataset(options.data, options.output, options.seed)
    if options.kind == "split":
        return split_dataset(
            options.data, options.output, people=options.people, seed=options.seed, pairs=options.pairs
        )
    return contact_sheet(options.data, options.output, count=options.count, start=options.start)


def _face(options: argparse.Namespace) -> FaceOptions:
    return FaceOptions(
        options.size,
        fit=options.fit,
        align=options.align,
        landmarks=options.landmarks,
        several=options.several_faces,
    )


def _prepare_folder(options: argparse.Namespace) -> str:
    last, progress = 0.0, Progress(0, enabled=True, out=sys.stderr)
    first: tuple[float, int] | None = None  # before it a detector is loaded, and what an earlier start left is read

    def report(done: int, total: int) -> None:
        nonlocal first, last
        now, progress.total_steps = time.monotonic(), total
        if now - last > (0.2 if progress.live else 10) or done == total:
            last = now
            first = first or (now, done)
            seconds = (now - first[0]) / max(1, done - first[1]) * (total - done)
            left = f" | ETA {format_duration(seconds)}" if done > first[1] else ""
            progress.report(done, f"{done} of {total} photographs{left}")

    face = _face(options)
    chosen = FolderOptions(
        face,
        person=options.person,
        min_images=options.min_images,
        duplicates=options.duplicates,
        strict=options.strict,
        sheet=options.sheet,
        workers=options.workers,
    )
    try:
        text = prepare_folder(options.source, options.output, chosen, report)
    finally:
        progress.close()
    if not face.landmarks and face.align == "none":
        print(_NOT_ALIGNED, file=sys.stderr)
    return text


def _prepare_pairs(options: argparse.Namespace) -> str:
    if bool(options.source) == bool(options.data) or (options.pairs and options.data):
        raise PrepareError("pairs: give --source FOLDER with or without --pairs LIST, or --data DATASET")
    if options.data:
        return draw_dataset_pairs(options.data, options.output, count=options.count, seed=options.seed)
    face = _face(options)
    if options.pairs:
        return prepare_pairs(options.source, options.pairs, options.output, face)
    return draw_folder_pairs(options.source, options.output, count=options.count, seed=options.seed, face=face)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = CommandLine("python -m app.prepare", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")

    def kind(name: str, text: str, *places: tuple[str, str]) -> argparse.ArgumentParser:
        command = kinds.add_parser(name, help=text, description=text)
        for option, meaning in places:
            command.add_argument(option, required=True, help=meaning)
        return command

    output = ("--output", "URL of the folder to write to")
    data = ("--data", "URL of the folder with train.rec and train.idx")
    orl = kind("orl", "the AT&T/ORL faces: 30 people to train on, 10 to verify on", output)
    orl.add_argument("--train-people", type=int, default=30)
    orl.add_argument("--seed", type=int, default=0, help="of the impostor pairs and of --shuffle-people")
    orl.add_argument("--shuffle-people", action="store_true", help="choose the people at random")
    folder = kind(
        "folder", "photographs, a subfolder a person, to .rec", ("--source", "URL of the photographs"), output
    )
    _add_face_options(folder)
    folder.add_argument("--person", choices=("first", "last"), default="first", help="the folder that names the person")
    folder.add_argument("--min-images", type=int, default=1, help="leave people out who have fewer")
    folder.add_argument(
        "--duplicates", choices=("report", "drop"), default="report", help="drop: keep a person's first"
    )
    folder.add_argument("--strict", action="store_true", help="refuse to leave a file out")
    folder.add_argument("--sheet", type=int, default=24, help="photographs on sheet.png, before and after; 0: none")
    folder.add_argument("--workers", type=int, default=8, help="threads that read and decode")
    pairs = kind("pairs", "a .bin set from a list of pairs, or of pairs drawn from people who are not trained on")
    pairs.add_argument("--source", default="", help="URL of the photographs")
    pairs.add_argument("--data", default="", help="URL of a dataset instead")
    pairs.add_argument(
        "--pairs", default="", help="URL of the list: LFW's, CALFW's or CPLFW's, or 'image image 0|1' a line"
    )
    pairs.add_argument("--output", required=True, help="URL of the .bin file")
    pairs.add_argument(
        "--count", type=int, default=0, help="pairs to draw without a list; 0: 6000, or as many as can be"
    )
    pairs.add_argument("--seed", type=int, default=0, help="of the draw")
    _add_face_options(pairs)
    _add_tools(kind, data, output)
    return parser.parse_args(arguments)


def _add_tools(kind: Callable[..., argparse.ArgumentParser], data: tuple[str, str], output: tuple[str, str]) -> None:
    """What looks after datasets that are there."""
    check = kind("check", "statistics and integrity of a dataset", data)
    check.add_argument("--no-decode", action="store_true", help="leave the images undecoded")
    kind("index", "make train.idx again from train.rec", data)
    merge = kind("merge", "one dataset of several", output)
    merge.add_argument("--data", action="append", required=True, help="URL of a dataset; once for each")
    merge.add_argument(
        "--people", choices=("separate", "shared"), default="separate", help="shared: people of one name are one"
    )
    kind("mend", "what is sound of a dataset, with a header that is true", data, output)
    kind("export", "records back to images, a folder a person", data, output)
    shuffle = kind("shuffle", "the same records in a random order", data, output)
    shuffle.add_argument("--seed", type=int, default=0)
    split = kind(
        "split", "hold some people out: a dataset of each part, and pairs of the people held out", data, output
    )
    split.add_argument("--people", type=int, required=True, help="how many are held out")
    split.add_argument("--pairs", type=int, default=0, help="in held-out.bin; 0: 6000, or as many as can be")
    split.add_argument("--seed", type=int, default=0)
    sheet = kind("sheet", "a picture of samples", data, ("--output", "URL of the PNG file"))
    sheet.add_argument("--count", type=int, default=50)
    sheet.add_argument("--start", type=int, default=0, help="position of the first")


def _add_face_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--size", type=int, default=112, help="pixels")
    command.add_argument("--fit", choices=FITS, default="pad", help="how a picture that is not square becomes it")
    command.add_argument(
        "--align",
        choices=("none", "detector"),
        default="none",
        help="detector: find the face, turn and scale it to the field's template (extra [detect])",
    )
    command.add_argument(
        "--landmarks", default="", help="URL of a CSV or JSON file of five points a face: align by them"
    )
    command.add_argument(
        "--several-faces", choices=("largest", "refuse"), default="largest", help="refuse: leave the picture out"
    )


if __name__ == "__main__":
    run_main(main)
