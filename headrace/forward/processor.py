"""Some virtual machines announce matrix instructions (AMX) that then fault; PyTorch trusts the announcement."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch

_log = logging.getLogger(__name__)

_LIMIT = "ONEDNN_MAX_CPU_ISA"
_PROBE = "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(x, x)"


def guard_bfloat16(device: torch.device, dtype: torch.dtype) -> None:
    """Keeps PyTorch's bfloat16 products from killing the process where AMX is announced but does not work.

    Must run before the first such product. Tries one in a process of its own (about two seconds, only on processors
    that announce AMX); if that dies, tells oneDNN to leave AMX alone, and says so.
    """
    if device.type != "cpu" or dtype != torch.bfloat16 or _LIMIT in os.environ or not _announces_amx():
        return
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, check=False)
    if probe.returncode < 0:
        os.environ[_LIMIT] = "AVX512_CORE_BF16"
        _log.warning(
            "this machine announces AMX, but using it kills the process: bfloat16 runs on AVX-512 instead (%s=%s)",
            _LIMIT,
            os.environ[_LIMIT],
        )


def _announces_amx(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    try:
        return "amx_bf16" in cpuinfo.read_text()
    except OSError:
        return False
