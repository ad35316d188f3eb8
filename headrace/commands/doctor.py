"""`headrace doctor`: what this machine has, what the engine makes of it, and what costs speed."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from headrace.commands.flags import AsJson
from headrace.commands.output import write, write_json

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
STAT = Path("/proc/stat")
LOW_MEMORY = 2 << 30
BUSY = 0.25
"""Cores that other processes may keep busy before it is worth a line."""
STOLEN = 0.02
"""Share of the processors' time that a hypervisor may take before it is worth a line."""
_WATCH_S = 0.1


def doctor(as_json: AsJson = False) -> None:
    """Say what this machine has, what the engine uses of it, and what costs speed."""
    facts = examine()
    if as_json:
        write_json(facts)
        return
    memory, kernels = facts["memory"], facts["kernels"]
    rows = {
        "python": facts["python"],
        "torch": facts["torch"],
        "processor": f"{facts['processor']}, {facts['cores']} cores for this process",
        "threads": f"{facts['threads']} native, {facts['torch_threads']} of PyTorch's",
        "gpu": facts.get("gpu", "none that PyTorch sees"),
        "kernels": f"{kernels['isa']} of {', '.join(kernels['available'])}: {facts['isa_reason']}",
        **{f"  {name}": level for name, level in kernels["operations"].items()},
        "huge pages": facts["huge_pages"],
        "memory": f"{_gib(memory['available'])} free of {_gib(memory['total'])}" if memory else "unknown",
        "read speed": f"{facts['read_gb_s']:.1f} GB/s",
        "arithmetic": _arithmetic(facts),
    }
    width = max(map(len, rows))
    write("".join(f"{name:{width}}  {value}\n" for name, value in rows.items()))
    write("".join(f"! {line}\n" for line in facts["advice"]) or "nothing found that costs speed\n")


def examine() -> dict[str, Any]:
    """Every fact, and `advice`: a line for each that costs speed or is missing."""
    import torch

    from headrace import kernels
    from headrace.limits import measure

    busy = _busy()  # before anything of ours runs
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": cores,
        "threads": kernels.threads(),
        "torch_threads": torch.get_num_threads(),
        "kernels": kernels.explain(),
        "isa_reason": _isa_reason(kernels.explain()),
        "huge_pages": _huge_pages(),
        "memory": _memory(),
        **busy,
        **measure().row(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    quota = _quota()
    if quota is not None:
        facts["cpu_quota"] = quota
    facts["advice"] = advise(facts)
    return facts


def advise(facts: dict[str, Any]) -> list[str]:
    """What is missing or costs speed, and what to do about it."""
    lines = _about_kernels(facts["kernels"])
    if facts["huge_pages"] == "never":
        lines.append(f"huge pages are off: `echo madvise > {THP}` (as root) reads memory 10 to 15 % faster")
    if "cpu_quota" in facts and facts["cpu_quota"] < facts["cores"]:
        lines.append(
            f"the container may use {facts['cpu_quota']:g} of {facts['cores']} cores: set --threads to it"
        )
    if facts["cores"] < facts.get("machine_cores", 0):
        lines.append(
            f"this process may use {facts['cores']} of {facts['machine_cores']} cores: check taskset or the container"
        )
    if facts["threads"] < facts["cores"]:
        lines.append(
            f"the native pool has {facts['threads']} threads for {facts['cores']} cores: raise --threads"
        )
    if facts.get("busy_cores", 0) > BUSY:
        lines.append(
            f"other processes keep {facts['busy_cores']:.1f} of {facts['machine_cores']} cores busy: "
            "threads that wait for each other suffer most, and speeds measured now are too low"
        )
    if facts.get("steal", 0) > STOLEN:
        lines.append(f"the hypervisor gives {facts['steal']:.0%} of this virtual machine's time to others")
    if facts["memory"] and facts["memory"]["available"] < LOW_MEMORY:
        lines.append(f"only {_gib(facts['memory']['available'])} of memory are free")
    return lines


def _about_kernels(kernels: dict[str, Any]) -> list[str]:
    slow = [name for name, level in kernels["operations"].items() if level == "reference"]
    if kernels["available"] == ["reference"]:
        return [f"no native kernels: {kernels['native']}; reinstall headrace where a C++ compiler is"]
    lines = []
    if kernels["asked"]:
        asked = " ".join(f"{name}={value}" for name, value in kernels["asked"].items())
        lines.append(f"{asked} is set: unset it to get the fastest kernels")
    elif slow:
        lines.append(f"no native kernel for {', '.join(slow)}: these run in PyTorch")
    if "avx2" in kernels["available"] and "avx512" not in kernels["available"]:
        lines.append(
            "the level avx512 does not run here (no AVX-512, VNNI and BF16 together): "
            "a dot product of bytes takes three instructions instead of one"
        )
    return lines


def _isa_reason(kernels: dict[str, Any]) -> str:
    """Why this level is in use."""
    if kernels["asked"]:
        return " ".join(f"{name}={value}" for name, value in kernels["asked"].items())
    if kernels["available"] == ["reference"]:
        return "there is no native module"
    return "the highest that this processor and this build have"


def _arithmetic(facts: dict[str, Any]) -> str:
    """The peaks, in one line."""
    peaks = {name: facts[f"{name}_gop_s"] for name in ("int8", "bf16", "float32") if f"{name}_gop_s" in facts}
    return ", ".join(f"{name} {peak:.0f} GOP/s" for name, peak in peaks.items())


def _busy() -> dict[str, Any]:
    """What others do with the machine's processors for a tenth of a second, while this process sleeps.

    busy_cores: cores in use; steal: share of their time that a hypervisor gave away; machine_cores. Empty where the
    system does not say.
    """
    before = _ticks()
    time.sleep(_WATCH_S)
    spent = [new - old for old, new in zip(before, _ticks(), strict=False)]
    total = sum(spent)
    if len(spent) < 8 or total <= 0:
        return {}
    idle, steal, cores = spent[3] + spent[4], spent[7], os.cpu_count() or 1
    return {
        "busy_cores": max(0, total - idle - steal) / total * cores,
        "steal": max(0, steal) / total,
        "machine_cores": cores,
    }


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal: of all processors, since the machine started."""
    try:
        first = STAT.read_text().partition("\n")[0].split()
    except OSError:
        return []
    return [int(word) for word in first[1:9]]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )


def _huge_pages() -> str:
    """always, madvise or never; "unknown" where the system does not say."""
    try:
        text = THP.read_text()
    except OSError:
        return "unknown"
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _memory() -> dict[str, int]:
    """Bytes in all and free; the smaller of the machine's and the container's. Empty where the system does not say."""
    try:
        pairs = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        machine = {words[0].rstrip(":"): int(words[1]) * 1024 for words in pairs}
    except OSError:
        return {}
    total, available = machine["MemTotal"], machine["MemAvailable"]
    limit, used = (_number(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    if limit is not None and used is not None:
        total, available = min(total, limit), min(available, max(limit - used, 0))
    return {"total": total, "available": available}


def _quota() -> float | None:
    """Cores that the container may use; None without a limit."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such limit, or "max"
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
