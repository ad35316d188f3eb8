"""Adapters as clients see them: models beside the base model, and the two routes that add and remove them.

    model: "NAME"  or  "BASE:NAME"

The routes exist only where the server was given a folder of adapters (`--lora-root`): a client names one of the folders
in it, and nothing else is ever opened. Which there are, and which there are not, looks the same from outside.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
from fastapi import Request, Response

from headrace.errors import ConfigError
from headrace.server.errors import ApiError, bad
from headrace.server.schema import is_id, parse
from headrace.server.service import Service

FILES = ("adapter_config.json", "adapter_model.safetensors")
"""All that is opened of a folder."""


class LoadRequest(msgspec.Struct, kw_only=True):
    """POST /v1/load_lora_adapter."""

    lora_name: str
    lora_path: str


class UnloadRequest(msgspec.Struct, kw_only=True):
    """POST /v1/unload_lora_adapter."""

    lora_name: str


class AdapterRoutes:
    """Adding and removing adapters while the server runs."""

    def __init__(self, service: Service, root: Path, *, strict: bool = False) -> None:
        """root: the folder whose folders may be loaded. strict: a field that is not known is an error."""
        self._service, self._root, self._strict = service, root.resolve(), strict

    async def load(self, request: Request) -> Response:
        """Adds one."""
        body = self._parse(LoadRequest, await request.body())
        name = body.lora_name
        if not is_id(name) or name == self._service.name:
            raise bad("lora_name must be 1 to 128 of A-Z a-z 0-9 . _ -, and not the model's", "lora_name")
        folder = self._folder(body.lora_path)
        try:
            await self._service.client.load_adapter(name, str(folder))
        except ConfigError as error:
            raise bad(str(error).replace(str(folder), folder.name), "lora_path") from None
        return Response(f"Success: LoRA adapter '{name}' added successfully.", media_type="text/plain")

    async def unload(self, request: Request) -> Response:
        """Removes one; requests that have it keep it to their end."""
        name = self._parse(UnloadRequest, await request.body()).lora_name
        if name not in self._service.client.adapters:
            raise ApiError(
                404, "model_not_found", f"no adapter called {name[:200]!r} is served here", param="lora_name"
            )
        self._service.client.unload_adapter(name)
        return Response(f"Success: LoRA adapter '{name}' removed successfully.", media_type="text/plain")

    def _folder(self, asked: str) -> Path:
        """The folder of this name in the root, itself no link, and with no file that leads out of the root."""
        name = asked.removeprefix(f"{self._root}/").rstrip("/")
        folder = self._root / name
        if not is_id(name) or name in (".", "..") or not self._inside(folder):
            raise bad(
                "lora_path must name a folder in the server's folder of adapters that holds one", "lora_path"
            )
        return folder

    def _inside(self, folder: Path) -> bool:
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                return False
            return all((folder / file).resolve().is_relative_to(self._root) for file in FILES)
        except (OSError, RuntimeError):  # a loop of links is a RuntimeError in older Pythons
            return False

    def _parse(self, kind: Any, data: bytes) -> Any:
        body, ignored = parse(kind, data)
        if ignored and self._strict:
            raise bad(f"no parameter called {ignored[0]!r}", ignored[0], "unknown_parameter")
        return body


def cards(service: Service, base: dict[str, Any]) -> list[dict[str, Any]]:
    """The adapters in the list of models, each as its base model with a name and a parent."""
    return [{**base, "id": name, "parent": base["id"]} for name in service.client.adapters]
