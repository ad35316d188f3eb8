"""POST /v1/embeddings: texts as vectors, pooled from the final hidden states of a causal model.

Without `pooling`, the last token's: models trained to embed with a causal decoder are trained so, and vLLM has the same
default. From a model that was not, the mean serves better. Vectors have length 1 unless `normalize` is false.
"""

from __future__ import annotations

import base64
import struct
from typing import Any, Literal

from headrace.errors import ModelError
from headrace.server.errors import bad
from headrace.server.passes import MAX_INPUTS, Passes, Result
from headrace.server.schema import Common, several
from headrace.text.tokenizer import read_config
from headrace.types import Pooling, PoolingKind

MAX_VALUES = 2 << 20
"""Numbers in one answer: some 40 MB as JSON."""


class EmbeddingRequest(Common, kw_only=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    pooling: PoolingKind | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None


class Embeddings:
    """One request."""

    def __init__(self, passes: Passes, body: EmbeddingRequest) -> None:
        self._passes, self._body = passes, body

    @classmethod
    async def start(cls, passes: Passes, body: EmbeddingRequest) -> Embeddings:
        """Raises ApiError."""
        inputs = _inputs(body.input)
        width = passes.service.width
        _check_dimensions(passes, body.dimensions)
        if len(inputs) * (body.dimensions or width) > MAX_VALUES:
            raise bad(
                f"{len(inputs)} vectors of {body.dimensions or width} numbers: at most {MAX_VALUES} numbers in one "
                "answer",
                "input",
            )
        pooling = Pooling(
            kind=body.pooling or "last", normalize=body.normalize is not False, dimensions=body.dimensions
        )
        requests = []
        for place, text in enumerate(inputs):
            ids = (
                text
                if isinstance(text, list)
                else await passes.encode(text, add_special=body.add_special_tokens)
            )
            passes.fits(ids, f"input[{place}]" if len(inputs) > 1 else "input", room=0)
            requests.append(passes.request(ids, pooling=pooling))
        passes.start(requests)
        return cls(passes, body)

    async def answer(self) -> dict[str, Any]:
        """The whole answer."""
        results = await self._passes.results()
        data = [
            {"object": "embedding", "index": index, "embedding": self._written(result)}
            for index, result in enumerate(results)
        ]
        return {**self._passes.head("list"), "data": data, "usage": self._passes.cost()}

    def _written(self, result: Result) -> str | tuple[float, ...]:
        if self._body.encoding_format == "base64":
            return base64.b64encode(result.embedding).decode()
        return struct.unpack(f"<{len(result.embedding) // 4}f", result.embedding)


def _inputs(given: str | list[Any]) -> list[str | list[int]]:
    """One text, several, one list of token ids, or several. Raises ApiError."""
    found = several(given, "input", MAX_INPUTS)
    if not all(found):
        raise bad("an input is empty: give at least one character, or one token", "input")
    return found


def _check_dimensions(passes: Passes, asked: int | None) -> None:
    """Only models that were trained for it say something with the first numbers of their vectors."""
    width = passes.service.width
    if asked is None or asked == width:
        return
    if not 1 <= asked <= width:
        raise bad(f"dimensions={asked}: this model's vectors have {width}", "dimensions")
    try:
        config = read_config(passes.service.tokenizer.folder / "config.json")
    except ModelError as error:
        raise bad(str(error)) from None
    sizes = config.get("matryoshka_dimensions")
    if isinstance(sizes, list) and asked not in sizes:
        raise bad(f"dimensions={asked}: this model was trained for {sizes}", "dimensions")
    if not isinstance(sizes, list) and config.get("is_matryoshka") is not True:
        raise bad(
            f"dimensions={asked}: this model was not trained so that fewer than its {width} numbers mean something "
            "(no matryoshka_dimensions in its config.json): leave it out",
            "dimensions",
        )
