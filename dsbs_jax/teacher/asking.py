"""Asking a teacher: requests in, answers in the journal, in constant memory and through faults.

`ask_all` is for any teacher; `ask_each` is the loop of teachers that take one request at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Protocol

from dsbs_jax.teacher.desk import Asked, Desk, Limits, Task
from dsbs_jax.teacher.journal import Journal, JournalError
from dsbs_jax.teacher.pacing import Concurrency, Patience, Window
from dsbs_jax.teacher.requests import (
    Failure,
    Outcome,
    Request,
    Sampling,
    TeacherError,
    TryAgain,
)

# One attempt. It never raises for what may go wrong in an attempt, only `TeacherError` for what ends the run.
Ask = Callable[[Request], Awaitable[Outcome | TryAgain]]


class Teacher(Protocol):
    """A way to ask."""

    @property
    def model(self) -> str:
        """The name that is part of every key."""

    async def work(self, desk: Desk) -> None:
        """Asks what the desk hands out until it hands out nothing more, or is stopping."""


def ask_all(
    requests: Iterable[Request],
    teacher: Teacher,
    journal: Journal,
    limits: Limits = Limits(),
    *,
    sampling: Sampling = Sampling(),
    retry_failures: bool = False,
    progress: Callable[[Asked], None] | None = None,
    progress_seconds: float = 1.0,
    commit_seconds: float = 0.005,
    grace_seconds: float = 20.0,
) -> Asked:
    """Asks everything that the journal does not hold yet; returns when every outcome is on disk.

    SIGINT (Ctrl-C) and SIGTERM end it cleanly: nothing more is sent, what is in flight gets `grace_seconds` to arrive,
    and what arrived is written. A second signal ends the waiting.

    Args:
      requests: read once, as they are needed.
      teacher: e.g. `OpenAITeacher`, `LocalTeacher`, `ProviderBatches`.
      journal: open for writing.
      limits: of cost and requests.
      sampling: the parameters of all requests; part of what makes an answer reusable.
      retry_failures: asks again where the journal holds a final failure.
      progress: is called with the account, at most every `progress_seconds`.
      progress_seconds: see there.
      commit_seconds: an answer waits so long for others before the fsync that it shares with them. A killed process
        loses at most the answers of this time, which had not counted.
      grace_seconds: how long a signal leaves to what is in flight.

    Returns:
      The account. Where `stopped` is set or requests are unfinished, the same call goes on.

    Raises:
      TeacherError: asking is of no use, e.g. a wrong key or model, or a server that is gone.
      JournalError: an answer could not be written.
    """
    if journal.path is None:
        raise JournalError(f"{journal.folder} is open for reading only; answers could not be written.")
    desk = Desk(
        requests,
        teacher.model,
        sampling,
        journal,
        limits,
        retry_failures=retry_failures,
        commit_seconds=commit_seconds,
        progress=progress,
        progress_seconds=progress_seconds,
    )
    return asyncio.run(_run(desk, teacher, progress, grace_seconds))


async def _run(desk: Desk, teacher: Teacher, progress: Callable[[Asked], None] | None, grace_seconds: float) -> Asked:
    """The teacher works and the desk writes, side by side, to the end or to a signal."""
    work = asyncio.create_task(teacher.work(desk))
    write = asyncio.create_task(desk.write())
    with _signals(desk, work, grace_seconds) as interrupted:
        try:
            await asyncio.wait({work, write}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # The writer ends first only where it cannot write: then nothing more may be asked.
            if not work.done():
                work.cancel()
            await asyncio.wait({work})
            desk.close()
            await write
    if not work.cancelled():
        work.result()
    elif not interrupted():
        raise asyncio.CancelledError
    if progress:
        progress(desk.asked())
    if desk.error is not None:
        raise desk.error
    return desk.asked()


@contextlib.contextmanager
def _signals(desk: Desk, work: asyncio.Task[None], grace_seconds: float) -> Iterator[Callable[[], bool]]:
    """Turns SIGINT and SIGTERM into an end of `work`: soon, and after `grace_seconds` or at a second signal at once."""
    loop = asyncio.get_running_loop()
    caught: list[str] = []

    def stop(name: str) -> None:
        if caught:
            work.cancel()
        else:
            desk.stop(name)
            timers.append(loop.call_later(grace_seconds, work.cancel))
        caught.append(name)

    timers: list[asyncio.TimerHandle] = []
    handled = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # Only the main thread may handle signals.
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            previous = signal.getsignal(number)
            loop.add_signal_handler(number, stop, number.name)
            handled.append((number, previous))
    try:
        yield lambda: bool(caught)
    finally:
        for timer in timers:
            timer.cancel()
        for number, previous in handled:
            loop.remove_signal_handler(number)
            if previous is not None:
                signal.signal(number, previous)


async def ask_each(desk: Desk, ask: Ask, concurrency: Concurrency, patience: Patience = Patience()) -> None:
    """Asks what the desk hands out, one request at a time and many at once, with retries.

    Args:
      desk: hands out requests and takes outcomes.
      ask: one attempt.
      concurrency: bounds of the requests in flight; between them the server decides.
      patience: how long a request is tried.
    """
    window = Window(concurrency)
    desk.concurrency = lambda: int(window.limit)
    # Requests that back off hold no slot of the window; this bounds them.
    room = asyncio.Semaphore(2 * concurrency.maximum)
    unfinished_in_a_row = 0

    async def finish(task: Task) -> None:
        nonlocal unfinished_in_a_row
        try:
            outcome = await _outcome(desk, ask, window, patience, task)
            if outcome is None:
                desk.forget(task)
            elif isinstance(outcome, Failure) and not outcome.final:
                desk.give_up(task, outcome.reason, outcome.message)
                unfinished_in_a_row += 1
                if unfinished_in_a_row >= patience.unfinished_in_a_row:
                    desk.fail(
                        TeacherError(
                            f"{unfinished_in_a_row} requests in a row came to nothing, the last by {outcome.reason} "
                            f"({outcome.message}); see whether the teacher is up, and start again to go on."
                        )
                    )
            else:
                unfinished_in_a_row = 0
                await desk.deliver(task, outcome)
        except Exception as error:
            desk.fail(error)
        finally:
            room.release()

    async with asyncio.TaskGroup() as group:
        while not desk.stopping.is_set():
            await room.acquire()
            try:
                task = await desk.next()
            except Exception as error:
                # A row that cannot be read must not cost the answers that are on their way.
                desk.fail(error)
                break
            if task is None:
                break
            group.create_task(finish(task))


async def _outcome(desk: Desk, ask: Ask, window: Window, patience: Patience, task: Task) -> Outcome | None:
    """Tries a request until it has an outcome; None where the run ends before."""
    failures = refusals = 0
    while True:
        while (pause := window.pause_left()) > 0 and not desk.stopping.is_set():
            await desk.sleep(pause)
        taken_at = await window.acquire()
        try:
            if window.pause_left() > 0 and not desk.stopping.is_set():
                continue
            if desk.stopping.is_set() or not await desk.reserve(task):
                return None
            try:
                reply = await ask(task.request)
            except BaseException as error:
                # Of what is cancelled nobody will know whether it is charged for.
                desk.lost(task, "cut_off", billed=not isinstance(error, TeacherError))
                raise
            if not isinstance(reply, TryAgain):
                window.grow()
                return reply
            desk.lost(task, reply.reason, billed=reply.billed)
            if reply.retry_after is not None and reply.retry_after > patience.longest_retry_after:
                raise TeacherError(
                    f"The teacher asks to wait {reply.retry_after:.0f} s ({reply.message}); start again then."
                )
            if reply.congested:
                window.shrink(taken_at, reply.retry_after)
        finally:
            window.release()
        if reply.rate_limited:
            refusals += 1
        else:
            failures += 1
        if failures >= patience.attempts or refusals >= patience.rate_limited:
            return Failure(reply.reason, reply.message, final=False)
        wait = patience.backoff(refusals if reply.rate_limited else failures)
        if reply.retry_after is not None:
            # A little later than asked, and not all at once.
            wait = reply.retry_after + random.random() * patience.first_seconds
        await desk.sleep(wait)
        if desk.stopping.is_set():
            return None
