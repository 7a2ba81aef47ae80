"""What CONTRIBUTING.md promises of the code: short functions and files, public names explained, one version."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torch.distributed

import app

ROOT = Path(__file__).resolve().parent.parent
OURS = ["app", "components", "components.py", "torchx_plugins", "demo", "scripts", "benchmarks", "tests"]
FILES = sorted(path for name in OURS for path in [*(ROOT / name).rglob("*.py"), ROOT / name] if path.is_file())
LIBRARY = [path for path in FILES if path.relative_to(ROOT).parts[0] != "tests"]
# Methods whose meaning the base class or the language gives.
INHERITED = {"forward", "backward"} | {name for name in dir(torch.distributed.Store) if not name.startswith("_")}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, Function):
            yield node


def undocumented(path: Path) -> Iterator[str]:
    """Public functions, classes and methods of public classes without a docstring."""
    tree = ast.parse(path.read_text())
    documented = {node.name for node in functions(path) if ast.get_docstring(node)}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield node.name
            inherited = INHERITED | (documented if isinstance(node, ast.ClassDef) and node.bases else set())
            for method in node.body if isinstance(node, ast.ClassDef) else []:
                if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) or method.name.startswith("_"):
                    continue
                if method.name not in inherited and not ast.get_docstring(method):
                    yield f"{node.name}.{method.name}"


def test_a_function_has_at_most_60_lines_and_a_file_400() -> None:
    found = {}
    for path in FILES:
        lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions(path)}
        long = {name: length for name, length in lengths.items() if length > 60}
        if (lines := len(path.read_text().splitlines())) > 400 or long:
            found[str(path.relative_to(ROOT))] = (lines, long)
    assert found == {}


def test_the_entry_point_of_training_is_short() -> None:
    assert len((ROOT / "app" / "train.py").read_text().splitlines()) <= 120


def test_what_is_public_says_what_it_does() -> None:
    found = [f"{path.relative_to(ROOT)}: {name}" for path in LIBRARY for name in undocumented(path)]
    # The methods of a source are explained once, by the protocol (app/data/source.py).
    source = {"read", "parse", "describe", "classes_without_image", "figures"}
    assert [line for line in found if line.rpartition(".")[2] not in source] == []


def test_only_storage_opens_a_store() -> None:
    opened = re.compile(r"url_to_fs|fsspec\.(open|filesystem|core)|S3FileSystem\(")
    strangers = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.relative_to(ROOT).parts[0] not in ("tests", "demo") and opened.search(path.read_text())
    ]
    assert strangers == ["app/storage.py"]


def test_only_the_device_file_calls_an_accelerator() -> None:
    calls = re.compile(r"\btorch\.(cuda|npu)\.\w|\.(cuda|npu)\(")
    app = [path for path in FILES if path.relative_to(ROOT).parts[0] == "app"]
    assert [path.name for path in app if calls.search(path.read_text())] == ["device.py"]


def test_every_dependency_is_imported_by_the_app() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[<>=!\[ ]", line)[0] for line in wanted}
    modules = {name: {"pillow": "PIL", "prometheus-client": "prometheus_client"}.get(name, name) for name in names}
    modules["s3fs"] = "fsspec"  # which loads it for s3://
    text = "\n".join(path.read_text() for path in FILES if path.relative_to(ROOT).parts[0] == "app")
    unused = [
        name
        for name, module in modules.items()
        if not re.search(rf"^\s*(from|import) (torch.utils.)?{module}\b", text, re.M)
    ]
    assert unused == []


def test_the_papers_are_there() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert metadata["license"] == "Apache-2.0"
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", ".editorconfig", ".pre-commit-config.yaml"):
        assert (ROOT / name).stat().st_size > 100, name
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for subject in (
        "backbone",
        "margin",
        "source of data",
        "hardware profile",
        "quirk of a store",
        "scheduler",
        "metric",
    ):
        assert f"### A {subject}" in page, subject
    assert "## How a release is made" in page


def test_one_version() -> None:
    places = {
        "CITATION.cff": r"^version: (.*)$",
        "k8s/chart/Chart.yaml": r"^appVersion: \"?([^\"\n]*)\"?$",
    }
    for name, pattern in places.items():
        (version,) = re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert version == app.__version__, name


def test_every_link_of_the_papers_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
