"""Collects this machine's pip settings into one file; prints a mount option for every local path that they name."""

import re
import subprocess
import sys
from pathlib import Path


def main(target: str) -> None:
    """Write ``target`` in pip's format; print ``--volume`` options, a word a line."""
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings: dict[str, str] = {}
    for line in listed.splitlines():
        match = re.fullmatch(r"(?:global|:env:|install)\.([\w-]+)='(.*)'", line)
        if match:
            settings[match[1]] = match[2].replace("\\n", "\n    ")
    Path(target).write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    found = re.findall(r"(?:file://)?(/[\w./-]+)", " ".join(settings.values()))
    paths = {Path(name) for name in found if Path(name).exists()}
    # The files of a local index lie beside its folder "simple".
    paths = {path.parent if path.name == "simple" else path for path in paths}
    for path in sorted(path for path in paths if len(path.parts) > 2):
        print("--volume")
        print(f"{path}:{path}:ro")


if __name__ == "__main__":
    main(sys.argv[1])
