"""Installs peers, each into a virtual environment of its own, and writes the random-weight models that they read.

    python -m benchmarks.peers.setup llama_cpp|openvino|vllm|transformers|all
        [--shape NAME,...] [--weights int4,...] [--envs DIR] [--servers]

Run it again after a failure, or for another shape: what is there already is kept. On Linux the default PyTorch brings
CUDA along: where its CPU build is enough, tell pip where to find that one (PIP_INDEX_URL and the like are passed on).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from benchmarks.peers.roster import (
    DEFAULT_ENVS,
    PEERS,
    Peer,
    groups,
    has_amx,
    llama_server_of,
    models_of,
    python_of,
    show_tiles,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LLAMA_SERVER = (
    "CMAKE_BUILD_TYPE=Release",
    "BUILD_SHARED_LIBS=OFF",
    "GGML_NATIVE=ON",
    "LLAMA_BUILD_SERVER=ON",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_OPENSSL=OFF",
    f"CMAKE_CXX_FLAGS=-include {HERE / 'tile_config.h'}",
)
"""As llama-cpp-python builds its library, with everything in one file and no page to download."""


def install(peer: Peer, name: str, envs: Path, python: str) -> None:
    """Makes the environment anew, unless a stamp says that exactly this was installed before."""
    stamp = envs / name / "installed.txt"
    wanted = "\n".join(
        [
            peer.torch or "",
            *peer.requirements,
            *(f"without {package}" for package in peer.unwanted),
            str(dict(peer.build)),
        ]
    )
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"{name}: installing {' '.join(peer.requirements)}")
    _run(python, "-m", "venv", "--clear", str(envs / name))
    interpreter = str(python_of(envs, name))
    # What pip built for the other llama.cpp must not be taken from its cache.
    flags = (
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
        *(("--no-cache-dir",) if peer.build else ()),
    )
    pip = (interpreter, "-m", "pip", "install", *flags)
    build = {key: value.format(here=HERE) for key, value in peer.build.items()}
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
        constraints.write(peer.torch or "")
        constraints.flush()
        if peer.torch:
            _run(*pip, peer.torch)
        _run(*pip, "--constraint", constraints.name, *peer.requirements, **build)
    if peer.unwanted:
        _run(interpreter, "-m", "pip", "uninstall", "--yes", *peer.unwanted)
    stamp.write_text(wanted)


def export(peer: Peer, name: str, envs: Path, shape: str, weights: list[str]) -> None:
    """Writes the shape's models for the peer; the Hugging Face folder first, with this Python."""
    folder = models_of(envs, shape)
    say(f"{name}: models of {shape}")
    _run(
        sys.executable,
        "-m",
        "benchmarks.peers.model",
        "--shape",
        shape,
        "--target",
        str(folder / "source"),
    )
    kinds = models_read(name, weights)
    if peer.export and kinds:
        module = f"benchmarks.peers.exports.{peer.export}"
        paths = ("--source", str(folder / "source"), "--target", str(folder / peer.export))
        _run(str(python_of(envs, name)), "-m", module, *paths, "--only", ",".join(kinds), HF_HUB_OFFLINE="1")


def models_read(name: str, weights: list[str]) -> list[str]:
    """Which of its models a peer's variants read, in these groups."""
    read = (variant.model for group in weights for variant in groups()[group] if variant.peer == name)
    return list(dict.fromkeys(Path(model).stem for model in read))


def build_llama_server(envs: Path) -> None:
    """llama.cpp's server, from the sources that llama-cpp-python brings along but does not build. About ten minutes."""
    target = llama_server_of(envs)
    if target.exists():
        return
    requirement = next(
        part for part in PEERS["llama_cpp"].requirements if part.startswith("llama-cpp-python")
    )
    say(f"llama_cpp: building {target.name} of {requirement}")
    with tempfile.TemporaryDirectory(dir=envs) as folder:
        place = Path(folder)
        pip = (str(python_of(envs, "llama_cpp")), "-m", "pip", "download", "--disable-pip-version-check")
        _run(*pip, "--no-deps", "--no-binary", ":all:", "--dest", folder, requirement)
        with tarfile.open(next(place.glob("*.tar.gz"))) as archive:
            archive.extractall(place, filter="data")
        sources, build = next(place.glob("*/vendor/llama.cpp")), str(place / "build")
        _run("cmake", "-S", str(sources), "-B", build, *(f"-D{option}" for option in LLAMA_SERVER))
        _run("cmake", "--build", build, "--target", target.name, "--parallel")
        shutil.copy(place / "build" / "bin" / target.name, target)


def build_show_tiles(envs: Path) -> None:
    """The library that makes AMX usable on virtual machines that hide its shape. Without a compiler there is none."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if has_amx() and compiler:
        envs.mkdir(parents=True, exist_ok=True)
        flags = ("-O2", "-shared", "-fPIC", str(HERE / "show_tiles.c"), "-o", str(show_tiles(envs)), "-ldl")
        _run(compiler, *flags)


def _run(*command: str, **environment: str) -> None:
    """Output goes to stderr: this command has no result on stdout."""
    subprocess.run(
        command, check=True, cwd=ROOT, stdout=sys.stderr.fileno(), env={**os.environ, **environment}
    )


def say(line: str) -> None:
    print(f"peers: {line}", file=sys.stderr, flush=True)


def set_up(
    name: str, envs: Path, shapes: list[str], weights: list[str], python: str, servers: bool
) -> str | None:
    """One peer. The reason if it failed: the others are set up all the same."""
    peer = PEERS[name]
    try:
        install(peer, name, envs, python)
        if servers and name == "llama_cpp":
            build_llama_server(envs)
        for shape in shapes:
            export(peer, name, envs, shape, weights)
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd[:5])} ...` failed with {error.returncode}"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peers", nargs="+", choices=[*PEERS, "all"], metavar="PEER", help=", ".join(PEERS))
    parser.add_argument(
        "--shape", default="llama-3.2-1b", help="one or several, as headrace bench knows them"
    )
    parser.add_argument("--weights", default=",".join(groups()), help="groups whose models are written")
    parser.add_argument("--envs", type=Path, default=DEFAULT_ENVS)
    parser.add_argument(
        "--servers", action="store_true", help="build what `python -m benchmarks.peers.serve` needs"
    )
    parser.add_argument("--python", default=sys.executable, help="interpreter for the environments")
    given = parser.parse_args()
    for group in given.weights.split(","):
        if group not in groups():
            parser.error(f"--weights: {group!r} is none of {', '.join(groups())}")
    envs = given.envs.expanduser().absolute()
    usable = [name for name, peer in PEERS.items() if has_amx() or not peer.only_with_amx]
    build_show_tiles(envs)
    failed = 0
    for name in usable if "all" in given.peers else given.peers:
        reason = set_up(
            name, envs, given.shape.split(","), given.weights.split(","), given.python, given.servers
        )
        failed += reason is not None
        say(f"{name}: {reason or 'ready'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
