"""The command line: `headrace VERB`.

A contract for every verb: results on stdout, everything else on stderr; --json makes stdout machine-readable; exit 0
on success, 2 on a usage or configuration error with one line of what, why and what to do, 1 on any other failure, 130
when interrupted. Errors are one line; HEADRACE_DEBUG=1 adds the traceback.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from headrace.errors import ConfigError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "run": ("headrace.commands.run:run", "Continue a prompt and stream the text."),
    "chat": ("headrace.commands.chat:chat", "Talk in the terminal."),
    "serve": ("headrace.commands.serve:serve", "Serve an OpenAI-compatible API."),
    "eval": ("headrace.commands.evaluate:evaluate", "Score a model on tasks with exact answers."),
    "profile": (
        "headrace.commands.profile:profile",
        "Find what may be left out or rounded: far-looking heads, neurons, codebooks.",
    ),
    "compare": ("headrace.commands.compare:compare", "Measure stacks side by side: speed, memory, quality."),
    "bench latency": ("headrace.commands.bench:latency", "Time prompts and decoding, batch by batch."),
    "bench kernels": (
        "headrace.commands.bench_kernels:kernels",
        "Time each kernel against the machine's limits.",
    ),
    "bench serve": ("headrace.commands.bench_serve:load", "Put load on a server, and time its answers."),
    "quantize": (
        "headrace.commands.quantize:quantize",
        "Choose the codes of a model's weights, and write a folder that runs.",
    ),
    "techniques": ("headrace.commands.techniques:techniques", "List every technique, or explain one."),
    "doctor": ("headrace.commands.doctor:doctor", "Say what this machine has, and what costs speed."),
}
"""verb -> (where it is, what it does)."""

HELP = "An LLM inference engine in which the published efficiency techniques compose."
_USAGE_ERROR: Any = typer.BadParameter.__base__
"""What typer raises for a command line that does not fit; the class has no public name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    argv = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    logging.basicConfig(format="headrace: %(message)s", level=logging.WARNING)
    try:
        command = typer.main.get_command(make_app(argv[0]))
        with command.make_context("headrace", argv) as context:
            command.invoke(context)
        sys.stdout.flush()
        return 0
    except typer.Exit as done:
        return done.exit_code
    except BrokenPipeError:  # the reader has left: nobody is there to hear about it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\nheadrace: interrupted\n")
        return 130
    except Exception as error:
        return _fail(*_told(error), as_json="--log-json" in argv)


def make_app(asked: str) -> typer.Typer:
    """The command line, with the flags of the verb `asked` only.

    Those of the stack come from the slots, which import torch: `headrace --help` should not wait for that.
    """
    app = typer.Typer(help=HELP, add_completion=False, rich_markup_mode="rich")
    app.callback(invoke_without_command=False)(_version)
    groups: dict[str, typer.Typer] = {}
    for name, (where, what) in VERBS.items():
        group, _, verb = name.rpartition(" ")
        if group and group not in groups:
            groups[group] = typer.Typer(help="Measure speed.")
            groups[group].callback()(_nothing)  # keeps a group of one verb a group
            app.add_typer(groups[group], name=group)
        command = _load(where) if asked == name.split()[0] else _nothing
        groups.get(group, app).command(verb, help=what)(command)
    return app


def _show_version(on: bool) -> None:
    if on:
        from headrace import __version__

        print(__version__)
        raise typer.Exit


def _version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


def _nothing() -> None:
    """Stands for a verb that was not asked for."""


def _load(where: str) -> Callable[..., None]:
    from headrace.commands.flags import with_flags

    module, _, name = where.partition(":")
    return with_flags(getattr(importlib.import_module(module), name))


def _told(error: Exception) -> tuple[str, int]:
    """What to say of it, and the exit code."""
    if isinstance(error, _USAGE_ERROR):
        return _usage(error), 2
    if isinstance(error, ConfigError):
        return str(error), 2
    return f"{type(error).__name__}: {error} (HEADRACE_DEBUG=1 shows where)", 1  # ours, or of the machine


def _usage(error: Any) -> str:
    """What typer has to say, in one line, with the nearest name that exists."""
    message, context = error.format_message().rstrip("."), error.ctx
    if context is None:
        return str(message)
    known = f"`{context.command_path} --help` lists all"
    if message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts]
        close, asked, _ = nearest(error.option_name, options).partition("?")
        return f"no option {error.option_name}{f'; {close}?' if asked else ';'} {known}"
    verbs = getattr(context.command, "commands", {})
    if message.startswith("No such command"):
        wrong = message.split("'")[1]
        return f"no verb {wrong!r}; {nearest(wrong, verbs)}"
    return f"{message}; {known}"


def _fail(message: str, code: int, *, as_json: bool) -> int:
    message = " ".join(message.split())
    line = f"headrace: error: {message}"
    if as_json:  # whoever reads the server's log must be able to read its last line, too
        from headrace.server.journal import json_line

        line = json_line("error", "failed", {"message": message})
    sys.stderr.write(f"{line}\n")
    if os.environ.get("HEADRACE_DEBUG"):
        traceback.print_exc()
    return code
