"""The house rules of CONTRIBUTING.md, each one a test that names the offender."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace import slots
from headrace.slots import SLOT_PACKAGES, Slot

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "headrace"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SLOTS = slots.slots().values()

# Rule 1. A module may import from its own rank and from those above it in this list.
RANKS = (
    ("params", "errors", "stats"),
    ("types",),
    ("slots", "architecture", "artefact", "unnamed", "box", "config"),
    ("compose", "kernels", "text"),
    ("layer", "weight", "kv"),
    ("models",),
    ("forward", "schedule", "sample"),
    ("speculate", "switch"),
    ("engine", "auxiliary", "limits", "meter"),
    ("llm",),
    ("box.evaluate", "box.drift", "box.task_file", "search", "server"),
    ("commands", "cli", "__main__", "__init__"),
)
LONG_FILES: dict[str, str] = {"types.py": "the nouns of the engine, with what each field means"}
"""Files above 400 lines, with the reason."""
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions above 60 lines, as file:function, with the reason."""


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def rank_of(module: str) -> int:
    """Rank of a dotted name below headrace."""
    if module.startswith("__version__"):
        return 0
    for name in (".".join(module.split(".")[:2]), module.split(".")[0] or "__init__"):
        for rank, names in enumerate(RANKS):
            if name in names:
                return rank
    raise AssertionError(f"headrace.{module} has no rank: place it in RANKS, and in docs/flow.md")


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names below headrace that a module imports, wherever in the file; type-only imports do not count."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name.removeprefix("headrace.") for name in names if name.startswith("headrace."))


def module_of(path: Path) -> str:
    return relative(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_1_imports_point_one_way(path: Path) -> None:
    own = module_of(path)
    for name in imports_of(path):
        assert rank_of(name) <= rank_of(own), f"headrace.{own} imports headrace.{name}, which lies above it"


def test_2_no_drawers() -> None:
    drawers = {"utils", "util", "helpers", "helper", "common", "misc"}
    found = [relative(p) for p in PACKAGE.rglob("*") if p.stem in drawers]
    assert not found, f"{found}: a function lives with its only user, or its folder is misnamed"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_3_short_files_and_functions(path: Path) -> None:
    text = path.read_text()
    if relative(path) not in LONG_FILES:
        assert text.count("\n") <= 400, "longer than 400 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{relative(path)}:{node.name}"
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60 or name in LONG_FUNCTIONS, f"{name} has {length} lines"


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.name)
def test_4_slots_are_complete(slot: Slot) -> None:
    folder = PACKAGE / slot.module.removeprefix("headrace.").replace(".", "/")
    contract = (folder / "__init__.py").read_text()
    assert contract.count("\n") - len(slot.index) <= 60, f"{slot.name}: the contract is longer than 60 lines"
    indexed = {target.partition(":")[0].rpartition(".")[2] for target in slot.index.values()}
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == indexed, f"{slot.name}: files and index differ: {files ^ indexed}"
    for name in slot.index:
        cls = slot.load(name)
        assert cls.card.slot == slot.name, f"{slot.name}={name}: its card says {cls.card.slot}"
        assert cls.card.paper, f"{slot.name}={name}: its card names no paper (write 'none: ...')"
        doc = importlib.import_module(cls.__module__).__doc__ or ""
        assert doc.strip().split("\n")[0].endswith("."), (
            f"{name}: the first docstring line must say the mechanism"
        )
        assert "\nPaper " in doc, f"{name}: the docstring has no Paper line"


def test_5_techniques_stand_alone() -> None:
    techniques = {target.partition(":")[0] for slot in SLOTS for target in slot.index.values()}
    for path in SOURCES:
        own = f"headrace.{module_of(path)}"
        for name in imports_of(path):
            for technique in techniques - {own}:
                assert not f"headrace.{name}.".startswith(f"{technique}."), (
                    f"{own} imports technique {technique}"
                )


def test_6_kernels_have_a_reference() -> None:
    for folder in (PACKAGE / "kernels").iterdir():
        if (folder / "__init__.py").exists():
            assert (folder / "reference.py").exists(), f"kernels/{folder.name} has no reference.py"


def test_7_generated_documents_are_current() -> None:
    from headrace.commands.techniques import to_markdown

    written = (ROOT / "docs" / "techniques.md").read_text()
    assert written == to_markdown(), (
        "docs/techniques.md is stale: headrace techniques --markdown > docs/techniques.md"
    )


def test_7_readme_figures_come_from_results() -> None:
    """Every row of a README table that holds a measured figure links the file of results that it comes from."""
    for line in (ROOT / "README.md").read_text().splitlines():
        if line.startswith("|") and re.search(r"\d+(\.\d+)?\s*(ms|s|x|tok/s|GB/s|%)", line):
            links = re.findall(r"\]\(((?:benchmarks/results|headrace/box)/[^)]+)\)", line)
            assert links, f"no source for the figures of: {line}"
            assert all((ROOT / link).exists() for link in links), f"a source is missing: {links}"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_8_errors_and_printing(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = getattr(node.exc.func, "id", "")
            assert name not in ("Exception", "RuntimeError", "AssertionError"), (
                f"line {node.lineno} raises {name}"
            )
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print":
            assert relative(path).startswith(("cli.py", "commands/")), f"print in line {node.lineno}"


def test_9_importing_has_no_side_effects() -> None:
    code = (
        "import sys, os; before = dict(os.environ); import headrace\n"
        "assert dict(os.environ) == before\n"
        "heavy = {'torch', 'numpy', 'transformers', 'tokenizers', 'jinja2', 'headrace.kernels'} & set(sys.modules)\n"
        "assert not heavy, f'import headrace loads {heavy}'\n"
        "import threading; assert threading.active_count() == 1\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_9_import_time_shows_no_compiler_and_no_device() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", "import headrace"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not [m for m in modules if re.match(r"(torch|triton|subprocess|distutils|setuptools)\b", m)]


def test_10_checkers_run_in_ci_and_before_commits() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for checker in ("ruff check", "ruff format", "mypy", "clang-format"):
        assert checker in hooks and checker in makefile, f"{checker} does not run everywhere"
    assert "make lint" in (ROOT / ".ci" / "run").read_text()


def test_every_slot_package_is_listed() -> None:
    found = {
        p.parent
        for p in SOURCES
        if p.name == "__init__.py" and re.search(r"^SLOT = Slot\(", p.read_text(), re.M)
    }
    assert {f"headrace.{relative(p).replace('/', '.')}" for p in found} == set(SLOT_PACKAGES)
