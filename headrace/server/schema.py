"""What clients may ask: the bodies of requests, as OpenAI and vLLM name their fields, and their limits.

A body is parsed once, strictly: a value of a wrong type is refused, never bent. null is "not given". A field that is
not known is ignored and named in the header X-Ignored-Params, or refused under `--strict-params`; one that other
servers know, and that would change the answer, is refused always.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

import msgspec

from headrace.errors import nearest
from headrace.params import MAX_LOGPROBS, MAX_STOP_CHARS, MAX_STOPS
from headrace.server.errors import bad
from headrace.server.grammars import ResponseFormat, StructuredOutputs
from headrace.server.tools import Choice, Tool

MAX_BODY_BYTES = 4 << 20
MAX_HEADER_BYTES = 32 << 10
MAX_PROMPTS = 64
"""Prompts of one request; and their number times n."""
MAX_TOP_LOGPROBS = 20
MAX_N = 8
MAX_ID_CHARS = 128
MAX_SALT_CHARS = 1024
DEFAULT_MAX_TOKENS = 16
"""Of /v1/completions, as OpenAI has it; a chat's answer may fill the context."""
ACCEPTED = frozenset(
    {"user", "metadata", "store", "service_tier", "session_id", "safety_identifier", "prompt_cache_key"}
    | {"spaces_between_special_tokens", "cache_prompt"}
)
"""Fields that clients send and that change nothing here: named in X-Ignored-Params, and never an error."""
RENAMED = {
    "max_completion_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "n_cmpl": "n",
    "n_probs": "logprobs",
    "repeat_penalty": "repetition_penalty",
    "rid": "request_id",
    "regex": "guided_regex",
    "ebnf": "guided_grammar",
    "grammar": "guided_grammar",
    "json_schema": "guided_json",
}
"""What others, or another endpoint, call a field that means nearly the same here: refused unless ours is given too."""
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "suffix": (("",), "this model continues a prompt, it does not fill a gap"),
    "use_beam_search": ((False,), "samples are drawn: best_of keeps the likeliest of several"),
    "length_penalty": ((1,), "it belongs to beam search, which there is none of"),
    "early_stopping": ((False,), "it belongs to beam search, which there is none of"),
    "prompt_embeds": ((), "prompts are text or token ids"),
    "chat_template": (
        (),
        "the model's own template makes the prompt: use /v1/completions with a prompt of yours",
    ),
}
"""Fields that would change the answer and that nothing here does: the values that ask for nothing, and why."""


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Common(msgspec.Struct, kw_only=True):
    """What all requests share that the engine runs."""

    model: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class Generate(Common, kw_only=True):
    """What completions and chats share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | list[tuple[int, float | bool]] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    logprob_token_ids: list[int] | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["left", "right"] | None = None
    timings_per_token: bool | None = None


class CompletionRequest(Generate, kw_only=True):
    """POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    echo: bool | None = None
    logprobs: int | None = None
    best_of: int | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None


