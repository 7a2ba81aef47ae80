"""Makes datasets: ``python -m app.prepare KIND --output URL``."""

from __future__ import annotations

import argparse

from app import storage
from app.data.prepare.orl import prepare_orl
from app.errors import run_main


def main(arguments: list[str]) -> int:
    """Prepare what was asked for and print a line about it."""
    parser = argparse.ArgumentParser("app.prepare", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    orl = kinds.add_parser("orl", help="the AT&T/ORL faces: 30 people to train on, 10 to verify on")
    orl.add_argument("--output", required=True, help="folder URL")
    orl.add_argument("--train-people", type=int, default=30)
    orl.add_argument("--seed", type=int, default=0, help="of the impostor pairs and of --shuffle-people")
    orl.add_argument("--shuffle-people", action="store_true", help="choose the people at random")
    options = parser.parse_args(arguments)
    line = prepare_orl(
        options.output,
        train_people=options.train_people,
        seed=options.seed,
        shuffle_people=options.shuffle_people,
    )
    print(f"{storage.redact(options.output)}: {line}")
    return 0


if __name__ == "__main__":
    run_main(main)
