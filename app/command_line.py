"""The parser of every program's command line: ``--version`` everywhere, and one line about what it cannot read."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from app import __version__


class CommandLine(argparse.ArgumentParser):
    """argparse's parser. Its answer to a mistake is a line without the usage, which is a dozen lines of options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        self.add_argument(
            "--version", action="version", version=f"arcface-torchx {__version__}", help="print it and end"
        )

    def error(self, message: str) -> NoReturn:
        """End with 2."""
        self.exit(2, f"error: {message}; {self.prog} --help lists what there is\n")
