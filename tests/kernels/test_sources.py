"""Rules for native sources that the compiler does not enforce."""

import re
from pathlib import Path

import pytest

KERNELS = Path(__file__).parents[2] / "headrace" / "kernels"
EMULATED = Path(__file__).parent / "emulated"
PER_LEVEL = sorted([*KERNELS.glob("*/cpu.cpp"), *KERNELS.glob("*/*.h")]) + [
    KERNELS / "include" / "headrace" / name
    for name in (
        "simd.h",
        "simd_int.h",
        "simd_math.h",
        "dots.h",
        "lookup.h",
        "norm.h",
        "amx.h",
        "bf16.h",
        "pool.h",
        "parallel.h",
        "check.h",
    )
]
C_HEADERS = {"stddef.h", "stdint.h", "string.h", "math.h", "float.h", "limits.h", "immintrin.h"}


@pytest.mark.parametrize("path", PER_LEVEL, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_compiled_per_level_includes_no_cpp_library(path):
    """Its inline functions would be one symbol for the whole program, compiled with the flags of any level."""
    for header in re.findall(r'#include\s+[<"]([^>"]+)[>"]', path.read_text()):
        own = header.startswith("headrace/") or KERNELS / header in PER_LEVEL
        assert own or header in C_HEADERS, f"{path.name} includes {header}"
    assert "headrace/array.h" not in path.read_text()


@pytest.mark.parametrize("folder", sorted(path.parent for path in KERNELS.glob("*/reference.py")))
def test_native_sources_come_together(folder):
    native = {path.name for path in folder.glob("*.cpp")} | {path.name for path in folder.glob("*.h")}
    assert not native or {"cpu.cpp", "bind.cpp", "kernel.h"} <= native


def test_what_few_processors_have_is_emulated():
    """Otherwise `make emulate` and `make sanitize` do not compile, which CI would not notice: it runs neither."""
    used, emulated = (
        "".join(path.read_text() for path in paths) for paths in (PER_LEVEL, EMULATED.glob("*.h"))
    )
    instructions = set(re.findall(r"\b(?:_mm512_|_tile_|_mm_maskz?_|_mm256_maskz?_)\w+", used))
    compared = set(re.findall(r"_mm512_cmp_ps_mask\([^;]*?(_CMP_\w+)", used))
    assert len(instructions) > 40 and len(compared) > 2, "the patterns find nothing"
    missing = [name for name in instructions if f" {name}(" not in emulated]
    missing += [name for name in compared if f"case {name}:" not in emulated]
    assert not missing, f"add to tests/kernels/emulated: {', '.join(sorted(missing))}"
