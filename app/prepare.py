"""Makes datasets and looks after them: ``python -m app.prepare KIND ...``."""

from __future__ import annotations

import argparse
import sys

from app import storage
from app.data.prepare.folder import prepare_folder
from app.data.prepare.orl import prepare_orl
from app.data.prepare.pairs import prepare_pairs
from app.data.prepare.reorder import shuffle_dataset, split_dataset
from app.data.prepare.tools import check_dataset, contact_sheet
from app.errors import run_main


def main(arguments: list[str]) -> int:
    """Do what was asked for and print about it; 1 when ``check`` found something wrong."""
    options = parse(arguments)
    if options.kind == "check":
        text, problems = check_dataset(options.data, decode=not options.no_decode)
        print(text)
        for problem in problems:
            print(f"problem: {storage.redact(problem)}", file=sys.stderr)
        return 1 if problems else 0
    print(f"{storage.redact(options.output)}: {_prepare(options)}")
    return 0


def _prepare(options: argparse.Namespace) -> str:
    if options.kind == "orl":
        people = {"train_people": options.train_people, "shuffle_people": options.shuffle_people}
        return prepare_orl(options.output, seed=options.seed, **people)
    if options.kind == "folder":
        return prepare_folder(options.source, options.output, size=options.size, workers=options.workers)
    if options.kind == "pairs":
        return prepare_pairs(options.source, options.pairs, options.output, size=options.size)
    if options.kind == "shuffle":
        return shuffle_dataset(options.data, options.output, options.seed)
    if options.kind == "split":
        return split_dataset(options.data, options.output, people=options.people, seed=options.seed)
    return contact_sheet(options.data, options.output, count=options.count, start=options.start)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser("app.prepare", description=__doc__)
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
    folder = kind("folder", "images, a subfolder a person, to .rec", ("--source", "URL of the images"), output)
    folder.add_argument("--size", type=int, default=112, help="pixels")
    folder.add_argument("--workers", type=int, default=8, help="threads that read and decode")
    pairs = kind("pairs", "images and a list of pairs to a .bin set", ("--source", "URL of the images"))
    pairs.add_argument("--pairs", required=True, help="URL of the list: 'image image 0|1' a line")
    pairs.add_argument("--output", required=True, help="URL of the .bin file")
    pairs.add_argument("--size", type=int, default=112, help="pixels")
    check = kind("check", "statistics and integrity of a dataset", data)
    check.add_argument("--no-decode", action="store_true", help="leave the images undecoded")
    shuffle = kind("shuffle", "the same records in a random order", data, output)
    shuffle.add_argument("--seed", type=int, default=0)
    split = kind("split", "hold some people out", data, output)
    split.add_argument("--people", type=int, required=True, help="how many are held out")
    split.add_argument("--seed", type=int, default=0)
    sheet = kind("sheet", "a picture of samples", data, ("--output", "URL of the PNG file"))
    sheet.add_argument("--count", type=int, default=50)
    sheet.add_argument("--start", type=int, default=0, help="position of the first")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run_main(main)
