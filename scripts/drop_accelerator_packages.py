"""Filters a lock file: leaves out the CUDA libraries that torch's default build names as dependencies."""

import re
import sys

_UNWANTED = re.compile(r"(nvidia|cuda|triton)[\w.-]*==")


def main() -> None:
    """Copy stdin to stdout without unwanted packages, their hashes and their comments."""
    dropping = False
    for line in sys.stdin:
        if not line.startswith((" ", "\t")):
            dropping = _UNWANTED.match(line) is not None
        if not dropping:
            sys.stdout.write(line)


if __name__ == "__main__":
    main()
