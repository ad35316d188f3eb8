"""Which implementation runs, and what the user is told."""

import logging
import re
import subprocess
import sys

import pytest
import torch

from headrace import kernels
from headrace.errors import ConfigError
from headrace.kernels.rms_norm import reference, rms_norm

NATIVE = "headrace.kernels._native"
LEVELS = kernels.available()
needs_native = pytest.mark.skipif(len(LEVELS) == 1, reason="no native module")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Each test chooses anew, with an empty environment."""
    monkeypatch.delenv("HEADRACE_KERNELS", raising=False)
    monkeypatch.delenv("HEADRACE_ISA", raising=False)
    kernels.forget()
    yield
    monkeypatch.undo()
    kernels.forget()


@pytest.fixture
def no_native_module(monkeypatch):
    monkeypatch.setitem(sys.modules, NATIVE, None)


def _warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@needs_native
def test_the_highest_level_runs_and_says_nothing(caplog):
    assert kernels.isa() == LEVELS[-1]
    assert kernels.native("rms_norm") is not None
    assert _warnings(caplog) == []


def test_without_the_native_module_the_reference_runs_and_one_line_says_so(no_native_module, caplog):
    x, weight = torch.randn(3, 20), torch.randn(20)
    for _ in range(3):
        assert torch.equal(rms_norm(x, weight), reference.rms_norm(x, weight, 1e-6, 0.0))
    assert kernels.isa() == "reference" and kernels.available() == ("reference",)
    (line,) = _warnings(caplog)
    assert "native module" in line and "reference" in line and "\n" not in line


def test_the_environment_forces_the_reference(monkeypatch, caplog):
    monkeypatch.setenv("HEADRACE_KERNELS", "reference")
    assert kernels.isa() == "reference" and kernels.native("rms_norm") is None
    assert _warnings(caplog) == []  # the user asked for it


@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_lowers_the_level(monkeypatch, level):
    monkeypatch.setenv("HEADRACE_ISA", level)
    assert kernels.isa() == level
    assert kernels.explain()["operations"]["rms_norm"] == level


@pytest.mark.parametrize(
    ("name", "value"), [("HEADRACE_KERNELS", "fast"), ("HEADRACE_ISA", "avx1024"), ("HEADRACE_ISA", "AVX2")]
)
def test_an_unknown_value_is_one_line_that_names_the_choices(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=rf"^{name}={value}.*reference") as error:
        rms_norm(torch.ones(1, 4), torch.ones(4))
    assert "\n" not in str(error.value)


@needs_native
def test_a_level_the_processor_lacks_is_refused(monkeypatch):
    module, _ = kernels._load()
    monkeypatch.setattr(module, "supported", lambda: ("generic",))
    kernels.forget()
    assert kernels.isa() == "generic"
    kernels.forget()
    if "avx2" in module.levels:
        monkeypatch.setenv("HEADRACE_ISA", "avx2")
        with pytest.raises(ConfigError, match=re.escape("HEADRACE_ISA=avx2: this processor lacks")):
            kernels.isa()


def test_native_can_be_demanded(monkeypatch, no_native_module):
    monkeypatch.setenv("HEADRACE_KERNELS", "native")
    with pytest.raises(ConfigError, match="native module cannot be loaded"):
        kernels.isa()


def test_a_forced_level_ends_with_its_block():
    before = kernels.isa()
    with kernels.forced("reference"):
        assert kernels.isa() == "reference"
    assert kernels.isa() == before
    with pytest.raises(ConfigError), kernels.forced("avx1024"):
        pass
    assert kernels.isa() == before


@needs_native
def test_an_operation_that_a_level_lacks_runs_one_level_lower(monkeypatch):
    module, _ = kernels._load()
    monkeypatch.delattr(getattr(module, LEVELS[-1]), "rms_norm")
    kernels.forget()
    assert kernels.explain()["operations"]["rms_norm"] == LEVELS[-2]


def test_explain_covers_every_operation():
    found = kernels.explain()
    assert set(found["operations"]) == set(kernels.operations()) >= {"rms_norm"}
    assert found["isa"] in found["available"]


def test_importing_loads_nothing():
    code = f"import sys, headrace.kernels; sys.exit({NATIVE!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
