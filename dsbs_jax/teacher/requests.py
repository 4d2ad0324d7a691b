"""What a teacher is asked and what it answers: the types that every way of asking shares."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from typing import Any

# (role, content), the role one of `system`, `user`, `assistant`.
Message = tuple[str, str]
# The text to complete, or the messages of a chat.
Prompted = str | tuple[Message, ...]

# Part of every key: raise it when what is sent for the same request changes.
_KEY_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The parameters sent with each request.

    Attributes:
      max_tokens: the longest answer, in tokens.
      temperature: 0 for greedy answers; None leaves it to the server (some models refuse the parameter).
      top_p: the probability mass that is sampled from; 1 for all of it.
      stop: texts that end an answer; at most four for OpenAI.
      seed: where the server honours it: sample i of a row is asked with seed + i. None sends none.
      extra: more (name, value) pairs for the request's body, e.g. `(("top_k", 40),)`; values must be JSON.
    """

    max_tokens: int = 256
    temperature: float | None = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    extra: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.max_tokens, int) or self.max_tokens < 1:
            raise ValueError(f"Sampling: max_tokens is {self.max_tokens!r}; it must be a whole number of at least 1.")
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"Sampling: temperature is {self.temperature}; it must be at least 0.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p is {self.top_p}; it must be above 0 and at most 1.")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"Sampling: stop is {self.stop!r}; it must be a tuple of texts, none of them empty.")
        # gin and JSON give lists.
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "extra", tuple((str(name), value) for name, value in self.extra))
        try:
            json.dumps(dict(self.extra))
        except TypeError as error:
            raise ValueError(f"Sampling: extra is {self.extra!r}; its values must be JSON's ({error}).") from None

    @functools.cached_property
    def canonical(self) -> str:
        """The same text for the same parameters, whatever the order of `extra`."""
        return json.dumps(dataclasses.asdict(self) | {"extra": dict(self.extra)}, sort_keys=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """One question to the teacher.

    Attributes:
      row: the id of the row it is asked for, e.g. `train/17`.
      prompt: what is sent.
      sample: which of a row's samples (self-consistency) this is, from 0.
    """

    row: str
    prompt: Prompted
    sample: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What a teacher answered; an empty text is an answer too.

    Attributes:
      text: as it came.
      finish_reason: `stop`, `length` or what else the server says; None where it says nothing.
      prompt_tokens: as the server counted them, or None.
      completion_tokens: as the server counted them, or None.
    """

    text: str
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Failure:
    """A request without an answer.

    Attributes:
      reason: a code, e.g. `context_too_long`.
      message: what the teacher said, cut to a few hundred characters.
      final: asking again would not help. Otherwise the next start asks again.
    """

    reason: str
    message: str = ""
    final: bool = True


Outcome = Answer | Failure


@dataclasses.dataclass(frozen=True, slots=True)
class TryAgain:
    """An attempt that failed and may be repeated.

    Attributes:
      reason: a code, e.g. `status_500`, `timeout`, `malformed`.
      message: what happened.
      retry_after: seconds that the server asked to wait, or None.
      congested: the server has too much to do: fewer requests at a time.
      rate_limited: the server refused for its rate limit, which says nothing about the request.
      billed: the provider may charge for this attempt although its answer was lost.
    """

    reason: str
    message: str = ""
    retry_after: float | None = None
    congested: bool = False
    rate_limited: bool = False
    billed: bool = False


class TeacherError(RuntimeError):
    """Asking must end here, e.g. for a wrong key: a sentence that says what is wrong and what to do."""


def request_key(request: Request, model: str, sampling: Sampling) -> str:
    """What makes an answer reusable: a hash of prompt, model, parameters and sample index; 32 hexadecimal digits.

    Not of the row's id: two rows with the same text share one paid answer.
    """
    prompt = request.prompt
    last: tuple[str, ...]
    if isinstance(prompt, str):
        digest, last = _begun("text", model, sampling.canonical, ()), (prompt,)
    else:
        # Demonstrations are the same for all rows: only the last message is hashed for each.
        digest, last = _begun("chat", model, sampling.canonical, prompt[:-1]), prompt[-1]
    digest = digest.copy()
    _update(digest, *last, str(request.sample))
    return digest.hexdigest()


@functools.lru_cache(maxsize=64)
def _begun(kind: str, model: str, sampling: str, messages: tuple[Message, ...]) -> hashlib.blake2b:
    digest = hashlib.blake2b(digest_size=16)
    _update(digest, str(_KEY_VERSION), kind, model, sampling, str(len(messages)))
    for role, content in messages:
        _update(digest, role, content)
    return digest


def _update(digest: hashlib.blake2b, *parts: str) -> None:
    # Lengths keep apart what concatenation would merge; surrogates may come out of a dataset's broken escapes.
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(b"%d:" % len(data))
        digest.update(data)
