"""Follows docs/add_a_technique.md literally, on a copy of the tree: one file, one index line, and it is everywhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
GUIDE = ROOT / "docs" / "add_a_technique.md"


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree with the guide's file and index line added."""
    tree = tmp_path_factory.mktemp("tree")
    skip = shutil.ignore_patterns("__pycache__", "*.safetensors")
    for folder in ("headrace", "tests", "docs"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=skip)
    for file in ("pyproject.toml", "README.md", "Makefile", ".pre-commit-config.yaml"):
        shutil.copy(ROOT / file, tree / file)
    shutil.copytree(ROOT / ".ci", tree / ".ci")
    guide = GUIDE.read_text()
    file_name = re.search(r"Save this as\s+`([^`]+)`", guide)
    slot_file = re.search(r"## 3\. Add the index line\s+In `([^`]+)`", guide)
    code, line = re.findall(r"```python\n(.*?)```", guide, re.S)
    assert file_name and slot_file
    (tree / file_name[1]).write_text(code)
    contract = tree / slot_file[1]
    text = contract.read_text()
    assert text.count("    index={\n") == 1
    contract.write_text(text.replace("    index={\n", "    index={\n" + line))
    return tree


def run(tree: Path, *arguments: str) -> str:
    # -S leaves out the hook of an editable install, which would import the original tree
    path = os.pathsep.join([str(tree), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_appears_in_techniques_and_in_the_docs(copy: Path) -> None:
    listed = json.loads(run(copy, "-m", "headrace", "techniques", "epsilon", "--json"))
    assert [(t["name"], t["slot"], t["exact"]) for t in listed] == [("epsilon", "processors", "bits")]
    assert [option["name"] for option in listed[0]["options"]] == ["epsilon"]
    assert "`epsilon`" in run(copy, "-m", "headrace", "techniques", "--markdown")


def test_its_contract_suite_and_the_house_rules_cover_it(copy: Path) -> None:
    (copy / "docs" / "techniques.md").write_text(run(copy, "-m", "headrace", "techniques", "--markdown"))
    suite = run(
        copy, "-m", "pytest", "-v", "-p", "no:cacheprovider", "tests/sample/processors", "-k", "epsilon"
    )
    assert re.search(r"test_contract.*epsilon.*PASSED", suite), suite
    run(copy, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_house_rules.py", "-k", "not readme")


def test_it_runs_inside_the_engine(copy: Path) -> None:
    code = (
        "from headrace.config import EngineConfig\n"
        "from headrace.engine import Engine\n"
        "from headrace.params import SamplingParams\n"
        "from headrace.types import Request\n"
        "from tests.whole.drive import collect\n"
        "from tests.whole import models\n"
        "def tokens(processors):\n"
        "    config = EngineConfig(stack={'processors': processors}, threads=1)\n"
        "    engine = Engine(config, decoder=models.decoder('full'))\n"
        "    for seed in range(8):\n"
        "        params = SamplingParams(seed=seed, max_tokens=8, temperature=1.5)\n"
        "        engine.add(Request(id=str(seed), prompt=(1, 2), params=params))\n"
        "    return collect(engine)\n"
        "assert tokens('temperature+epsilon:epsilon=0.2') != tokens('temperature')\n"
        "assert tokens('temperature+epsilon:epsilon=1e-12') == tokens('temperature')\n"
    )
    run(copy, "-c", code)
