"""Writes docs/reference.md, the page of every option, from what the fields say of themselves."""

from __future__ import annotations

from pathlib import Path

from app.config.help import default_text
from app.config.options import recipe_names
from app.config.recipe import sections
from app.settings import settings_of

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
_HEAD = """# Options and recipes

Made by `make reference` from app/config/recipe.py and the classes it names; do not edit. `python -m app.train --help`
says the same in the terminal, `--help data` one section of it.

Every field is an option, `--data.url URL`, and a key of a TOML recipe, `url = "URL"` under `[data]`. Dashes and
underscores are the same in options. An option wins over the recipe; what neither says has the default.
"""


def reference_page() -> str:
    """The page as Markdown."""
    lines = [_HEAD]
    for section, kind in sections().items():
        lines += [f"## [{section}]", "", kind.__doc__ or "", "", "| field | default | takes | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        for name, about in settings_of(kind).items():
            cells = (f"`{name}`", f"`{default_text(about)}`", about.takes or about.kind_name, about.meaning)
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        lines.append("")
    lines += ["## Published recipes", "", ", ".join(f"`{name}`" for name in recipe_names()) + "."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(reference_page())
