"""Times OpenVINO GenAI through ContinuousBatchingPipeline, one scheduler step at a time.

Prompts are run whole and before anything decodes (dynamic_split_fuse off), one per step: the shape in which it prefills
best, and the whole batch then decodes together. Keys and values as OpenVINO chooses, which on a CPU is 8-bit.
"""

from __future__ import annotations

import itertools
import time

import numpy
import openvino
import openvino_genai as genai

from benchmarks.peers.runners import WARM_PROMPT, Prompts, Task, Timing, measure, time_steps

_BLOCK = 32  # tokens per block of keys and values on a CPU


class Engine:
    """One pipeline for all batch sizes."""

    def __init__(self, task: Task) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = task.most_tokens // _BLOCK + 2 * max(task.batches)
        scheduler.dynamic_split_fuse = False
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = max(task.batches)
        scheduler.max_num_batched_tokens = max(task.prompt_len, WARM_PROMPT, max(task.batches))
        properties = {"INFERENCE_NUM_THREADS": task.threads}
        self.pipeline = genai.ContinuousBatchingPipeline(str(task.model), scheduler, "CPU", properties)
        self.ids = itertools.count()

    def run(self, prompts: Prompts, gen_len: int) -> Timing:
        """One batch."""
        config = genai.GenerationConfig(max_new_tokens=gen_len, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
        counts = [0] * len(prompts)
        begin = time.perf_counter()
        handles = [self.pipeline.add_request(next(self.ids), ids, config) for ids in inputs]

        def step() -> list[int]:
            self.pipeline.step()
            for row, handle in enumerate(handles):
                while handle.can_read():
                    counts[row] += sum(len(output.generated_ids) for output in handle.read().values())
            return counts

        return time_steps(step, begin, gen_len)


def main() -> None:
    task = Task.parse()
    engine = Engine(task)
    core = openvino.Core()
    able = " ".join(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    measure(task, engine.run, genai.__version__, [f"device capabilities: {able}"])


if __name__ == "__main__":
    main()
