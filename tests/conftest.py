"""What every test may rely on."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

import headrace


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--native", metavar="FOLDER", help="test the native module that was built there (CONTRIBUTING.md)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """An editable install imports the checkout it was made from: testing another one with it would prove nothing."""
    here, imported = Path(__file__).resolve().parent.parent, Path(headrace.__file__).resolve().parent.parent
    if here != imported:
        raise SystemExit(
            f"the tests lie in {here}, but headrace is imported from {imported}: one environment each"
        )
    if folder := config.getoption("--native"):
        _load_native(Path(folder))


def pytest_report_header(config: pytest.Config) -> str | None:
    folder = config.getoption("--native")
    return f"native module: {sys.modules['headrace.kernels._native'].__file__}" if folder else None


def _load_native(folder: Path) -> None:
    """Before anything asks for it, so that headrace.kernels finds this one and not its own."""
    (path,) = folder.glob("_native*.so")
    spec = importlib.util.spec_from_file_location("headrace.kernels._native", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What tests measure of this machine stays theirs."""
    os.environ["HEADRACE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
