"""`headrace techniques`: every slot and everybody in it, from the cards."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from headrace.commands.flags import AsJson
from headrace.commands.output import write, write_json, write_table
from headrace.errors import ConfigError, nearest
from headrace.slots import Slot, slots

EXACT = {
    "bits": "the same tokens, bit for bit, as the plain engine (or as the technique that is named)",
    "law": "the same distribution",
    "lossy": "drifts; the drift is measured",
}


def techniques(
    name: Annotated[str | None, typer.Argument(help="A technique, or a slot.")] = None,
    as_json: AsJson = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/techniques.md.")] = False,
) -> None:
    """List every technique, or explain one."""
    if markdown:
        write(to_markdown())
        return
    found = list(find(name))
    if as_json:
        write_json([to_json(slot, technique) for slot, technique in found])
    elif name is None or name in slots():
        rows = [_row(slot, technique) for slot, technique in found]
        write_table(("slot", "name", "exact", "what it does"), rows)
    else:
        for slot, technique in found:
            write(explain(slot, technique))


def find(name: str | None = None) -> Iterator[tuple[Slot, str]]:
    """(slot, technique) for every technique, those of the slot `name`, or those called `name`. Raises ConfigError."""
    known = [(slot, technique) for slot in slots().values() for technique in slot.index]
    chosen = [pair for pair in known if name is None or name in (pair[0].name, pair[1])]
    if not chosen:
        names = {technique for _, technique in known} | set(slots())
        raise ConfigError(f"no technique or slot called {name!r}; {nearest(name or '', names)}")
    yield from chosen


def to_json(slot: Slot, name: str) -> dict[str, Any]:
    """One technique's facts: name, slot, paper, exact, needs, breaks, options."""
    card = slot.load(name).card  # type: ignore[attr-defined]
    return {
        "name": name,
        "slot": slot.name,
        "paper": card.paper,
        "exact": card.exact,
        "exact_as": card.exact_as,
        "needs": [{"fact": fact, "why": why} for fact, why in card.needs],
        "breaks": [{"fact": fact, "why": why} for fact, why in card.breaks],
        "options": options(slot.load(name)),
    }


def options(technique: type) -> list[dict[str, Any]]:
    """name, type and default (absent if it must be given) of every option."""
    made = []
    hints = typing.get_type_hints(technique)
    for field in dataclasses.fields(technique):
        kind = hints[field.name]
        option = {
            "name": field.name,
            "type": kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", ""),
        }
        if field.default is not dataclasses.MISSING:
            option["default"] = field.default
        made.append(option)
    return made


def doc(technique: type) -> str:
    """What the technique's file says of it: mechanism, paper, trades, deviations."""
    return inspect.cleandoc(sys.modules[technique.__module__].__doc__ or technique.__doc__ or "")


def explain(slot: Slot, name: str) -> str:
    """One technique for people: what it is, what it promises, what it takes."""
    technique = slot.load(name)
    facts = to_json(slot, name)
    lines = [
        f"--{slot.name} {name}",
        "",
        doc(technique),
        "",
        f"exact: {_exact(facts)} ({EXACT[facts['exact']]})",
    ]
    lines += [f"needs {need['fact']}: {need['why']}" for need in facts["needs"]]
    lines += [f"cannot run with {clash['fact']}: {clash['why']}" for clash in facts["breaks"]]
    lines += ["", "options:" if facts["options"] else "no options"]
    lines += [f"  {_option(option)}" for option in facts["options"]]
    return "\n".join(lines) + "\n\n"


def to_markdown() -> str:
    """docs/techniques.md, whole: generated, so that it cannot differ from the cards."""
    lines = [
        "# Techniques",
        "",
        "Generated from the cards by `headrace techniques --markdown`; do not edit.",
        "A stack names at most one technique per slot (processors: several), as flag, TOML key or Python keyword:",
        "`--slot name:option=value,option=value`.",
        "",
    ]
    lines += [f"- `{grade}`: {meaning}" for grade, meaning in EXACT.items()]
    for slot in slots().values():
        default = f" Default: `{slot.default}`." if slot.default else ""
        lines += ["", f"## `{slot.name}`: {slot.asks}", "", f"{default.strip()}" if default else ""]
        lines += ["", "| name | what it does | exact | options | paper |", "|---|---|---|---|---|"]
        lines += [_markdown_row(slot, name) for name in slot.index]
    return "\n".join(line for i, line in enumerate(lines) if line or lines[i - 1]) + "\n"


def _row(slot: Slot, name: str) -> tuple[str, str, str, str]:
    technique = slot.load(name)
    return (slot.name, name, _exact(to_json(slot, name)), doc(technique).partition("\n")[0])


def _markdown_row(slot: Slot, name: str) -> str:
    facts = to_json(slot, name)
    what = doc(slot.load(name)).partition("\n")[0]
    rules = [f"Needs `{need['fact']}`: {need['why']}." for need in facts["needs"]]
    rules += [f"Not with `{clash['fact']}`: {clash['why']}." for clash in facts["breaks"]]
    chosen = ", ".join(f"`{_option(option)}`" for option in facts["options"])
    cells = (f"`{name}`", " ".join([what, *rules]), _exact(facts), chosen, facts["paper"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _exact(facts: dict[str, Any]) -> str:
    return f"{facts['exact']}, beside {facts['exact_as']}" if facts["exact_as"] else str(facts["exact"])


def _option(option: dict[str, Any]) -> str:
    if "default" not in option:
        return f"{option['name']} ({option['type']}, required)"
    return f"{option['name']}={option['default']} ({option['type']})"
