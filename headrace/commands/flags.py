"""Flags that verbs share, and the values that they become.

A verb is a plain function. Parameters named after a group below (`config`, `sampling`) stand for many flags: with_flags
replaces them on the command line and hands the verb the finished value.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from headrace.compose import user_slots
from headrace.config import DTYPES, EngineConfig, parse_size
from headrace.errors import ConfigError, nearest

AsJson = Annotated[
    bool, typer.Option("--json", help="Machine-readable on stdout, everything else on stderr.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Do not say on stderr what runs.")]
Lora = Annotated[
    list[str] | None, typer.Option(help="NAME=DIR: a LoRA folder to know by this name; may be repeated.")
]
LoraRoot = Annotated[
    Path | None, typer.Option(help="Folder of LoRA folders that clients may load and unload. Default: none.")
]
AdapterBytes = Annotated[
    str | None, typer.Option(help="Memory that loaded adapters may take, such as 512MiB. Default: 1GiB.")
]


@dataclass(frozen=True)
class Flag:
    """One option of the command line; not given, it is None (or empty)."""

    field: str
    kind: Any
    help: str
    spelling: str = ""
    """Where it is not --field-name."""
    short: str = ""
    panel: str = "Engine"

    @property
    def option(self) -> str:
        """As it is written: --max-seqs."""
        return self.spelling or "--" + self.field.replace("_", "-")

    def parameter(self) -> inspect.Parameter:
        """The same as typer wants it: a keyword of a function."""
        names = [self.option, *([self.short] if self.short else [])]
        option = typer.Option(*names, help=self.help, rich_help_panel=self.panel, show_default=False)
        kind = self.kind if self.kind is bool else self.kind | None
        default = False if self.kind is bool else None
        keyword = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.field, keyword, default=default, annotation=Annotated[kind, option])


ENGINE = (
    Flag(
        "model",
        str,
        "A model in the box (tiny, tiny-draft) or a Hugging Face folder. Default: tiny.",
        short="-m",
    ),
    Flag("file", Path, "TOML file with these settings; flags win over it.", spelling="--config"),
    Flag("device", str, "cpu or cuda. Default: cpu."),
    Flag("dtype", str, f"Of weights and arithmetic: {', '.join(DTYPES)}. Default: auto."),
    Flag("threads", int, "CPU threads. Default: every core."),
    Flag("context", int, "Longest prompt plus output, in tokens. Default: the model's own."),
    Flag(
        "kv_bytes",
        str,
        "Size of the KV pool, such as 512MiB. Default: 8 contexts, at most 1/4 of free memory.",
    ),
    Flag("page_tokens", int, "Tokens per page of the KV pool. Default: 16."),
    Flag(
        "preempt",
        str,
        "How a sequence gives way when the pool is full: recompute or swap. Default: recompute.",
    ),
    Flag("swap_bytes", str, "Host memory for paused sequences, such as 1GiB, with --preempt swap."),
    Flag("no_prefix_cache", bool, "Do not reuse the keys and values of earlier prompts."),
    Flag("max_seqs", int, "Most sequences that run at once. Default: 64."),
    Flag("max_waiting", int, "Most sequences that wait; one more is refused. Default: 4096."),
)
"""Fields of EngineConfig; and one flag per slot, see stack_flags."""


def _sampling(field: str, kind: Any, help: str, spelling: str = "") -> Flag:
    return Flag(field, kind, help, spelling, panel="Sampling")


SAMPLING = (
    _sampling("max_tokens", int, "Most tokens to generate. Default: 256; in chat, up to the context."),
    _sampling("temperature", float, "0 is greedy. Default: the model's own."),
    _sampling("top_k", int, "Keep the k most likely tokens; 0 keeps all."),
    _sampling("top_p", float, "Keep the smallest set of tokens with this probability."),
    _sampling("min_p", float, "Drop tokens less likely than this share of the likeliest."),
    _sampling("repetition_penalty", float, "Above 1 discourages tokens of the prompt and the output."),
    _sampling("presence_penalty", float, "Subtracted once from tokens already in the output."),
    _sampling("frequency_penalty", float, "Subtracted per occurrence in the output."),
    _sampling("logit_bias", list[str], "TOKEN=BIAS, added to a token's logit; may be repeated."),
    _sampling("seed", int, "Makes sampling repeatable."),
    _sampling("n", int, "Independent samples of the prompt. Default: 1.", "--n"),
    _sampling("min_tokens", int, "No end before this many tokens."),
    _sampling("stop", list[str], "A string that ends the output; may be repeated."),
    _sampling(
        "stop_token_ids", list[int], "A token id that ends the output; may be repeated.", "--stop-token"
    ),
    _sampling("ignore_eos", bool, "Go on after the model's own end tokens."),
    _sampling("logprobs", int, "Report log-probabilities: the chosen token's and those of this many others."),
    _sampling("prompt_logprobs", int, "The same for the tokens of the prompt."),
)
"""Fields of SamplingParams."""


def stack_flags() -> tuple[Flag, ...]:
    """One flag per slot that the user chooses from."""
    return tuple(
        Flag(
            name.replace("-", "_"),
            str,
            f"{slot.asks[:1].upper()}{slot.asks[1:]}: {', '.join(slot.index)}."
            + (f" Default: {slot.default}." if slot.default and not slot.many else ""),
            panel="Stack: NAME or NAME:option=value,... (see `headrace techniques`)",
        )
        for name, slot in user_slots().items()
    )


def with_flags(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as typer wants it: its groups spelled out as flags, in the order of its own parameters."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, tuple[Flag, ...]] = {}
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        if parameter.name in _MAKERS:
            groups[parameter.name] = _MAKERS[parameter.name][0]()
        else:
            parameters.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))
    for flags in groups.values():
        parameters += [flag.parameter() for flag in flags]

    @functools.wraps(verb)
    def command(**values: Any) -> None:
        made = {
            name: _MAKERS[name][1]({flag.field: values.pop(flag.field) for flag in flags})
            for name, flags in groups.items()
        }
        verb(**values, **made)

    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def make_config(values: Mapping[str, Any]) -> EngineConfig:
    """EngineConfig from the flags of ENGINE and of the stack. Raises ConfigError."""
    given = _given(values)
    names = {name.replace("-", "_"): name for name in user_slots()}
    stack = {names[field]: given.pop(field) for field in list(given) if field in names}
    for field in ("kv_bytes", "swap_bytes"):
        if field in given:
            given[field] = parse_size("--" + field.replace("_", "-"), given[field])
    if given.pop("no_prefix_cache", False):
        given["prefix_cache"] = False
    file = given.pop("file", None)
    if file is not None:
        return EngineConfig.from_toml(file, stack=stack, **given)
    return EngineConfig.from_mapping({**given, "stack": stack}, where="command line")


def parse_flags(text: str, where: str) -> dict[str, Any]:
    """The engine's flags in a text such as "--weights int4 --context 4096": field -> value. Raises ConfigError."""
    values: dict[str, Any] = {}
    words = shlex.split(text)
    known = {name: flag for flag in (*ENGINE, *stack_flags()) for name in (flag.option, flag.short) if name}
    while words:
        name, equals, value = words.pop(0).partition("=")
        flag = known.get(name)
        if flag is None:
            raise ConfigError(f"{where}: no flag {name!r}; {nearest(name, known)}")
        if flag.kind is bool:
            values[flag.field] = True
        elif equals or words:
            values[flag.field] = _value(where, flag, value if equals else words.pop(0))
        else:
            raise ConfigError(f"{where}: {name} needs a value")
    return values


