"""Hugging Face folder -> OpenVINO folders, through optimum-intel's own command.

int4: symmetric, groups of 128, every layer but embedding and head, which optimum-intel keeps in 8 bits.
int8, fp16: every layer.

    python -m benchmarks.peers.exports.openvino --source DIR --target DIR [--only int4,int8]
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

FORMATS = {
    "int4": ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0"),
    "int8": ("--weight-format", "int8"),
    "fp16": ("--weight-format", "fp16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--only", default=",".join(FORMATS), help="formats, separated by commas")
    given = parser.parse_args()
    command = str(Path(sys.executable).with_name("optimum-cli"))
    for name in given.only.split(","):
        flags = FORMATS[name]
        path, partial = given.target / name, given.target / f"{name}.partial"
        if path.exists():
            continue
        shutil.rmtree(partial, ignore_errors=True)
        task = ("--task", "text-generation-with-past")
        subprocess.run(
            [command, "export", "openvino", "-m", str(given.source), *task, *flags, str(partial)], check=True
        )
        partial.rename(path)


if __name__ == "__main__":
    main()
