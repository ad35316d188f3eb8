"""Times vLLM's CPU build, one engine step at a time, in this process.

The token budget of a step holds every prompt of the largest batch, so that all of them are prefilled in one step and
then decode together.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("VLLM_CACHE_ROOT", str(Path(sys.prefix) / "cache"))  # what it compiles, for later turns
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # steps are driven from here
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

from benchmarks.peers.runners import Prompts, Task, Timing, measure, time_steps


class Engine:
    """One engine for all batch sizes."""

    def __init__(self, task: Task) -> None:
        import vllm

        self.ids = itertools.count()
        self.engine = vllm.LLM(
            model=str(task.model),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=task.context,
            max_num_seqs=max(task.batches),
            max_num_batched_tokens=task.most_tokens,
            disable_log_stats=True,
        ).llm_engine

    def run(self, prompts: Prompts, gen_len: int) -> Timing:
        """One batch."""
        from vllm import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=gen_len, ignore_eos=True, detokenize=False)
        rows: dict[str, int] = {}
        counts = [0] * len(prompts)
        begin = time.perf_counter()
        for row, prompt in enumerate(prompts):
            name = str(next(self.ids))
            rows[name] = row
            self.engine.add_request(name, {"prompt_token_ids": list(prompt)}, params)

        def step() -> list[int]:
            for output in self.engine.step():
                counts[rows[output.request_id]] = len(output.outputs[0].token_ids)
            return counts

        return time_steps(step, begin, gen_len)


def cache_space(task: Task) -> int:
    """GiB for the keys and values of the largest batch. It fills all that it may have: more would raise its peak."""
    config = json.loads((task.model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head
    return math.ceil(1.2 * per_token * task.most_tokens / (1 << 30))


def preload() -> None:
    """Starts this process again with Intel's OpenMP, which vLLM brings along and asks for."""
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    if library.exists() and str(library) not in os.environ.get("LD_PRELOAD", ""):
        os.environ["LD_PRELOAD"] = ":".join(filter(None, (str(library), os.environ.get("LD_PRELOAD"))))
        os.execv(sys.executable, sys.orig_argv)


def main() -> None:
    task = Task.parse()
    preload()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(cache_space(task)))
    cores = sorted(os.sched_getaffinity(0))[: task.threads]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    engine = Engine(task)
    import vllm

    measure(task, engine.run, vllm.__version__, [])


if __name__ == "__main__":
    main()
