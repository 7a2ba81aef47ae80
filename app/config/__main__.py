"""Checks options without loading what they set: ``python -m app.config --recipe NAME --section.field VALUE``.

Prints the recipe as TOML, or one line that says what is wrong and ends with 65. Launchers ask it before they submit a
job: it knows every option of ``app.train`` and needs neither torch nor a device.
"""

from __future__ import annotations

from app.config.options import parse_arguments, to_toml
from app.errors import run_main


def main(arguments: list[str]) -> int:
    """Parse, validate, print."""
    if arguments in (["--help"], ["-h"]):
        print(f"usage: python -m app.config --recipe NAME [--section.field VALUE ...]\n\n{__doc__}")
        print("The options are those of python -m app.train, whose --help explains them.")
        return 0
    print(to_toml(parse_arguments(arguments)), end="")
    return 0


if __name__ == "__main__":
    run_main(main)
