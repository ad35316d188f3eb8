"""`headrace run`: continue one prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.commands.flags import AsJson, Lora, Quiet, with_adapters
from headrace.commands.output import note, write, write_json
from headrace.commands.start import start
from headrace.config import EngineConfig
from headrace.errors import ConfigError

if TYPE_CHECKING:
    from headrace.text.reply import Output
    from headrace.types import Logprob

DEFAULT_PROMPT = "def read_lines(path):\n"
MAX_TOKENS = 256
"""What --max-tokens is when it is not given."""
MAX_STDIN_BYTES = 64 << 20


def run(
    config: EngineConfig,
    sampling: dict[str, Any],
    prompt: Annotated[
        str | None, typer.Argument(help="Text to continue; without it, standard input.")
    ] = None,
    lora: Lora = None,
    adapter: Annotated[str, typer.Option(help="Run with this adapter. Default: the model alone.")] = "",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Continue a prompt and stream the text."""
    if lora and not adapter:
        raise ConfigError("--lora says where adapters are, not which to use: add --adapter NAME")
    config = with_adapters(config, lora)
    text = read_prompt(prompt, quiet)
    sampling.setdefault("max_tokens", max(MAX_TOKENS, sampling.get("min_tokens", 0)))
    with start(config, quiet) as llm:
        params = llm.sampling(**sampling)
        if as_json:
            [output] = llm.generate(text, params, adapter=adapter)
            write_json(to_json(output, params.logprobs is not None, params.prompt_logprobs is not None))
        elif params.n > 1:
            [output] = llm.generate(text, params, adapter=adapter)
            for i, sample in enumerate(output.samples, 1):
                write(f"--- {i} of {params.n}, {sample.finish_reason} ---\n{sample.text}\n")
        else:
            for chunk in llm.stream(text, params, adapter=adapter):
                write(chunk.text)
            write("\n")


def read_prompt(argument: str | None, quiet: bool = False) -> str:
    """The argument, or standard input, or a default on a terminal. Raises ConfigError if it is not text."""
    if argument is not None:
        text = argument
    elif sys.stdin is None or sys.stdin.isatty():
        text = DEFAULT_PROMPT
        note(f"no prompt given, continuing {text!r}", quiet)
    else:
        data = sys.stdin.buffer.read(MAX_STDIN_BYTES + 1)
        if len(data) > MAX_STDIN_BYTES:
            raise ConfigError(f"standard input is longer than {MAX_STDIN_BYTES} bytes: give a shorter prompt")
        text = _decode(data)
    if not text:
        raise ConfigError("the prompt is empty: give at least one character")
    return text


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at offset {error.start}"
        raise ConfigError(
            f"standard input is not valid UTF-8 ({byte}): convert it, e.g. with iconv"
        ) from None


def to_json(output: Output, logprobs: bool, prompt_logprobs: bool) -> dict[str, Any]:
    """What `run --json` prints. Fields that were not measured or not asked for are absent."""
    first = output.samples[0]
    usage = output.usage
    row: dict[str, Any] = {
        "text": first.text,
        "token_ids": list(first.token_ids),
        "finish_reason": first.finish_reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }
        | ({"dropped_tokens": usage.dropped_tokens} if usage.dropped_tokens else {}),
        "ttft_s": output.ttft_s,
    }
    if output.decode_tok_s is not None:
        row["decode_tok_s"] = output.decode_tok_s
    if logprobs:
        row["logprobs"] = [_logprob(item) for item in first.logprobs]
    if prompt_logprobs:
        row["prompt_logprobs"] = [_logprob(item) for item in output.prompt_logprobs]
    if len(output.samples) > 1:
        row["samples"] = [
            {
                "text": sample.text,
                "token_ids": list(sample.token_ids),
                "finish_reason": sample.finish_reason,
                **({"logprobs": [_logprob(item) for item in sample.logprobs]} if logprobs else {}),
            }
            for sample in output.samples
        ]
    return row


def _logprob(item: Logprob) -> dict[str, Any]:
    return {"token": item.token, "logprob": item.logprob, "top": [list(pair) for pair in item.top]}