def merged(config: EngineConfig, values: Mapping[str, Any]) -> EngineConfig:
    """The config with some of the flags given anew. Raises ConfigError."""
    return make_config({**parse_flags(shlex.join(to_flags(config)), "flags"), **values})


def to_flags(config: EngineConfig) -> tuple[str, ...]:
    """Flags that make this config again: make_config's way back. Adapters are no flags of every verb, and left out."""
    default, words = EngineConfig(), []
    for flag in ENGINE:
        value = getattr(config, flag.field, None)
        if flag.field == "no_prefix_cache":
            words += [] if config.prefix_cache else [flag.option]
        elif hasattr(config, flag.field) and value != getattr(default, flag.field):
            words += [flag.option, str(value)]
    for name, spec in config.stack.items():
        words += [f"--{name}", spec]
    return tuple(words)


def make_sampling(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields for SamplingParams: only those that were given. Raises ConfigError, also for values out of range."""
    from headrace.params import SamplingParams

    given = _given(values)
    if "logit_bias" in given:
        given["logit_bias"] = dict(_bias(text) for text in given["logit_bias"])
    try:
        SamplingParams(**given)  # a bad value is refused before a model is loaded
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return given


def with_adapters(config: EngineConfig, loras: list[str] | None, size: str | None = None) -> EngineConfig:
    """The config with adapters from NAME=DIR texts beside its own, and their memory. Raises ConfigError."""
    named = dict(config.adapters)
    for text in loras or []:
        name, equals, folder = text.partition("=")
        if not equals or not name or not folder:
            raise ConfigError(f"--lora={text!r} is not NAME=DIR, such as sql=adapters/sql")
        if name in named:
            raise ConfigError(f"--lora={text!r}: there is an adapter called {name!r} already")
        named[name] = folder
    room = config.adapter_bytes if size is None else parse_size("--adapter-bytes", size)
    return dataclasses.replace(config, adapters=named, adapter_bytes=room)


def parse_counts(flag: str, text: str) -> list[int]:
    """The numbers of a list such as "1,4,16", each 1 or more. Raises ConfigError."""
    try:
        values = [int(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or min(values) < 1:
        raise ConfigError(f"--{flag}={text!r} is not a list of whole numbers of 1 or more, such as 1,4,16")
    return values


def _value(where: str, flag: Flag, text: str) -> Any:
    try:
        return flag.kind(text)
    except ValueError:
        raise ConfigError(f"{where}: {flag.option}={text!r} must be a whole number") from None


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags that were given: typer says None, False or [] for the others, and 0 is a value."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and value is not False and value != []
    }


def _bias(text: str) -> tuple[int, float]:
    token, _, bias = text.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise ConfigError(f"--logit-bias={text!r} is not TOKEN=BIAS, such as 13=-100") from None


_MAKERS: dict[str, tuple[Callable[[], tuple[Flag, ...]], Callable[[Mapping[str, Any]], Any]]] = {
    "config": (lambda: (*ENGINE, *stack_flags()), make_config),
    "sampling": (lambda: SAMPLING, make_sampling),
}
