"""What was run: the stages of each model, in tokens. Edit here, not in the loop."""

from __future__ import annotations

from dataclasses import dataclass, field

from training.model import TINY, TINY_DRAFT, Shape


@dataclass(frozen=True)
class Stage:
    """Rows of `row` tokens until `until` tokens have been seen in all; `shares` of the rows by kind.

    With a `turn` (row length, shares), every other batch is of that sort instead.
    """

    row: int
    until: int
    shares: dict[str, float] = field(default_factory=dict)
    turn: tuple[int, dict[str, float]] | None = None

    def rows(self, step: int) -> tuple[int, dict[str, float]]:
        """(row length, shares) of a batch."""
        return self.turn if self.turn is not None and step % 2 else (self.row, self.shares)


@dataclass(frozen=True)
class Recipe:
    """A model, its stages and its schedule: warm up over `warm` steps, hold, fall linearly over the last `decay`."""

    name: str
    shape: Shape
    stages: tuple[Stage, ...]
    decay: int  # tokens
    warm: int = 100  # steps
    batch: int = 8192  # tokens
    micro: int = 2048  # tokens per forward pass; small enough for the caches of a core
    seed: int = 1
    matrix_lr: float = 0.01
    other_lr: float = 2e-3
    teacher: str | None = None

    @property
    def tokens(self) -> int:
        return self.stages[-1].until

    def stage(self, seen: int) -> Stage:
        return next((stage for stage in self.stages if seen < stage.until), self.stages[-1])

    def rate(self, step: int, seen: int) -> float:
        """The learning-rate factor at this step, 0..1."""
        warm = min(1.0, (step + 1) / self.warm)
        return max(0.0, min(warm, (self.tokens - seen) / self.decay))


SHORT = {
    "text": 0.28,
    "repeat": 0.22,
    "passkey": 0.14,
    "key_value": 0.10,
    "edit_copy": 0.09,
    "chain": 0.08,
    "json": 0.04,
    "small": 0.05,
}
MIDDLE = {
    "text": 0.36,
    "repeat": 0.08,
    "passkey": 0.12,
    "key_value": 0.11,
    "edit_copy": 0.09,
    "chain": 0.13,
    "json": 0.04,
    "small": 0.07,
}
LONG = {
    "text": 0.46,
    "repeat": 0.04,
    "passkey": 0.13,
    "key_value": 0.10,
    "edit_copy": 0.06,
    "chain": 0.12,
    "json": 0.03,
    "small": 0.06,
}

COPIES = {
    "text": 0.32,
    "repeat": 0.13,
    "passkey": 0.08,
    "key_value": 0.13,
    "edit_copy": 0.13,
    "chain": 0.12,
    "json": 0.03,
    "small": 0.06,
}
FAR = {
    "text": 0.42,
    "repeat": 0.06,
    "passkey": 0.14,
    "key_value": 0.11,
    "edit_copy": 0.09,
    "chain": 0.11,
    "json": 0.02,
    "small": 0.05,
}
TABLE = {
    "text": 0.36,
    "repeat": 0.04,
    "passkey": 0.12,
    "key_value": 0.09,
    "edit_copy": 0.08,
    "chain": 0.10,
    "facts": 0.15,
    "json": 0.02,
    "small": 0.04,
}
FARTHEST = {"text": 0.45, "passkey": 0.25, "key_value": 0.20, "edit_copy": 0.05, "repeat": 0.05}
NEAR = {
    "text": 0.24,
    "repeat": 0.05,
    "edit_copy": 0.30,
    "chain": 0.16,
    "facts": 0.14,
    "json": 0.05,
    "small": 0.06,
}
FACTS = {
    "text": 0.18,
    "repeat": 0.02,
    "edit_copy": 0.15,
    "chain": 0.18,
    "facts": 0.40,
    "json": 0.04,
    "small": 0.03,
}
EDITS = {
    "text": 0.22,
    "repeat": 0.03,
    "passkey": 0.05,
    "key_value": 0.08,
    "edit_copy": 0.46,
    "chain": 0.06,
    "facts": 0.08,
    "json": 0.08,
}
BROAD = {
    "text": 0.40,
    "repeat": 0.02,
    "passkey": 0.12,
    "key_value": 0.10,
    "edit_copy": 0.16,
    "chain": 0.07,
    "facts": 0.04,
    "json": 0.05,
    "small": 0.04,
}
LAST_FAR = {"text": 0.40, "passkey": 0.26, "key_value": 0.14, "edit_copy": 0.20}
LAST_NEAR = {
    "text": 0.34,
    "repeat": 0.03,
    "edit_copy": 0.28,
    "key_value": 0.05,
    "chain": 0.09,
    "facts": 0.06,
    "json": 0.10,
    "small": 0.05,
}
GUESS = {
    "text": 0.70,
    "repeat": 0.05,
    "passkey": 0.04,
    "key_value": 0.04,
    "edit_copy": 0.06,
    "chain": 0.05,
    "json": 0.04,
    "small": 0.02,
}

RECIPES = {
    "tiny": Recipe(
        "tiny",
        TINY,
        decay=2_900_000,
        stages=(
            Stage(256, 3_900_000, SHORT),
            Stage(512, 5_400_000, MIDDLE),
            Stage(1024, 5_881_856, LONG),
            Stage(512, 8_000_000, COPIES),
            Stage(1024, 8_314_880, FAR),
            Stage(1024, 9_732_096, TABLE),
            Stage(2048, 10_772_480, FARTHEST, turn=(512, NEAR)),
            Stage(512, 11_500_000, FACTS),
            Stage(2048, 11_900_000, FARTHEST, turn=(512, FACTS)),
            Stage(512, 12_900_000, EDITS),
            Stage(512, 17_000_000, BROAD),
            Stage(2048, 19_500_000, LAST_FAR, turn=(512, LAST_NEAR)),
        ),
    ),
    "tiny-draft": Recipe(
        "tiny-draft",
        TINY_DRAFT,
        decay=1_600_000,
        teacher="tiny",
        batch=4096,
        warm=50,
        matrix_lr=0.015,
        other_lr=3e-3,
        stages=(
            Stage(512, 3_026_944, GUESS),
            Stage(2048, 3_356_944, GUESS, turn=(512, GUESS)),
            Stage(512, 7_600_000, GUESS),
            Stage(2048, 8_400_000, GUESS, turn=(512, GUESS)),
        ),
    ),
}
