"""The engine process as the API process sees it: starts it, hands it requests, and starts it again if it dies.

A job is a request until its last sample has ended. When the engine dies, jobs that had not run are handed to the next
one; those that had end with EngineDied, because half of their answer may have been seen. None runs twice unnoticed:
a job that was waiting when two engines died ends, too, since it may be what kills them. An engine that says nothing
for STUCK_S, with a job to run, is killed.

A job whose events nobody takes is paused, so that they do not pile up.

    starting -> ready -> (dies) -> starting ...      five deaths in ten minutes -> failed
       any of them -> closed
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from headrace.config import EngineConfig
from headrace.errors import ConfigError, HeadraceError
from headrace.server.messages import (
    AdapterTold,
    Cancel,
    Failed,
    LoadAdapter,
    Pause,
    Ready,
    Refused,
    Resume,
    Stepped,
    Submit,
    UnloadAdapter,
    View,
)
from headrace.server.process import EngineProcess
from headrace.server.registry import Registry
from headrace.server.wire import Closed
from headrace.types import Delta, Request

MOST_DEATHS, DEATHS_WITHIN_S = 5, 600.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
"""Before the engine is started again: doubled at each death within DEATHS_WITHIN_S."""
MOST_TRIES = 2
"""Engines that a job may be handed to."""
STUCK_S = 60.0
"""So long may a step take."""
MOST_UNREAD, FEW_UNREAD = 1024, 256
"""Events of a call that wait to be taken: above the first its jobs are paused, below the second they go on."""
_log = logging.getLogger(__name__)


class EngineDied(HeadraceError):
    """The engine process ended while it ran this."""


class Unavailable(HeadraceError):
    """There is no engine at the moment; says why."""


class QueueFull(HeadraceError):
    """More than max_seqs + max_waiting samples are under way."""


class State(Enum):
    """Of the engine process."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    CLOSED = "closed"


Event = Delta | HeadraceError


@dataclass(eq=False)
class Job:
    """One request on its way."""

    request: Request
    events: asyncio.Queue[Event]
    """Shared by the jobs of one call. An error is the last."""
    unfinished: set[int]
    """Samples that have not ended."""
    running: bool = False
    paused: bool = False
    started: float | None = None
    """When it first ran, on the clock of time.perf_counter."""
    tries: int = 0


