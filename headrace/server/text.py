"""/tokenize, /detokenize and /tokenizer_info, as vLLM has them: what a client needs to count a model's tokens."""

from __future__ import annotations

from typing import Any

from headrace.errors import ModelError
from headrace.server.errors import bad
from headrace.server.schema import DetokenizeRequest, TokenizeRequest
from headrace.server.service import Service
from headrace.text.chat import special_tokens

FACTS = ("tokenizer_class", "add_bos_token", "add_eos_token", "clean_up_tokenization_spaces")
"""Of tokenizer_config.json, told as they are."""


async def tokenize(service: Service, body: TokenizeRequest) -> dict[str, Any]:
    """Token ids of a prompt, or of what the template makes of messages. Raises ApiError.

    Special tokens that a prompt spells are text unless `parse_special` is set. Only a prompt that is one from end to
    end is that token: so clients look up the id of the `eos_token` that /tokenizer_info names.
    """
    if (body.prompt is None) == (body.messages is None):
        raise bad("give either prompt or messages", "prompt")
    if body.prompt is not None:
        commands = bool(body.parse_special) or body.prompt in service.tokenizer.commands
        special = body.add_special_tokens is not False
        ids = await service.encode(body.prompt, add_special=special, parse_special=commands)
    else:
        prompt = await service.encode_chat(
            body.messages or [],
            add_generation_prompt=body.add_generation_prompt is not False,
            add_special_tokens=bool(body.add_special_tokens),
        )
        ids = list(prompt.ids)
    answer: dict[str, Any] = {"count": len(ids), "max_model_len": service.context, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = [service.tokenizer.decode([token], skip_special=False) for token in ids]
    return answer


def detokenize(service: Service, body: DetokenizeRequest) -> dict[str, Any]:
    """The text of token ids. Raises ApiError."""
    wrong = next((token for token in body.tokens if not 0 <= token < service.vocab), None)
    if wrong is not None:
        raise bad(f"token {wrong} is not in the vocabulary of {service.vocab} tokens", "tokens")
    return {"prompt": service.tokenizer.decode(body.tokens, skip_special=False)}


def tokenizer_info(service: Service) -> dict[str, Any]:
    """Special tokens by name, the chat template if there is one, and the longest prompt with its answer."""
    config = service.tokenizer.config
    try:
        template = service.template.source
    except ModelError:
        template = None
    named: dict[str, str | None] = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
    named |= special_tokens(service.tokenizer.folder, config)
    facts = {name: config.get(name) for name in FACTS}
    return {**facts, **named, "chat_template": template, "model_max_length": service.context}
