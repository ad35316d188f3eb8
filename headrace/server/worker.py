"""The engine process: `python -m headrace.server.worker FD`, with one end of a socket pair as file descriptor FD.

Between two steps it reads what has come: so a request joins the next batch, and a cancelled one leaves it. It ends when
the other end of the socket is closed: the API process owns it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import time

from headrace.config import EngineConfig
from headrace.engine import Engine
from headrace.errors import ConfigError
from headrace.meter import ProgressBar
from headrace.server.journal import JsonLines
from headrace.server.messages import (
    EXIT_ENGINE,
    AdapterTold,
    Cancel,
    Failed,
    FromEngine,
    LoadAdapter,
    Pause,
    Ready,
    Refused,
    Resume,
    SpanView,
    Start,
    Stepped,
    Submit,
    ToEngine,
    UnloadAdapter,
    View,
)
from headrace.server.wire import Closed, EngineEnd

_log = logging.getLogger(__name__)


class Worker:
    """One engine, driven by messages."""

    def __init__(self, engine: Engine, end: EngineEnd) -> None:
        self._engine, self._end = engine, end
        self._waiting: set[str] = set()  # requests that have not run yet

    def run(self) -> None:
        """Until the API process closes the socket: raises Closed then."""
        while True:
            was_busy = self._engine.busy
            messages = self._end.receive(wait=not was_busy)
            for message in messages:
                self._take(message)
            if self._engine.busy:
                self._end.send(self._step())
            elif was_busy or any(isinstance(message, Cancel) for message in messages):
                # the last request was cancelled or paused: no step says that its pages are free
                self._end.send(Stepped((), (), self._view(0.0, ())))

    def _take(self, message: ToEngine) -> None:
        match message:
            case Submit(request):
                try:
                    self._engine.add(request)
                    self._waiting.add(request.id)
                except ConfigError as error:
                    self._end.send(Refused(request.id, str(error)))
            case Cancel(name, index):
                self._engine.cancel(name, index)
                if index is None:
                    self._waiting.discard(name)
            case Pause(name):
                self._engine.pause(name)
            case Resume(name):
                self._engine.resume(name)
            case LoadAdapter(name, folder):
                self._end.send(AdapterTold(name, self._register(name, folder)))
            case UnloadAdapter(name):
                with contextlib.suppress(ConfigError):
                    self._engine.adapters.forget(name)
            case Start():
                raise Closed("a second Start")

    def _register(self, name: str, folder: str) -> str:
        """Why the adapter cannot be served; empty if it can."""
        try:
            self._engine.adapters.register(name, folder)
        except ConfigError as error:
            return str(error)
        return ""

    def _step(self) -> Stepped:
        ids = {seq.id: (seq.request.id, len(seq)) for seq in self._engine.queues}
        begin = time.perf_counter()
        deltas = self._engine.step()
        seconds = time.perf_counter() - begin
        plan = self._engine.last_plan
        spans = tuple(
            SpanView(s.seq, s.start, s.stop, len(s.draft), s.stop == ids[s.seq][1]) for s in plan.spans
        )
        admitted = tuple({ids[span.seq][0] for span in plan.spans} & self._waiting)
        self._waiting.difference_update(admitted)
        return Stepped(tuple(deltas), admitted, self._view(seconds, spans))

    def _view(self, seconds: float, spans: tuple[SpanView, ...]) -> View:
        return View(seconds, self._engine.stats(), spans)


def _ready(engine: Engine) -> Ready:
    return Ready(
        context=engine.context,
        vocab=engine.architecture.vocab,
        width=engine.architecture.width,
        eos=tuple(engine.architecture.eos),
        grammar=engine.stack.spec("grammar"),
        defaults=dict(engine.defaults),
        path=str(engine.path),
        facts=engine.describe(),
    )


def main(fd: int, log_json: bool = False) -> int:
    """Serves the socket `fd`. Returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal's process group: the API process decides
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    logging.basicConfig(format="headrace: engine: %(message)s", level=logging.WARNING)
    if log_json:
        logging.getLogger().handlers[0].setFormatter(JsonLines())
    end = EngineEnd(socket.socket(fileno=fd))
    try:
        first = next(iter(end.receive(wait=True)))
        assert isinstance(first, Start)
        config = EngineConfig.from_mapping(first.config, where="serve")
        with ProgressBar(None, "loading") as bar:
            engine = Engine(config, progress=bar.update)
        end.send(_ready(engine))
        Worker(engine, end).run()
    except Closed:
        return 0
    except ConfigError as error:
        _tell(end, Failed(str(error), user=True))
        return 2
    except Exception as error:
        _log.exception("the engine failed")
        _tell(end, Failed(f"{type(error).__name__}: {error}", user=False))
        return EXIT_ENGINE
    return 0


def _tell(end: EngineEnd, message: FromEngine) -> None:
    try:
        end.send(message)
    except Closed:
        _log.warning("nobody is left to hear it")


if __name__ == "__main__":
    code = main(int(sys.argv[1]), log_json="json" in sys.argv[2:])
    with contextlib.suppress(OSError):  # a full disk
        sys.stderr.flush()
    os._exit(code)  # no thread of a pool is waited for
