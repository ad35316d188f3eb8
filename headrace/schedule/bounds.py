"""What a request must keep to, or it is not even queued."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.architecture import Architecture
from headrace.errors import ConfigError
from headrace.types import Request


@dataclass(frozen=True)
class Bounds:
    """Of one engine."""

    architecture: Architecture
    context: int
    """Longest prompt plus output."""
    max_waiting: int

    def check(self, request: Request) -> None:
        """Raises ConfigError for a request that this engine could never run, however empty it is."""
        why = request.misfit(self.context, self.architecture.vocab)
        if why:
            raise ConfigError(why + (self._longer() if len(request.prompt) >= self.context else ""))
        dimensions = request.pooling.dimensions if request.pooling is not None else None
        if dimensions is not None and not 1 <= dimensions <= self.architecture.width:
            raise ConfigError(f"dimensions={dimensions}: this model's vectors have {self.architecture.width}")

    def check_room(self, waiting: int, more: int) -> None:
        """Raises ConfigError if the queue does not take so many more."""
        if waiting + more > self.max_waiting:
            raise ConfigError(
                f"{waiting} sequences wait already, and the queue takes {self.max_waiting}: "
                "try again later, or raise max_waiting"
            )

    def _longer(self) -> str:
        limit = self.architecture.context
        return f", or raise context (this model takes up to {limit})" if self.context < limit else ""
