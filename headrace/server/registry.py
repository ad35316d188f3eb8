"""The adapters that a server has, as the API process keeps them through the lives of its engines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from headrace.errors import ConfigError, HeadraceError


class Registry:
    """What is served, and what was handed to the engine and is not answered yet. Belongs to one event loop."""

    def __init__(self, named: Mapping[str, str]) -> None:
        self.named: dict[str, str] = dict(named)
        """Name -> folder: what the engine serves beside the base model, and the next one will."""
        self._asked: dict[str, tuple[str, asyncio.Future[None]]] = {}

    def ask(self, name: str, folder: str) -> asyncio.Future[None]:
        """The engine is about to be asked: done when it serves the folder. Raises ConfigError if it has been asked."""
        if name in self._asked:
            raise ConfigError(f"adapter {name!r} is being loaded")
        told = asyncio.get_running_loop().create_future()
        self._asked[name] = folder, told
        return told

    def told(self, name: str, error: str) -> None:
        """The engine has answered; `error` is empty if it serves the folder. Whoever asked may have gone."""
        folder, told = self._asked.pop(name)
        if not error:
            self.named[name] = folder
        if not told.done():
            told.set_exception(ConfigError(error)) if error else told.set_result(None)

    def end(self, error: HeadraceError) -> None:
        """The engine will not answer."""
        for _, told in self._asked.values():
            if not told.done():
                told.set_exception(error)
        self._asked.clear()
