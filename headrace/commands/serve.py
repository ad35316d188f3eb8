"""`headrace serve`: an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from headrace.commands.flags import AdapterBytes, Lora, LoraRoot, Quiet, with_adapters
from headrace.config import EngineConfig
from headrace.errors import ConfigError

API_KEY = "HEADRACE_API_KEY"

LogJson = Annotated[
    bool,
    typer.Option("--log-json", help="Log JSON objects, one a line, with one for every finished request."),
]
LogRequests = Annotated[bool, typer.Option("--log-requests", help="Log a line for every finished request.")]
OtlpEndpoint = Annotated[
    str,
    typer.Option(
        help="URL of an OpenTelemetry collector that spans of requests go to, over HTTP. Needs headrace[otel].",
        show_default=False,
    ),
]


def serve(
    config: EngineConfig,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback need a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 is any that is free.", min=0, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Key that clients must send; may be repeated. Also {API_KEY}, which `ps` does not show."
        ),
    ] = None,
    served_model_name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: its own name.")
    ] = None,
    strict_params: Annotated[
        bool, typer.Option("--strict-params", help="Refuse parameters that are not known.")
    ] = False,
    tool_call_parser: Annotated[
        str | None,
        typer.Option(help="How the model writes calls of tools. Default: what its chat template tells."),
    ] = None,
    lora: Lora = None,
    lora_root: LoraRoot = None,
    adapter_bytes: AdapterBytes = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines in without a key.")
    ] = False,
    log_json: LogJson = False,
    log_requests: LogRequests = False,
    otlp_traces_endpoint: OtlpEndpoint = "",
    quiet: Quiet = False,
) -> None:
    """Serve an OpenAI-compatible API."""
    from headrace.server.run import Options
    from headrace.server.run import serve as run

    keys = [*(api_key or []), *filter(None, [os.environ.get(API_KEY)])]
    if any(len(key) < 8 for key in keys):
        raise ConfigError("an API key must have 8 characters or more")
    options = Options(
        host=host,
        port=port,
        name=served_model_name or "",
        api_keys=tuple(keys),
        insecure=insecure,
        strict=strict_params,
        lora_root=str(lora_root or ""),
        tool_parser=tool_call_parser or "",
        log_json=log_json,
        log_requests=log_requests,
        quiet=quiet,
        otlp_traces_endpoint=otlp_traces_endpoint,
    )
    config = with_adapters(config, lora, adapter_bytes)
    code = asyncio.run(run(config, options, _to_stderr("" if log_json else "headrace: ")))
    if code:
        raise typer.Exit(code)


def _to_stderr(prefix: str) -> Callable[[str], None]:
    """Writes lines past Python's buffer: one that cannot be written is not kept, and does not fail the exit either."""

    def write(line: str) -> None:
        if sys.stderr is None:  # it was closed when we were started: its number may be somebody else's by now
            raise OSError(errno.EBADF, "there is no stderr")
        data = f"{prefix}{line}\n".encode(errors="replace")
        while data:
            data = data[os.write(2, data) :]

    return write
