"""Engine: requests in, tokens out, one step at a time. Deals in tokens only; text is headrace/text's business.

add -> [ plan -> reserve -> extend -> build_batch -> forward -> sample -> commit ] * -> Deltas
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import secrets

from headrace import kernels
from headrace.config import EngineConfig
from headrace.errors import ConfigError
from headrace.forward.adapters import Adapters
from headrace.forward.decoder import Decoder
from headrace.forward.lane import Lane
from headrace.forward.memory import make_cache, plan_memory
from headrace.forward.runner import Runner
from headrace.forward.shrinking import Prompts
from headrace.forward.start import start
from headrace.sample import draw
from headrace.sample.constrained import constraints_of
from headrace.sample.sampler import Sampler
from headrace.schedule.bounds import Bounds
from headrace.schedule.queues import Budget, Queues
from headrace.speculate.draft import Speculator
from headrace.speculate.second import Auxiliary
from headrace.stats import Counters, Stats
from headrace.switch.turns import Turns
from headrace.types import (
    Accepted,
    Delta,
    FinishReason,
    Request,
    Sequence,
    Span,
    Status,
    StepPlan,
    StepResult,
)
from headrace.weight.load import Progress

_log = logging.getLogger(__name__)


class Engine:
    """One model, one stack, many requests."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        decoder: Decoder | None = None,
        progress: Progress | None = None,
        poison: bool = False,
    ) -> None:
        """Composes the stack, checks memory, loads the model. Raises ConfigError before anything heavy is done.

        decoder: run this one instead of loading config.model. poison: free pages hold NaN (tests).
        """
        started = start(config, decoder, progress)
        self.config, self.path, self.stack, self.architecture, *_ = started
        self.defaults = started.defaults
        config, decoder, device, dtype = started.config, started.decoder, started.device, started.dtype
        self.policy = self.stack.one("policy")
        memory = plan_memory(config, self.architecture, self.stack, self.policy.longest_span, dtype, device)
        self.context = memory.context
        """Longest prompt plus output that this engine takes."""
        self.kv = make_cache(config, self.architecture, self.stack, memory.kv_bytes, dtype, device, poison)
        self.decoder, self.device = decoder, device
        self.queues = Queues()
        self.runner = Runner(decoder, self.kv, record=device.type == "cpu" and self.stack.recordable())
        self.budget = Budget(max_seqs=config.max_seqs)
        works = (self.policy, self.budget, self.queues, self.kv, self.runner)
        self.lanes = [Lane(*works, self.context, device, config.preempt == "swap")]
        """This model, and with a switcher a second one."""
        switcher = self.stack.one("switcher")
        self.lanes += [] if switcher is None else [self._open(switcher.model).lane]
        self.turns = Turns(switcher, self.lanes)
        self.adapters = Adapters(config, self.path, decoder, self.queues, self.runner.let_go)
        constraints = constraints_of(self.path, self.architecture, self.stack.one("grammar"))
        sampled = (self.stack.members["processors"], self.architecture.eos)
        choose = self.stack.one("verifier").choose
        self.sampler = Sampler(*sampled, constraints, choose, self.turns.speaks)
        places = (self.kv.tables, self.queues, self.context, self.policy.longest_span)
        self.speculator = Speculator(self.stack, self._open, self.sampler.forced, *places)
        self.prompts = Prompts(self.stack.one("shrinker"), decoder, self.queues, self.sampler.start)
        self._bounds = Bounds(self.architecture, self.context, config.max_waiting)
        self.counters, self._ids = Counters(), itertools.count(1)
        self.last_plan = StepPlan(())
        """What the last step ran."""
        self.resting: set[str] = set()
        """Requests that keep their pages, if nobody needs them, and do not run."""
        self._requests: dict[str, list[int]] = {}
        _log.info("stack: %s", self.stack.describe())

    def _open(self, model: str) -> Auxiliary:
        from headrace.auxiliary import open_beside  # which is an engine itself

        return open_beside(self, model)

    # ---- requests ----

    def add(self, request: Request) -> None:
        """Queues a request. Raises ConfigError, and changes nothing, if it can never run or too many wait already."""
        self.check(request)
        params = request.params
        self._check_room(request.id, params.n)
        seed = secrets.randbits(62) if params.seed is None else params.seed
        adapter = self.adapters.find(request.adapter) if request.adapter else None
        first: Sequence | None = None
        for index in range(params.n):
            seq = Sequence(
                id=next(self._ids),
                request=request,
                index=index,
                seed=draw.child_seed(seed, index),
                tokens=list(request.prompt),
                prompt_len=len(request.prompt),
                num_scored=params.prompt_logprobs_start,
                status=Status.WAITING if first is None else Status.HELD,
                parent=None if first is None else first.id,
                adapter=adapter,
            )
            first = first or seq
            self._enter(seq)
            self.prompts.add(seq)

    def check(self, request: Request) -> None:
        """Raises ConfigError for a request that this engine could never run, however empty it is."""
        self._bounds.check(request)
        self.sampler.check(request.params)
        if request.adapter:
            self.adapters.find(request.adapter)

    def cancel(self, request: str, index: int | None = None) -> None:
        """Ends a request, or one of its samples, now. Unknown ids are ignored: it may have finished just before."""
        for seq in [self.queues[seq_id] for seq_id in self._requests.get(request, ())]:
            if index is None or seq.index == index:
                self._leave(seq, "cancelled")

    def pause(self, request: str) -> None:
        """Sets a request aside until `resume`, without pages; the tokens stay the same, as after a preemption."""
        for seq in map(self.queues.__getitem__, self._requests.get(request, ())):
            if seq.status is not Status.HELD:
                for lane in reversed(self.lanes):
                    lane.reset(seq.id, Status.PAUSED if lane is self.lanes[0] else Status.WAITING)

    def resume(self, request: str) -> None:
        """Lets it go on."""
        for seq_id in self._requests.get(request, ()):
            if self.queues[seq_id].status is Status.PAUSED:
                self.queues[seq_id].status = Status.WAITING

    def fork(self, request: str, new_id: str, *, index: int = 0, seed: int | None = None) -> None:
        """Starts `new_id` as a copy of a living sample: same tokens so far, same parameters, its own draws from here.

        Pages are shared until either writes to them. Raises ConfigError for an unknown sample, an id in use or a full
        queue.
        """
        parent = next(
            (self.queues[s] for s in self._requests.get(request, ()) if self.queues[s].index == index), None
        )
        if parent is None:
            raise ConfigError(f"request {request!r} has no living sample {index} to fork")
        self._check_room(new_id, 1)
        params = dataclasses.replace(parent.request.params, n=1)
        child = dataclasses.replace(
            parent,
            id=next(self._ids),
            request=dataclasses.replace(parent.request, id=new_id, params=params),
            index=0,
            seed=secrets.randbits(62) if seed is None else seed,
            tokens=list(parent.tokens),
            num_computed=0,
            status=Status.WAITING,
            parent=parent.id,
        )
        self._enter(child)
        self.prompts.fork(parent.id, child)
        self.sampler.fork(parent.id, child.id)
        self.turns.fork(parent.id, child.id)
        for lane in self.lanes:
            lane.share(parent.id, child)

    @property
    def busy(self) -> bool:
        """Whether anything could run."""
        alive = (Status.RUNNING, Status.WAITING, Status.SWAPPED)
        return any(seq.status in alive and seq.request.id not in self.resting for seq in self.queues)

    def stats(self) -> Stats:
        pool, beside = self.kv.tables.pool, self.turns.beside()
        return Stats(
            running=self.queues.count(Status.RUNNING) + beside,
            waiting=self.queues.count(Status.WAITING, Status.HELD, Status.PAUSED) - beside,
            swapped=self.queues.count(Status.SWAPPED),
            pages=len(pool),
            free_pages=pool.num_free,
            cached_pages=pool.num_evictable,
            counters=dataclasses.replace(self.counters, **self.kv.tables.moved),
            running_adapters=self.adapters.in_use(Status.RUNNING),
            waiting_adapters=self.adapters.in_use(Status.WAITING, Status.SWAPPED),
        )

    def describe(self) -> str:
        """Model, arithmetic and stack in one line."""
        dtype, cpu = str(self.decoder.dtype).removeprefix("torch."), self.device.type == "cpu"
        where = f"{kernels.threads()} threads, {kernels.isa()}" if cpu else str(self.device)
        return f"{self.config.model}, {dtype}, {where}, context {self.context}: {self.stack.describe()}"

    def close(self) -> None:
        """Ends every request and empties the prefix cache."""
        for request in list(self._requests):
            self.cancel(request)
        self.kv.tables.close()

    # ---- one step ----

    def step(self) -> list[Delta]:
        """Plans and runs one batch of each model; returns what it added to each sample. [] if nothing can run (yet).

        If it raises (out of memory, interrupted), no request is lost: running ones start over from their tokens.
        """
        if not self.busy:
            return []
        self.last_plan = StepPlan(())
        ready, failed = self.adapters.work(), self.adapters.failed()
        if failed or not ready:
            return [self._fail(seq, why) for seq, why in failed]
        try:
            self.prompts.work()
            self.turns.enter(self.prompts.pending)
            plans = [
                (lane, plan) for lane, plan in zip(self.lanes, self._plans(), strict=True) if not plan.idle
            ]
            if not plans:  # everybody's prompt is still being read, or grammar compiled
                return self.sampler.wait()
            done = [(lane, *self._run(lane, plan)) for lane, plan in plans]
            self.counters.steps += 1
            return [delta for one in done for delta in self.commit(*one)]
        except BaseException:
            self._start_over()
            raise

    def plan(self) -> StepPlan:
        """What the policy would run next of this model. Changes nothing."""
        return self.lanes[0].plan(self._unready(), self.turns.away(0))

    def _plans(self) -> list[StepPlan]:
        """Of each lane."""
        unready = self._unready()
        rest = {seq for name in self.resting for seq in self._requests.get(name, ())}
        plans = [lane.plan(unready, rest | self.turns.away(number)) for number, lane in enumerate(self.lanes)]
        assert unready or not all(plan.idle for plan in plans), f"no progress: {[p.reason for p in plans]}"
        return plans

    def _unready(self) -> set[int]:
        return self.sampler.compiling() | self.prompts.pending

    def _run(self, lane: Lane, plan: StepPlan) -> tuple[StepPlan, StepResult]:
        """One batch of one model; the plan comes back with its drafts. Nothing is written down yet."""
        plan = lane.kv.reserve(plan, lane.sequences)
        if not plan.spans:
            return plan, StepResult(())
        lane.kv.look_ahead(lane.queues.admissible())
        if lane is self.lanes[0]:
            plan = self.speculator.extend(plan)
        others = self.last_plan.spans  # of the lane before
        self.last_plan = dataclasses.replace(plan, spans=others + plan.spans) if others else plan
        self.sampler.look_ahead(plan.spans)
        logits, scores, sums = lane.run(plan, self.architecture.vocab)
        result = self.sampler(plan.spans, self.queues.sequences, logits, scores, sums)
        if lane is self.lanes[0]:
            self.speculator.observe(plan, result, logits)
        return plan, result

    def commit(self, lane: Lane, plan: StepPlan, result: StepResult) -> list[Delta]:
        """Writes down what happened. The only writer of Sequence."""
        for seq_id in plan.recompute:
            lane.reset(seq_id, Status.WAITING)
            self.counters.recomputes += 1
        for seq_id in plan.swap_out:
            lane.queues[seq_id].status = Status.SWAPPED
            self.counters.swaps += 1
        pairs = zip(plan.spans, result.accepted, strict=True)
        deltas = (self._commit_span(lane, span, accepted) for span, accepted in pairs)
        return [delta for delta in deltas if delta is not None]

    def _commit_span(self, lane: Lane, span: Span, accepted: Accepted) -> Delta | None:
        seq, own = self.queues[span.seq], lane.queues[span.seq]
        if own.status is not Status.RUNNING:
            self._count_admission(lane, seq, own, span.start)
            own.status = Status.RUNNING
        self.counters.computed_tokens += len(span)
        seq.num_scored += len(accepted.prompt_logprobs)
        seq.hidden_sum = accepted.hidden_sum or seq.hidden_sum
        embedding = accepted.hidden_sum.embedding if accepted.hidden_sum else b""
        lane.kv.settle(span, accepted.tokens)
        tokens, reason = self._take(seq, accepted.tokens)
        count, drafted = len(tokens), len(span.draft)
        over = self.turns.settle(seq.id, count, self.counters)
        own.num_computed = span.stop + (count - 1 if tokens or over else 0)
        self.counters.generated_tokens += count
        self.counters.drafted_tokens += drafted
        self.counters.accepted_tokens += min(drafted, max(0, len(accepted.tokens) - 1))
        if own.num_computed >= seq.prompt_len:
            self._release_held(seq)  # before pages that only they still need are freed
        lane.kv.advance(own)
        if embedding or accepted.error:
            reason = "error" if accepted.error else "stop"
        if reason is not None:
            self._leave(seq, reason)
        if not (tokens or accepted.prompt_logprobs or embedding or accepted.error):
            return None
        logprobs = accepted.logprobs[:count]
        scores, error = accepted.prompt_logprobs, accepted.error
        cached = seq.num_cached if embedding or (tokens and count == seq.num_generated) else 0
        ids, dropped = (seq.request.id, seq.index, seq.id), len(seq.request.prompt) - seq.prompt_len
        return Delta(*ids, tokens, logprobs, scores, reason, error, cached, embedding, dropped)

    def _take(self, seq: Sequence, tokens: tuple[int, ...]) -> tuple[tuple[int, ...], FinishReason | None]:
        """Appends tokens up to the one that ends the sequence."""
        params = seq.request.params
        ends = {*params.stop_token_ids, *(() if params.ignore_eos else self.architecture.eos)}
        for count, token in enumerate(tokens, 1):
            seq.tokens.append(token)
            if token in ends:
                return tokens[:count], "stop"
            if len(seq) >= self.context or seq.num_generated == params.max_tokens:
                return tokens[:count], "length"
        return tokens, None

    # ---- details ----

    def _check_room(self, request: str, count: int) -> None:
        if request in self._requests:
            raise ConfigError(f"a request called {request!r} is already running: choose another id")
        self._bounds.check_room(self.queues.count(Status.WAITING, Status.HELD), count)

    def _enter(self, seq: Sequence) -> None:
        self.queues.add(seq)
        self.sampler.start(seq)
        self.turns.add(seq)
        self._requests.setdefault(seq.request.id, []).append(seq.id)

    def _leave(self, seq: Sequence, reason: FinishReason) -> None:
        seq.status, seq.finish_reason = Status.FINISHED, reason
        for lane in self.lanes:
            lane.forget(seq.id)
        for part in (self.sampler, self.prompts, self.speculator, self.turns):
            part.forget(seq.id)
        rest = self._requests[seq.request.id]
        rest.remove(seq.id)
        if not rest:
            del self._requests[seq.request.id]
        heirs = self._held(seq)  # the first sample ended before its prompt did: the next one takes its place
        if heirs:
            heirs[0].status, heirs[0].num_scored = Status.WAITING, seq.num_scored
        for other in heirs[1:]:
            other.parent = heirs[0].id

    def _fail(self, seq: Sequence, why: str) -> Delta:
        self._leave(seq, "error")
        return Delta(seq.request.id, seq.index, seq.id, (), finish_reason="error", error=why)

    def _held(self, seq: Sequence) -> list[Sequence]:
        siblings = (self.queues[s] for s in self._requests.get(seq.request.id, ()))
        return [s for s in siblings if s.status is Status.HELD and s.parent == seq.id]

    def _release_held(self, first: Sequence) -> None:
        """The prompt is computed: the request's further samples go on from it."""
        if first.request.params.n > 1:
            for seq in self._held(first):
                seq.status, seq.num_scored = Status.WAITING, first.num_scored
                for lane in self.lanes:
                    lane.share(first.id, seq)

    def _count_admission(self, lane: Lane, seq: Sequence, own: Sequence, start: int) -> None:
        if (
            own.status is Status.WAITING
            and not seq.num_generated
            and lane is self.lanes[self.turns.first(seq.id)]
        ):
            seq.num_cached = start
            self.counters.prompt_tokens += len(seq.request.prompt)
            self.counters.cached_tokens += start
            self.counters.dropped_tokens += len(seq.request.prompt) - seq.prompt_len

    def _start_over(self) -> None:
        """After a step that failed half-way: every sequence waits, without pages, with the tokens it had."""
        self.prompts.restart()
        self.turns.restart()
        for seq in self.queues:
            stays = seq.status if seq.status in (Status.HELD, Status.PAUSED) else Status.WAITING
            for lane in reversed(self.lanes):
                lane.reset(seq.id, stays if lane is self.lanes[0] else Status.WAITING)
            self.sampler.start(seq)
