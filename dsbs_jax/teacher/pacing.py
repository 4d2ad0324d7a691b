"""How many requests at a time, and how long to wait: adaptive concurrency, back-off, Retry-After."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import email.utils
import random
import time
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Concurrency:
    """Bounds of the number of requests in flight.

    Attributes:
      start: at first; doubles as answers come, until the server is congested for the first time.
      minimum: never fewer.
      maximum: never more.
    """

    start: int = 16
    minimum: int = 1
    maximum: int = 256

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.start <= self.maximum:
            raise ValueError(
                f"Concurrency: minimum {self.minimum}, start {self.start}, maximum {self.maximum}; they must be at "
                f"least 1 and in this order."
            )


@dataclasses.dataclass(frozen=True)
class Patience:
    """How long a request is tried.

    Attributes:
      attempts: of one request that fails by itself (errors, timeouts, lost answers) before its row is unfinished.
      rate_limited: of one request that the server's rate limit refuses, counted apart.
      first_seconds: the back-off before the second attempt is drawn from 0 to this; it doubles with every attempt.
      longest_seconds: no back-off of ours is longer.
      longest_retry_after: the run stops where a server asks to wait longer than this, in seconds.
      unfinished_in_a_row: the run stops after so many unfinished rows without an answer between them: the teacher
        is gone.
    """

    attempts: int = 10
    rate_limited: int = 100
    first_seconds: float = 0.5
    longest_seconds: float = 60.0
    longest_retry_after: float = 3600.0
    unfinished_in_a_row: int = 32

    def __post_init__(self) -> None:
        if min(self.attempts, self.rate_limited, self.unfinished_in_a_row) < 1:
            raise ValueError("Patience: attempts, rate_limited and unfinished_in_a_row must be at least 1.")
        if not 0 <= self.first_seconds <= self.longest_seconds:
            raise ValueError(
                f"Patience: first_seconds is {self.first_seconds}, longest_seconds {self.longest_seconds}; the first "
                f"must be at least 0 and at most the longest."
            )

    def backoff(self, failures: int, draw: Callable[[], float] = random.random) -> float:
        """Seconds to wait after so many failures (at least 1): exponential, full jitter.

        Exponential back-off and jitter (Brooker, AWS Architecture Blog, 2015): jitter from 0 keeps clients apart.
        """
        return draw() * min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 60))


def retry_after(value: str | None, now: Callable[[], float] = time.time) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or an HTTP date (RFC 9110, 10.2.3); None for neither."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now()
        except (ValueError, OverflowError):
            return None
    # NaN compares false.
    return max(seconds, 0.0) if seconds < float("inf") else None


class Window:
    """The slots for requests in flight: additive increase, multiplicative decrease (Chiu and Jain, 1989).

    As in TCP, the limit doubles each round trip until the first congestion, then grows by one a round trip and halves
    at a congestion, once for all requests that were in flight together.

    Attributes:
      limit: the present number of slots, not rounded.
      in_use: slots taken.
    """

    def __init__(self, bounds: Concurrency, clock: Callable[[], float] = time.monotonic):
        self.limit = float(bounds.start)
        self.in_use = 0
        self._bounds = bounds
        self._clock = clock
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._doubling = True
        self._decreased_at = float("-inf")
        self._paused_until = float("-inf")

    def pause_left(self) -> float:
        """Seconds until the server may be asked again; 0 or less for now."""
        return self._paused_until - self._clock()

    async def acquire(self) -> float:
        """Waits for a slot and returns the time at which it was taken, for `grow` and `shrink`."""
        if self.in_use >= int(self.limit) or self._waiting:
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                # `_wake` takes the slot for us.
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self.release()
                raise
        else:
            self.in_use += 1
        return self._clock()

    def release(self) -> None:
        """Gives a slot back."""
        self.in_use -= 1
        self._wake()

    def grow(self) -> None:
        """An answer came, its slot still taken. Unused slots say nothing about what the server can take."""
        if self.in_use < int(self.limit):
            return
        step = 1.0 if self._doubling else 1.0 / self.limit
        self.limit = min(self.limit + step, float(self._bounds.maximum))
        self._wake()

    def shrink(self, taken_at: float, pause: float | None = None) -> None:
        """The server is congested.

        Args:
          taken_at: when the slot of the request that met it was taken.
          pause: seconds in which nothing more is sent, by the server's Retry-After.
        """
        if pause is not None:
            self._paused_until = max(self._paused_until, self._clock() + pause)
        if taken_at > self._decreased_at:
            self._doubling = False
            self._decreased_at = self._clock()
            self.limit = max(self.limit / 2, float(self._bounds.minimum))

    def _wake(self) -> None:
        while self._waiting and self.in_use < int(self.limit):
            future = self._waiting.popleft()
            if not future.done():
                self.in_use += 1
                future.set_result(None)
