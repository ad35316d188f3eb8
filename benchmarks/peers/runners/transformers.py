"""Times Hugging Face Transformers on PyTorch: the model's forward with a dynamic cache, greedy, without `generate`."""

from __future__ import annotations

import time

import torch
import transformers

from benchmarks.peers.runners import Prompts, Task, Timing, measure


class Engine:
    """The model; a new cache for every batch."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(task.threads)
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(task.model, dtype=torch.bfloat16, attn_implementation="sdpa").eval()

    @torch.inference_mode()
    def run(self, prompts: Prompts, gen_len: int) -> Timing:
        """All prompts in one forward, then all sequences one token at a time."""
        begin = time.perf_counter()
        out = self.model(torch.tensor(prompts), use_cache=True, logits_to_keep=1)
        ids = out.logits[:, -1].argmax(-1, keepdim=True)
        prefilled = time.perf_counter()
        for _ in range(gen_len - 1):
            out = self.model(ids, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            ids = out.logits[:, -1].argmax(-1, keepdim=True)
        end = time.perf_counter()
        return Timing(prefilled - begin, end - prefilled, (gen_len - 1) * len(prompts))


def main() -> None:
    task = Task.parse()
    engine = Engine(task)
    notes = [f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"]
    measure(task, engine.run, transformers.__version__, notes)


if __name__ == "__main__":
    main()
