"""Slot `model`: families of checkpoints, by the model_type in config.json.

Add one: a file here with a frozen dataclass that has `card`, `schema`, `names` and `architecture`, and a line in the
index. What families share lies below them, in headrace/weight/.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from msgspec import Struct

from headrace.architecture import Architecture
from headrace.slots import Card, Slot
from headrace.weight.names import Names


class Family(Protocol):
    """How to read one family's folders. Pure: no files, no tensors."""

    card: ClassVar[Card]
    schema: ClassVar[type[Struct]]
    """The keys of config.json; whatever is not there, and not known to be harmless, is an error."""
    names: ClassVar[Names]
    """Where its checkpoints keep each tensor."""

    def architecture(self, config: Any) -> Architecture:
        """The model that a `schema` describes. Raises ValueError, naming the key, for what is not implemented."""
        ...


SLOT = Slot(
    name="model",
    asks="which family of checkpoints config.json names",
    index={
        "llama": "headrace.models.llama:Llama",
        "mistral": "headrace.models.mistral:Mistral",
        "qwen2": "headrace.models.qwen2:Qwen2",
        "qwen3": "headrace.models.qwen3:Qwen3",
        "gemma3_text": "headrace.models.gemma3:Gemma3Text",
        "gemma3": "headrace.models.gemma3:Gemma3",
        "phi3": "headrace.models.phi3:Phi3",
        "mixtral": "headrace.models.mixtral:Mixtral",
        "qwen3_moe": "headrace.models.qwen3_moe:Qwen3Moe",
    },
    default="",
)
