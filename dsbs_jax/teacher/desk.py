"""The account of one run of asking: hands out what is still to be asked, keeps the budget, writes what comes back."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable

from dsbs_jax.teacher.journal import Journal, Record
from dsbs_jax.teacher.prices import Prices, prompt_tokens_at_most
from dsbs_jax.teacher.requests import Answer, Failure, Outcome, Request, Sampling, request_key

# Answers that wait to be written, at most; whoever delivers more waits.
_UNWRITTEN = 4096
# Requests found in the journal before others get a turn.
_SKIPPED_IN_A_ROW = 1000

MAX_COST = "max_cost"
MAX_REQUESTS = "max_requests"


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds of one run, which are never exceeded: what a request may cost at most is set aside before it is sent.

    Attributes:
      max_cost: money, in the currency of `prices`; None for no bound.
      max_requests: requests sent, attempts that failed among them; None for no bound.
      prices: per million tokens; without them no cost is told.
    """

    max_cost: float | None = None
    max_requests: int | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.prices is None:
            raise ValueError("Limits: max_cost is set and prices are not; give the prices per million tokens.")
        if min(self.max_cost or 0, self.max_requests or 0) < 0:
            raise ValueError("Limits: max_cost and max_requests must not be negative.")


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a run has done so far.

    Attributes:
      requests: looked at: the sum of all below but `sent`, and of those in flight.
      already: found in the journal.
      shared: with the text of another request of this run, whose answer they share.
      answered: answers that are on disk.
      failed: final failures that are on disk, by reason.
      unfinished: requests that were given up for now, by reason; the next start asks them again.
      sent: attempts, retries among them.
      retried: attempts that failed, by reason.
      prompt_tokens: of this run's answers, where the teacher counts them.
      completion_tokens: likewise.
      cost: of this run, or None without prices. Lost answers that may be charged for count at their bound.
      concurrency: requests that may be in flight at present.
      seconds: since the run began.
      stopped: why it ended before its last request: `max_cost`, `max_requests`, `SIGINT`, `SIGTERM`; else None.
    """

    requests: int = 0
    already: int = 0
    shared: int = 0
    answered: int = 0
    failed: dict[str, int] = dataclasses.field(default_factory=dict)
    unfinished: dict[str, int] = dataclasses.field(default_factory=dict)
    sent: int = 0
    retried: dict[str, int] = dataclasses.field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    concurrency: int = 0
    seconds: float = 0.0
    stopped: str | None = None

    @property
    def nothing_new(self) -> bool:
        """Whether the journal is as it was."""
        return not (self.answered or self.failed)

    @property
    def complete(self) -> bool:
        """Whether every request now has an answer or a final failure in the journal."""
        return self.stopped is None and not self.unfinished

    @property
    def done(self) -> int:
        """Requests that are through, whatever came of them."""
        through = self.already + self.shared + self.answered
        return through + sum(self.failed.values()) + sum(self.unfinished.values())

    def text(self) -> str:
        """For people: the counts, and how to go on where something is left."""
        parts = [f"{self.answered} answers in {self.seconds:.0f} s ({self.already} were there, {self.shared} shared)"]
        for name in ("failed", "unfinished", "retried"):
            counts = getattr(self, name)
            if counts:
                listed = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.items()))
                parts.append(f"{name}: {listed}")
        parts.append(f"{self.prompt_tokens} prompt and {self.completion_tokens} completion tokens")
        if self.cost is not None:
            parts.append(f"cost {self.cost:.4f}")
        if self.stopped:
            parts.append(f"stopped by {self.stopped}")
        if not self.complete:
            parts.append("start again with the same settings to go on: what is answered is not asked twice")
        return "; ".join(parts)


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """A request that is to be asked, with its key and what it may cost at most."""

    key: str
    request: Request
    bound: float


class Desk:
    """Between the requests, the teacher and the journal; all of it but the writing runs in one event loop.

    Attributes:
      sampling: the parameters of all requests.
      journal: where outcomes go.
      stopping: set when nothing more shall be sent.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        model: str,
        sampling: Sampling,
        journal: Journal,
        limits: Limits = Limits(),
        *,
        retry_failures: bool = False,
        commit_seconds: float = 0.005,
        progress: Callable[[Asked], None] | None = None,
        progress_seconds: float = 1.0,
    ):
        self.sampling = sampling
        self.journal = journal
        self.stopping = asyncio.Event()
        self._requests = iter(requests)
        self._model = model
        self._limits = limits
        self._retry_failures = retry_failures
        self._commit_seconds = commit_seconds
        self._progress = progress
        self._progress_seconds = progress_seconds
        self._started = self._told = time.monotonic()
        self._error: Exception | None = None
        self._stopped: str | None = None
        self._counts: collections.Counter[str] = collections.Counter()
        self._failed: collections.Counter[str] = collections.Counter()
        self._unfinished: collections.Counter[str] = collections.Counter()
        self._retried: collections.Counter[str] = collections.Counter()
        # Keys handed out and not yet in the journal.
        self._open: set[str] = set()
        # Those among them that an earlier start has sent.
        self._adopted: set[str] = set()
        self._spent = self._reserved = 0.0
        self._in_flight = 0
        self._released = asyncio.Event()
        self._unwritten: list[tuple[Task, Outcome]] = []
        self._not_on_disk = 0
        self._filled = asyncio.Event()
        self._written = asyncio.Event()
        self._closed = False
        self.concurrency: Callable[[], int] = lambda: 0

    async def next(self) -> Task | None:
        """The next request that is neither answered nor being asked; None at the end or when stopping."""
        if self.stopping.is_set():
            return None
        for skipped, request in enumerate(self._requests, start=1):
            self._counts["requests"] += 1
            key = request_key(request, self._model, self.sampling)
            if key in self._adopted:
                self._adopted.discard(key)
            elif key in self._open:
                self._counts["shared"] += 1
            elif key in self.journal and not (self._retry_failures and self.journal.failed(key)):
                self._counts["already"] += 1
            else:
                self._open.add(key)
                return Task(key, request, self.bound(request))
            if skipped % _SKIPPED_IN_A_ROW == 0:
                await asyncio.sleep(0)
                self._tell()
            if self.stopping.is_set():
                return None
        return None

    async def reserve(self, task: Task) -> bool:
        """Sets aside what an attempt may cost; False where a limit does not allow it."""
        limit = self._limits.max_requests
        while not self.stopping.is_set():
            if limit is not None and self._counts["sent"] >= limit:
                self.stop(MAX_REQUESTS)
            elif self.affordable(task):
                self._reserved += task.bound
                self._in_flight += 1
                self._counts["sent"] += 1
                return True
            elif not self._in_flight:
                self.stop(MAX_COST)
            else:
                # What is in flight may turn out cheaper than its bound.
                self._released.clear()
                await self._released.wait()
        return False

    def adopt(self, key: str, bound: float) -> None:
        """A request that an earlier start has sent, and whose answer is awaited: not handed out, its cost set aside."""
        self._open.add(key)
        self._adopted.add(key)
        self._reserved += bound
        self._in_flight += 1

    def affordable(self, task: Task) -> bool:
        """Whether `reserve` would allow an attempt at once."""
        limit, most = self._limits.max_requests, self._limits.max_cost
        allowed = limit is None or self._counts["sent"] < limit
        return allowed and (most is None or self._spent + self._reserved + task.bound <= most)

    def lost(self, task: Task, reason: str, *, billed: bool) -> None:
        """An attempt came to nothing."""
        self._settle(task, task.bound if billed else 0.0)
        self._retried[reason] += 1

    def give_up(self, task: Task, reason: str, message: str) -> None:
        """The request stays without an outcome in this run; the journal says why."""
        self._unfinished[reason] += 1
        self._put(task, Failure(reason, message, final=False))

    def refused(self, request: Request) -> None:
        """An attempt was refused, which costs nothing; whether for good is told by `give_up`, `confirm` after it."""
        self._settle(Task("", request, self.bound(request)), 0.0)

    def confirm(self, request: Request, failure: Failure) -> None:
        """What was given up turns out to be final: counted and journalled as such."""
        self._unfinished[failure.reason] -= 1
        # `+` drops what is down to zero.
        self._unfinished = +self._unfinished
        final = dataclasses.replace(failure, final=True)
        self._put(Task(request_key(request, self._model, self.sampling), request, 0.0), final)

    def forget(self, task: Task) -> None:
        """The request was handed out and is not going to be asked: the run is ending."""
        self._open.discard(task.key)

    async def deliver(self, task: Task, outcome: Outcome) -> None:
        """Takes an outcome. It counts when it is on disk, a few milliseconds later."""
        cost = 0.0
        if isinstance(outcome, Answer) and self._limits.prices:
            known = outcome.prompt_tokens is not None and outcome.completion_tokens is not None
            cost = task.bound
            if known:
                cost = self._limits.prices.cost(outcome.prompt_tokens or 0, outcome.completion_tokens or 0)
        self._settle(task, cost)
        self._put(task, outcome)
        while len(self._unwritten) >= _UNWRITTEN and not self._closed:
            self._written.clear()
            await self._written.wait()

    async def written(self) -> None:
        """Waits until everything that was delivered is on disk."""
        while self._not_on_disk:
            self._written.clear()
            await self._written.wait()

    def _put(self, task: Task, outcome: Outcome) -> None:
        self._unwritten.append((task, outcome))
        self._not_on_disk += 1
        self._filled.set()

    def _settle(self, task: Task, cost: float) -> None:
        self._in_flight -= 1
        # Sums of floats in another order: nothing in flight is exactly nothing reserved.
        self._reserved = self._reserved - task.bound if self._in_flight else 0.0
        self._spent += cost
        self._released.set()

    def bound(self, request: Request) -> float:
        """What one attempt may cost at most; 0 without prices."""
        if self._limits.prices is None:
            return 0.0
        return self._limits.prices.cost(prompt_tokens_at_most(request.prompt), self.sampling.max_tokens)

    def stop(self, why: str) -> None:
        """Sends nothing more; the first reason is the one that is told."""
        if self._stopped is None and self._error is None:
            self._stopped = why
        self.stopping.set()
        self._released.set()

    def fail(self, error: Exception) -> None:
        """Sends nothing more, e.g. for a `TeacherError`. `ask_all` raises the first such error."""
        if self._error is None:
            self._error = error
        self.stopping.set()
        self._released.set()

    @property
    def error(self) -> Exception | None:
        """What `fail` was told first."""
        return self._error

    async def sleep(self, seconds: float) -> None:
        """Waits, or returns when the run is stopping."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.stopping.wait()

    async def write(self) -> None:
        """Writes outcomes in groups until `close`.

        Raises:
          JournalError: see `Journal.append`; the outcomes of that group do not count.
        """
        while not (self._closed and not self._unwritten):
            await self._filled.wait()
            if not self._closed and self._commit_seconds:
                # One fsync for all answers that come in this time.
                await asyncio.sleep(self._commit_seconds)
            group, self._unwritten = self._unwritten, []
            self._filled.clear()
            if self._closed:
                self._filled.set()
            if not group:
                continue
            records = [Record(task.key, task.request.row, task.request.sample, outcome) for task, outcome in group]
            await asyncio.to_thread(self.journal.append, records)
            for task, outcome in group:
                self._count(task, outcome)
            self._not_on_disk -= len(group)
            self._written.set()
            self._tell()

    def close(self) -> None:
        """Nothing more is going to be delivered."""
        self._closed = True
        self._filled.set()
        self._written.set()

    def _count(self, task: Task, outcome: Outcome) -> None:
        self._open.discard(task.key)
        if isinstance(outcome, Failure):
            if outcome.final:
                self._failed[outcome.reason] += 1
            return
        self._counts["answered"] += 1
        self._counts["prompt_tokens"] += outcome.prompt_tokens or 0
        self._counts["completion_tokens"] += outcome.completion_tokens or 0

    def _tell(self) -> None:
        if self._progress and time.monotonic() - self._told >= self._progress_seconds:
            self._told = time.monotonic()
            self._progress(self.asked())

    def asked(self) -> Asked:
        """The account at this moment."""
        names = ("requests", "already", "shared", "answered", "sent", "prompt_tokens", "completion_tokens")
        return Asked(
            **{name: self._counts[name] for name in names},
            failed=dict(self._failed),
            unfinished=dict(self._unfinished),
            retried=dict(self._retried),
            cost=self._spent if self._limits.prices else None,
            concurrency=self.concurrency(),
            seconds=time.monotonic() - self._started,
            stopped=self._stopped,
        )
