"""What a kernel's case file hands to the contract suite."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Case:
    """One call of an operation. `by_row` names the arguments whose first axis is the row axis of the output."""

    name: str
    arguments: dict[str, Any]
    by_row: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def rows(self, start: int, stop: int) -> "Case":
        """The same call on some of the rows."""
        part = {name: self.arguments[name][start:stop] for name in self.by_row}
        return Case(self.name, {**self.arguments, **part}, self.by_row)
