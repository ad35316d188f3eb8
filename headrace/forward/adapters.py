"""Adapters of an engine: registered by name, loaded when a sequence asks for one, let go of when others need the room.

    registered  its folder was checked            -> (first in need) -> loading -> loaded
    loaded      in memory                         -> (least recently used, and room is needed) -> registered

Those of sequences that run, or whose pages are swapped out, stay. Loading goes on between steps, a few megabytes each
time, so that no stream waits for a disk. A waiting sequence whose adapter does not fit beside those holds up the ones
with adapters behind it: else these could keep it out for ever.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import NamedTuple

from headrace.config import EngineConfig
from headrace.errors import ConfigError, ModelError, nearest
from headrace.forward.decoder import Decoder
from headrace.forward.load import describe, names_of
from headrace.schedule.queues import Queues
from headrace.types import Sequence, Status
from headrace.weight import memory
from headrace.weight.adapter import Adapter, AdapterFiles, open_adapter, sites
from headrace.weight.adapters import Opened, Update

MOST = 1024
"""Adapters registered at once."""
SLICE = 8 << 20
"""Bytes read between two steps."""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")


class _Loading(NamedTuple):
    adapter: Adapter
    files: AdapterFiles
    work: Generator[int, None, Mapping[str, Update]]


class Adapters:
    """All adapters of one engine. Those that are loaded take at most config.adapter_bytes."""

    def __init__(
        self,
        config: EngineConfig,
        path: Path | None,
        decoder: Decoder,
        queues: Queues,
        let_go: Callable[[Adapter], None],
    ) -> None:
        """Registers config.adapters. path: the model's folder, if it came from one. let_go: told of an adapter whose
        memory is wanted back. Raises ConfigError."""
        self._names = names_of(path, decoder.architecture)
        self._sites = sites(decoder.architecture, self._names)
        self._note = None if path is None else describe(path).note
        self._dtype, self._device = decoder.dtype, decoder.device
        self._queues, self._limit, self._let_go = queues, config.adapter_bytes, let_go
        self._named: dict[str, Adapter] = {}
        self._loaded: dict[Adapter, None] = {}
        """Least recently used first."""
        self._loading: _Loading | None = None
        self._kept: set[Adapter] = set()
        """Of sequences that run, or may begin now."""
        self._failed: set[Adapter] = set()
        self._any = False
        for name, folder in config.adapters.items():
            self.register(name, folder)

    def register(self, name: str, folder: str | Path) -> None:
        """Checks a folder, all but its numbers, and knows it by this name from now on. Raises ConfigError."""
        if _NAME.fullmatch(name) is None:
            raise ConfigError(
                f"an adapter cannot be called {name[:140]!r}: use 1 to 128 of A-Z a-z 0-9 . _ -"
            )
        if name in self._named:
            raise ConfigError(f"an adapter called {name!r} is there already: unload it first")
        if len(self._named) >= MOST:
            raise ConfigError(f"{MOST} adapters are registered, and that is the most: unload one")
        if self._note is not None and self._note.folds:
            raise ConfigError(
                f"{folder}: the model was quantised with the recipe {self._note.recipe}, which changed what its "
                "products read: merge the adapter before quantising, or use gptq or rtn"
            )
        _, opened = self._open(Path(folder))
        if opened.nbytes > self._limit:
            raise ConfigError(
                f"{folder} needs {opened.nbytes / 2**20:.1f} MiB, and adapters may take {self._limit / 2**20:.1f}: "
                "raise adapter_bytes"
            )
        self._named[name] = Adapter(name, Path(folder), opened.nbytes)
        self._any = True

    def forget(self, name: str) -> None:
        """The name is free again; sequences that have the adapter keep it to their end. Raises ConfigError."""
        adapter = self.find(name)
        del self._named[name]
        if adapter not in self._in_use():
            self._drop(adapter)

    def find(self, name: str) -> Adapter:
        """The adapter registered by this name. Raises ConfigError if there is none."""
        adapter = self._named.get(name)
        if adapter is None:
            raise ConfigError(f"no adapter called {name[:140]!r}; {nearest(name[:140], self._named)}")
        adapter.error = ""  # of an earlier attempt
        self._failed.discard(adapter)
        return adapter

    def __len__(self) -> int:
        """Adapters in memory."""
        return len(self._loaded)

    @property
    def nbytes(self) -> int:
        """Memory that they take."""
        return sum(adapter.nbytes for adapter in self._loaded)

    def in_use(self, *statuses: Status) -> tuple[str, ...]:
        """Names of the adapters of sequences with one of these statuses."""
        if not self._any:
            return ()
        return tuple(sorted({s.adapter.name for s in self._queues if s.adapter and s.status in statuses}))

    # ---- between two steps ----

    def work(self) -> bool:
        """Decides which adapters the next step may use, and reads a slice of one that is missing.

        False: until more of it is read, no sequence can run.
        """
        if not self._any:
            return True
        wanted = self._wanted()
        if self._loading is not None and self._loading.adapter not in wanted:  # its sequences were cancelled
            self._loading = None
        if self._loading is None and wanted:
            self._begin(wanted[0])
        if self._loading is not None:
            self._read(self._loading)
        ready = not wanted or self._queues.count(Status.RUNNING) > 0
        return ready or next(self._queues.admissible(), None) is not None

    def failed(self) -> list[tuple[Sequence, str]]:
        """Sequences that cannot begin, because their adapter could not be loaded; and why."""
        if not self._failed:
            return []
        waiting = self._queues.waiting()
        return [(seq, seq.adapter.error) for seq in waiting if seq.adapter in self._failed and seq.adapter]

    def _wanted(self) -> list[Adapter]:
        """Adapters to load, in the order of the sequences that need them. Marks those that do not fit."""
        pinned = self._in_use()
        for adapter in pinned:
            adapter.crowded = False
        room = self._limit - sum(adapter.nbytes for adapter in pinned)
        waiting = [seq.adapter for seq in self._queues.waiting() if seq.adapter is not None]
        wanted: list[Adapter] = []
        self._kept = pinned
        for adapter in dict.fromkeys(waiting):
            adapter.crowded = adapter not in self._kept and adapter.nbytes > room
            if adapter.crowded:
                break
            if adapter not in self._kept:
                room -= adapter.nbytes
                self._kept.add(adapter)
            if adapter.updates is None and not adapter.error:
                wanted.append(adapter)
        for adapter in [adapter for adapter in self._loaded if adapter in self._kept]:
            self._loaded[adapter] = self._loaded.pop(adapter)  # now the most recently used
        return wanted

    def _in_use(self) -> set[Adapter]:
        """Adapters that must stay."""
        stay = (Status.RUNNING, Status.SWAPPED)
        return {seq.adapter for seq in self._queues if seq.adapter is not None and seq.status in stay}

    def _begin(self, adapter: Adapter) -> None:
        try:
            self._make_room(adapter.nbytes)
            files, opened = self._open(adapter.folder)
            if opened.nbytes != adapter.nbytes:
                raise ModelError(self._changed(adapter))
            memory.require(opened.nbytes, self._device, f"adapter {adapter.name}")
            self._loading = _Loading(adapter, files, opened.load())
        except ConfigError as error:
            self._fail(adapter, str(error))

    def _read(self, loading: _Loading) -> None:
        adapter, read = loading.adapter, 0
        try:
            while read < SLICE:
                read += next(loading.work)
            return
        except StopIteration as done:
            digest = loading.files.digest()
            if adapter.digest not in ("", digest):
                self._fail(adapter, self._changed(adapter))
            else:
                adapter.updates, adapter.digest = done.value, digest
                self._loaded[adapter] = None
        except ConfigError as error:
            self._fail(adapter, str(error))
        self._loading = None

    def _fail(self, adapter: Adapter, why: str) -> None:
        adapter.error = why
        self._failed.add(adapter)

    def _make_room(self, size: int) -> None:
        for adapter in list(self._loaded):
            if self.nbytes + size <= self._limit:
                return
            assert adapter not in self._kept, "the same room was promised twice"
            self._drop(adapter)

    def _drop(self, adapter: Adapter) -> None:
        self._loaded.pop(adapter, None)
        self._let_go(adapter)
        adapter.updates = None

    def _open(self, folder: Path) -> tuple[AdapterFiles, Opened]:
        files = AdapterFiles(folder, self._names)
        return files, open_adapter(files, self._sites, self._dtype, self._device)

    @staticmethod
    def _changed(adapter: Adapter) -> str:
        return f"{adapter.folder} changed while adapter {adapter.name!r} was registered: unload it, and load it again"