class ChatRequest(Generate, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    documents: list[dict[str, Any]] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[Tool] | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    parse_special: bool | None = None
    add_generation_prompt: bool | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


Body = TypeVar("Body", bound=msgspec.Struct)
_SAMPLING = (
    "n", "max_tokens", "min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "allowed_token_ids", "ignore_eos",
    "logprob_token_ids", "prompt_logprobs",
)  # fmt: skip
"""Fields of Generate that SamplingParams has under the same name."""


def parse(kind: type[Body], data: bytes, *, strict: bool = False) -> tuple[Body, list[str]]:
    """The body, and the names of what is ignored. Raises ApiError that names the first field that does not fit; if it
    is `strict`, a field that is not known does not.
    """
    try:
        values = msgspec.json.decode(data)
    except UnicodeDecodeError as error:
        raise bad(f"the body is not valid UTF-8 at byte {error.start}", code="invalid_json") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise bad(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise bad("the body must be a JSON object", code="invalid_json")
    try:
        body = msgspec.convert(values, kind, str_keys=True)
    except msgspec.ValidationError as error:
        what = str(error).partition(" - at ")[0]
        found = re.search(r"required field `(\w+)`", what) or re.search(r"`\$\.([^`]*)`", str(error))
        raise bad(f"{found[1] if found else 'body'}: {what}", found[1] if found else None) from None
    return body, _check_others(values, set(kind.__struct_fields__), strict)


def _check_others(values: dict[str, Any], known: set[str], strict: bool) -> list[str]:
    """Names of the fields that have no effect. Raises ApiError for those that cannot go without."""
    others = sorted(name for name in set(values) - known if values[name] is not None)
    for name in others:
        nothing, why = REFUSED.get(name, ((values[name],), ""))
        if values[name] not in nothing:
            raise bad(f"{name} is not supported: {why}", name, "unsupported_parameter")
        ours = RENAMED.get(name)
        if ours in known and values.get(ours) is None:
            raise bad(f"{name} is called {ours} here", name, "unknown_parameter")
        if strict and name not in ACCEPTED and name not in REFUSED:
            raise bad(
                f"no parameter called {name[:100]!r}; {nearest(name, known)}", name[:100], "unknown_parameter"
            )
    return [name for name in others if name not in REFUSED]


def sampling_fields(body: Generate) -> dict[str, Any]:
    """Fields for SamplingParams that the client gave. Raises ApiError for what costs too much."""
    values = {name: getattr(body, name) for name in _SAMPLING}
    found = {name: value for name, value in values.items() if value is not None}
    if isinstance(found.get("stop"), list):
        found["stop"] = tuple(found["stop"])
    if "stop_token_ids" in found:
        found["stop_token_ids"] = tuple(found["stop_token_ids"])
    if found.get("top_k") == -1:  # vLLM's way to say all
        found["top_k"] = 0
    if body.allowed_token_ids == []:
        raise bad("allowed_token_ids is empty: nothing could follow", "allowed_token_ids")
    found |= _biased(body.logit_bias)
    if found.get("n", 1) > MAX_N:
        raise bad(f"n={found['n']}: this server gives at most {MAX_N} samples per request", "n")
    if found.get("prompt_logprobs", 0) > min(MAX_TOP_LOGPROBS, MAX_LOGPROBS):
        raise bad(f"prompt_logprobs is at most {MAX_TOP_LOGPROBS}", "prompt_logprobs")
    return found


def _biased(bias: dict[int, float] | list[tuple[int, float | bool]] | None) -> dict[str, Any]:
    """OpenAI's map from token id to bias, or llama.cpp's pairs, in which false forbids a token."""
    pairs = list(bias.items()) if isinstance(bias, dict) else bias or []
    if any(value is True for _, value in pairs):
        raise bad("logit_bias: a bias is a number, or false for never", "logit_bias")
    forbidden = [[token] for token, value in pairs if value is False]
    added = {token: value for token, value in pairs if value is not False}
    return ({"bad_words_ids": forbidden} if forbidden else {}) | ({"logit_bias": added} if added else {})


def check_common(body: Generate) -> None:
    """What completions and chats share. Raises ApiError."""
    check_call(body)
    if body.stream_options is not None and not body.stream:
        raise bad("stream_options is only for stream=true", "stream_options")
    if body.stream and body.prompt_logprobs is not None:
        raise bad("prompt_logprobs does not come with stream=true: ask for one of them", "prompt_logprobs")
    if body.bad_words is not None and not (
        len(body.bad_words) <= MAX_STOPS
        and all(0 < len(word.strip(" ")) <= MAX_STOP_CHARS for word in body.bad_words)
    ):
        raise bad(f"bad_words: at most {MAX_STOPS} words of 1 to {MAX_STOP_CHARS} characters", "bad_words")
    if body.truncate_prompt_tokens is not None and not (
        body.truncate_prompt_tokens == -1 or body.truncate_prompt_tokens > 0
    ):
        raise bad(
            "truncate_prompt_tokens must be at least 1, or -1 for as many as fit", "truncate_prompt_tokens"
        )
    if body.truncation_side is not None and body.truncate_prompt_tokens is None:
        raise bad("truncation_side is only for truncate_prompt_tokens", "truncation_side")


def check_call(body: Common) -> None:
    """What does not depend on the endpoint. Raises ApiError."""
    if body.cache_salt is not None and not 0 < len(body.cache_salt) <= MAX_SALT_CHARS:
        raise bad(f"cache_salt must have 1 to {MAX_SALT_CHARS} characters", "cache_salt")
    if body.request_id is not None and not is_id(body.request_id):
        raise bad(f"request_id must be 1 to {MAX_ID_CHARS} of A-Z a-z 0-9 . _ -", "request_id")
    if body.priority is not None and not -1000 <= body.priority <= 1000:
        raise bad("priority must be between -1000 and 1000", "priority")


def is_id(text: str) -> bool:
    """Whether a client may call a request so."""
    return re.fullmatch(rf"[A-Za-z0-9._-]{{1,{MAX_ID_CHARS}}}", text) is not None


def prompts_of(prompt: str | list[Any]) -> list[str | list[int]]:
    """The prompts of a completion: one text, several, one list of token ids, or several. Raises ApiError."""
    if prompt == "" or (isinstance(prompt, list) and "" in prompt):
        raise bad("the prompt is empty: give at least one character", "prompt")
    return several(prompt, "prompt", MAX_PROMPTS)


def several(given: str | list[Any], name: str, most: int) -> list[str | list[int]]:
    """One text, several, one list of token ids, or several, as a list. Raises ApiError, which calls them `name`."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(part, int) for part in given):
        return [given]
    kinds = {type(part) for part in given}
    if len(kinds) != 1 or int in kinds:
        raise bad(
            f"{name} must be a text, a list of texts, a list of token ids, or a list of such lists", name
        )
    if len(given) > most:
        raise bad(f"{len(given)} {name}s: at most {most} in one request", name)
    return given
