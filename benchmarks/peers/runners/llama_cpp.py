"""Times llama.cpp through the low-level functions of llama-cpp-python: one llama_decode per step for a whole batch.

Options: repack=yes|no, whether weights are rearranged when loaded (model parameter `use_extra_bufts`; on machines with
AMX it also decides whether AMX is used); fused attention and everything else as llama.cpp chooses.
"""

from __future__ import annotations

import ctypes
import re
import time
from typing import Any

import llama_cpp as lib
import numpy

from benchmarks.peers.runners import Prompts, Task, Timing, measure

_PAGE = 256  # llama.cpp rounds the context of a sequence up to this


class Engine:
    """A model, and a new context for every batch: a context is cut up among the sequences that it may hold."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.log: list[str] = []
        self._callback = lib.llama_log_callback(self._hear)
        lib.llama_log_set(self._callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        params = lib.llama_model_default_params()
        params.use_extra_bufts = task.options["repack"] == "yes"
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(task.model).encode(), params)
        if not self.model:
            raise SystemExit("llama.cpp cannot load the model: " + " ".join(self.log[-3:]))

    def _hear(self, level: int, text: bytes, user_data: Any) -> None:
        self.log.append(text.decode(errors="replace"))

    def run(self, prompts: Prompts, gen_len: int) -> Timing:
        """Every prompt on its own, then all sequences one token at a time."""
        context = self._context(len(prompts), len(prompts[0]) + gen_len)
        batch = lib.llama_batch_init(max(len(prompts), len(prompts[0])), 0, len(prompts))
        begin = time.perf_counter()
        last = []
        for row, prompt in enumerate(prompts):
            for place, token in enumerate(prompt):
                _put(batch, place, token, place, row, place == len(prompt) - 1)
            last += self._decode(context, batch, len(prompt), [len(prompt) - 1])
        prefilled = time.perf_counter()
        for step in range(gen_len - 1):
            for row, token in enumerate(last):
                _put(batch, row, token, len(prompts[0]) + step, row, True)
            last = self._decode(context, batch, len(last), range(len(last)))
        end = time.perf_counter()
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        return Timing(prefilled - begin, end - prefilled, (gen_len - 1) * len(prompts))

    def _context(self, sequences: int, length: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = sequences * (-(-length // _PAGE) * _PAGE)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.task.threads
        context = lib.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("llama.cpp makes no context: " + " ".join(self.log[-3:]))
        return context

    def _decode(self, context: Any, batch: Any, tokens: int, wanted: Any) -> list[int]:
        """One step; the likeliest token of each wanted row."""
        batch.n_tokens = tokens
        code = lib.llama_decode(context, batch)
        if code:
            raise SystemExit(f"llama_decode returns {code}: " + " ".join(self.log[-3:]))
        rows = [lib.llama_get_logits_ith(context, place) for place in wanted]
        return [int(numpy.ctypeslib.as_array(row, (self.task.vocab,)).argmax()) for row in rows]

    def notes(self) -> list[str]:
        """Where the weights lie, which says what kernels run, and what llama.cpp was built for."""
        text = "".join(self.log)
        buffers = re.findall(r"(\S+) model buffer size = +(\S+ \w+)", text)
        info = lib.llama_print_system_info().decode()
        built = " ".join(name for name, on in re.findall(r"(\w+) = (\d)", info) if on == "1")
        return ["weights in " + ", ".join(f"{name} {size}" for name, size in buffers), f"built for {built}"]


def _put(batch: Any, place: int, token: int, position: int, sequence: int, wanted: bool) -> None:
    batch.token[place] = token
    batch.pos[place] = position
    batch.n_seq_id[place] = 1
    batch.seq_id[place][0] = sequence
    batch.logits[place] = wanted


def main() -> None:
    task = Task.parse()
    engine = Engine(task)
    measure(task, engine.run, lib.__version__, engine.notes())


if __name__ == "__main__":
    main()