class EngineClient:
    """Belongs to one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        on_step: Callable[[Stepped], None] = lambda step: None,
        log_json: bool = False,
    ) -> None:
        """on_step: told of every step, before the jobs are. log_json: how the engine process writes its own log."""
        self.config = config
        self._adapters = Registry(config.adapters)
        self.state = State.STARTING
        self.why = "the engine is starting"
        """What an Unavailable says."""
        self.ready: Ready | None = None
        """What the engine said when it was ready; the last one's while the next one starts."""
        self.view: View | None = None
        """After the last step of the engine that runs now."""
        self.last_step = 0.0
        """When that was, on the monotonic clock."""
        self.restarts = 0
        self._on_step, self._log_json = on_step, log_json
        self._jobs: dict[str, Job] = {}
        self._deaths: collections.deque[float] = collections.deque(maxlen=MOST_DEATHS)
        self._engine: EngineProcess | None = None
        self._cause = ""
        self._life: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._owes_since: float | None = None

    # ---- the process ----

    async def start(self) -> Ready:
        """Starts the engine, and waits until it takes requests. Raises ConfigError for a configuration that cannot be,
        HeadraceError for anything else that went wrong."""
        await self._launch()
        self._life = asyncio.create_task(self._live(), name="engine")
        self._watching = asyncio.create_task(self._watch(), name="watchdog")
        assert self.ready is not None
        return self.ready

    async def close(self) -> None:
        """Ends the engine, and every job with Unavailable."""
        self.state, self.why = State.CLOSED, "the server is shutting down"
        for task in filter(None, (self._life, self._watching)):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._end_jobs(lambda job: Unavailable(self.why))
        self._adapters.end(Unavailable(self.why))
        await self._stop()

    async def _launch(self) -> None:
        engine = self._engine = await EngineProcess.start(self.config, log_json=self._log_json)
        try:
            message = await engine.receive()
            while not isinstance(message, Failed | Ready):
                message = await engine.receive()
            if isinstance(message, Failed):
                raise ConfigError(message.message) if message.user else HeadraceError(message.message)
            await self._load_all(engine, first=self.ready is None)
        except Closed:
            await self._stop()
            raise HeadraceError(f"the engine process ended while it was starting ({self._cause})") from None
        except HeadraceError:
            await self._stop()
            raise
        self.ready, self.state = message, State.READY
        self.last_step = time.monotonic()

    async def _live(self) -> None:
        """Reads what the engine says, for ever, through deaths and new starts."""
        while True:
            try:
                await self._read()
            except Closed:
                await self._bury()
            while self.state is State.STARTING:
                try:
                    await self._launch()
                except HeadraceError as error:
                    _log.error("the engine did not start again: %s", error)
                    await self._bury()
            if self.state is not State.READY:
                return
            self.restarts += 1
            _log.warning("the engine is back; %d requests were waiting for it", len(self._jobs))
            self._owes_since = time.monotonic()
            for job in self._jobs.values():
                self._hand_over(job)

    async def _read(self) -> None:
        assert self._engine is not None
        while True:
            message = await self._engine.receive()
            self._owes_since = time.monotonic()
            match message:
                case Stepped(deltas, admitted, view):
                    self.view, self.last_step = view, time.monotonic()
                    self._on_step(message)
                    for name in admitted:
                        if name in self._jobs:
                            self._jobs[name].started = time.perf_counter() - view.seconds
                            self._jobs[name].running = True
                    for delta in deltas:
                        self._deliver(delta)
                case Refused(name, text):
                    self._end_job(name, ConfigError(text))
                case AdapterTold(name, text):
                    self._adapters.told(name, text)
                case Failed(text, _):
                    _log.error("the engine failed: %s", text)

    async def _watch(self) -> None:
        """Kills an engine that is stuck; _live() does the rest."""
        while True:
            await asyncio.sleep(STUCK_S / 20)
            if self.state is State.READY and self.silence > STUCK_S and self._engine is not None:
                self._engine.kill(f"it gave no sign of life for {STUCK_S:g} s")

    @property
    def silence(self) -> float:
        """Seconds since the engine's last sign of life, or since it has something to do; 0 while it has nothing."""
        if self._owes_since is None or all(job.paused for job in self._jobs.values()):
            return 0.0
        return time.monotonic() - self._owes_since

    async def _bury(self) -> None:
        """The engine is dead: says so to everybody whom it concerns, and waits before the next one."""
        await self._stop()
        cause = self._cause
        self.view = None
        self.state, self.why = State.STARTING, f"the engine process died ({cause}) and is being started again"
        self._deaths.append(time.monotonic())
        lost = {job for job in self._jobs.values() if job.running or job.tries >= MOST_TRIES}
        self._end_jobs(
            lambda job: (
                EngineDied(f"the engine process died ({cause}) while it ran this: try again")
                if job in lost
                else None
            )
        )
        self._adapters.end(EngineDied(f"the engine process died ({cause}): try again"))
        _log.error(
            "the engine process died (%s): %d requests lost, %d wait", cause, len(lost), len(self._jobs)
        )
        recent = [at for at in self._deaths if self._deaths[-1] - at < DEATHS_WITHIN_S]
        if len(recent) == MOST_DEATHS:
            self.state = State.FAILED
            self.why = f"the engine process died {MOST_DEATHS} times, the last time by {cause}"
            self._end_jobs(lambda job: Unavailable(self.why))
            return
        await asyncio.sleep(min(FIRST_PAUSE_S * 2 ** (len(recent) - 1), LONGEST_PAUSE_S))

    async def _stop(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.stop()
            self._cause = engine.cause

    # ---- adapters ----

    @property
    def adapters(self) -> dict[str, str]:
        """Name -> folder: what the engine serves beside the base model, and the next one will."""
        return self._adapters.named

    async def load_adapter(self, name: str, folder: str) -> None:
        """Serves a folder by this name. Raises ConfigError if it cannot be, Unavailable or EngineDied."""
        if self.state is not State.READY or self._engine is None:
            raise Unavailable(self.why)
        told = self._adapters.ask(name, folder)
        self._engine.send(LoadAdapter(name, folder))
        await told

    def unload_adapter(self, name: str) -> None:
        """Serves it no more."""
        self.adapters.pop(name, None)
        if self._engine is not None and self.state is State.READY:
            self._engine.send(UnloadAdapter(name))

    async def _load_all(self, engine: EngineProcess, first: bool) -> None:
        """Tells a new engine of the adapters. first: one that cannot be served is an error; later, it is dropped."""
        for name, folder in list(self.adapters.items()):
            engine.send(LoadAdapter(name, folder))
            told = await engine.receive()
            assert isinstance(told, AdapterTold)
            if told.error and first:
                raise ConfigError(told.error)
            if told.error:
                _log.error("adapter %s is served no more: %s", name, told.error)
                del self.adapters[name]

    # ---- jobs ----

    def submit(self, requests: Sequence[Request], *, again: bool = True) -> list[Job]:
        """Hands requests to the engine, all or none; they are one call. Raises Unavailable, QueueFull or ConfigError.

        again: if the engine dies before it runs them, the next one does.
        """
        if self.state is not State.READY:
            raise Unavailable(self.why)
        limit = self.config.max_seqs + self.config.max_waiting
        under_way = sum(len(job.unfinished) for job in self._jobs.values())
        more = sum(request.params.n for request in requests)
        if more > limit:
            raise ConfigError(f"{more} samples, and this server takes {limit} at a time: ask for fewer")
        if under_way + more > limit:
            raise QueueFull(f"{under_way} samples are under way, of at most {limit}: try again later")
        events: asyncio.Queue[Event] = asyncio.Queue()
        tries = 0 if again else MOST_TRIES - 1
        jobs = [Job(request, events, set(range(request.params.n)), tries=tries) for request in requests]
        self._owe()
        for job in jobs:
            self._jobs[job.request.id] = job
            self._hand_over(job)
        return jobs

    async def deltas(self, jobs: Sequence[Job]) -> AsyncGenerator[Delta, None]:
        """What the engine adds to the jobs of one call, until all have ended. Raises EngineDied, Unavailable, or
        ConfigError if one is refused.

        Whoever stops listening cancels what is left of the call.
        """
        events = jobs[0].events
        try:
            while any(job.unfinished for job in jobs) or not events.empty():
                event = await events.get()
                if isinstance(event, HeadraceError):
                    raise event
                yield event
                if events.qsize() < FEW_UNREAD:
                    self._resume(jobs)
        finally:
            for job in jobs:
                self.cancel(job)

    def cancel(self, job: Job, index: int | None = None) -> None:
        """Ends a job, or one of its samples; nothing more comes of it."""
        if self._jobs.get(job.request.id) is not job or (index is not None and index not in job.unfinished):
            return
        job.unfinished = set() if index is None else job.unfinished - {index}
        if not job.unfinished:
            del self._jobs[job.request.id]
        if self._engine is not None and self.state is State.READY:
            self._engine.send(Cancel(job.request.id, index))

    @property
    def pid(self) -> int | None:
        """The engine process, while there is one."""
        return self._engine.pid if self._engine is not None else None

    def __len__(self) -> int:
        """Jobs under way."""
        return len(self._jobs)

    def _owe(self) -> None:
        """The engine gets something to do: from now on its silence counts, unless it had something already."""
        if all(job.paused for job in self._jobs.values()):
            self._owes_since = time.monotonic()

    def _resume(self, jobs: Sequence[Job]) -> None:
        paused = [job for job in jobs if job.paused and job.unfinished]
        if not paused or self._engine is None:
            return
        self._owe()
        for job in paused:
            job.paused = False
            self._engine.send(Resume(job.request.id))

    def _hand_over(self, job: Job) -> None:
        assert self._engine is not None
        job.paused = False
        job.tries += 1
        self._engine.send(Submit(job.request))

    def _deliver(self, delta: Delta) -> None:
        job = self._jobs.get(delta.request)
        if job is None or delta.index not in job.unfinished:  # cancelled, and the engine did not know yet
            return
        if delta.finish_reason is not None:
            job.unfinished.discard(delta.index)
            if not job.unfinished:
                del self._jobs[delta.request]
        job.events.put_nowait(delta)
        if job.events.qsize() > MOST_UNREAD and job.unfinished and self._engine is not None:
            job.paused = True  # or is already: what was on its way comes
            self._engine.send(Pause(job.request.id))

    def _end_job(self, name: str, error: HeadraceError) -> None:
        job = self._jobs.pop(name, None)
        if job is not None:
            job.unfinished = set()
            job.events.put_nowait(error)

    def _end_jobs(self, error_of: Callable[[Job], HeadraceError | None]) -> None:
        for name, job in list(self._jobs.items()):
            error = error_of(job)
            if error is not None:
                self._end_job(name, error)
