"""Reading what an OpenAI-compatible server sends: an answer, a reason to try again, or a row's or the run's end."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from dsbs_jax.teacher.pacing import retry_after
from dsbs_jax.teacher.requests import (
    Answer,
    Failure,
    Outcome,
    Request,
    Sampling,
    TeacherError,
    TryAgain,
)

Api = Literal["chat", "completions"]

CONTEXT_TOO_LONG = "context_too_long"
CONTENT_FILTER = "content_filter"
BAD_REQUEST = "bad_request"
# Of the row, or of every row: of the parameters, or of demonstrations that fill the context.
UNWANTED = (BAD_REQUEST, CONTEXT_TOO_LONG)

_LONGEST_MESSAGE = 300
# Shorter ones (`EMPTY`, `none`) are placeholders for servers that want no key.
_SHORTEST_SECRET = 8
_TOO_LONG = re.compile(
    r"context.{0,20}(length|size|window)|maximum.{0,20}(length|tokens)|too (long|large|many tokens)|"
    r"exceeds?.{0,40}tokens",
    re.IGNORECASE,
)
# `max_tokens` alone is above what the model ever writes, whatever the prompt.
_ANSWER_TOO_LONG = re.compile(r"max_\w*tokens\W.{0,60}too large|at most \d+ (completion|output) tokens", re.IGNORECASE)
# Codes of a 429 that waiting does not mend.
_NO_MONEY = ("insufficient_quota", "billing_not_active", "billing_hard_limit_reached")


@dataclasses.dataclass(frozen=True, slots=True)
class Secret:
    """A key that never shows: not in a repr, and not in what `hide` and `hide_bytes` return."""

    _value: str = dataclasses.field(repr=False)

    def reveal(self) -> str:
        """The key itself, for the header that carries it."""
        return self._value

    def hide_bytes(self, data: bytes) -> bytes:
        """The data without the key."""
        if len(self._value) < _SHORTEST_SECRET:
            return data
        return data.replace(self._value.encode(), b"[key]")

    def hide(self, text: str) -> str:
        """The text without the key, also where JSON's escapes write it in another way (`\\/`, `\\u003d`)."""
        if len(self._value) < _SHORTEST_SECRET:
            return text
        text = text.replace(self._value, "[key]")
        # JSON inside of JSON doubles the backslashes.
        return re.sub(self._escaped(), "[key]", text) if "\\" in text else text

    def _escaped(self) -> str:
        # `re` keeps what it has compiled.
        return "".join(rf"(?:\\*{re.escape(one)}|\\+u(?i:{ord(one):04x}))" for one in self._value)


_NO_SECRET = Secret("")


def endpoint(api: Api) -> str:
    """The path below the base URL."""
    return "/chat/completions" if api == "chat" else "/completions"


def loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def body(request: Request, model: str, sampling: Sampling, api: Api, max_tokens_name: str) -> dict[str, Any]:
    """What is sent for a request.

    Raises:
      ValueError: chat messages for the completions endpoint.
    """
    fields: dict[str, Any] = {"model": model}
    prompt = request.prompt
    if api == "completions":
        if not isinstance(prompt, str):
            raise ValueError(
                f"Row {request.row}: its prompt is a chat and api is 'completions'; render it as text, or ask 'chat'."
            )
        fields["prompt"] = prompt
    elif isinstance(prompt, str):
        fields["messages"] = [{"role": "user", "content": prompt}]
    else:
        fields["messages"] = [{"role": role, "content": content} for role, content in prompt]
    fields[max_tokens_name] = sampling.max_tokens
    if sampling.temperature is not None:
        fields["temperature"] = sampling.temperature
    if sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    if sampling.stop:
        fields["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        fields["seed"] = sampling.seed + request.sample
    return fields | dict(sampling.extra)


def read(status: int, headers: Mapping[str, str], content: str, secret: Secret = _NO_SECRET) -> Outcome | TryAgain:
    """What a server's reply means.

    Args:
      status: of HTTP.
      headers: with `retry-after` in lower case, or case-insensitive.
      content: the body, as text.
      secret: the key, which is taken out of every text that is kept.

    Raises:
      TeacherError: for a status that every other request would meet too.
    """
    if status == 200:
        return _read_answer(content, secret)
    return _read_error(status, headers, content, secret)


def _read_answer(content: str, secret: Secret) -> Outcome | TryAgain:
    def malformed(what: str) -> TryAgain:
        return TryAgain("malformed", f"{what}: {short(secret.hide(content))}", billed=True)

    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return malformed("the answer is not JSON")
    if not isinstance(fields, dict):
        return malformed("the answer is not a JSON object")
    if fields.get("error") and not fields.get("choices"):
        return TryAgain("error_in_answer", short(secret.hide(_error(content)[0])), congested=True)
    choices = fields.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return malformed("the answer has no choices")
    text = _text(choices[0])
    if text is None:
        return malformed("the first choice has no text")
    reason = choices[0].get("finish_reason")
    usage = fields.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Answer(
        secret.hide(text),
        secret.hide(reason) if isinstance(reason, str) else None,
        _tokens(usage.get("prompt_tokens")),
        _tokens(usage.get("completion_tokens")),
    )


def _text(choice: dict[str, Any]) -> str | None:
    if isinstance(choice.get("text"), str):
        return choice["text"]
    message = choice.get("message")
    if not isinstance(message, dict) or ("content" not in message and not message.get("refusal")):
        return None
    text = message.get("content")
    if text is None:
        # Refused, or all of max_tokens went into hidden reasoning.
        text = message.get("refusal") or ""
    if isinstance(text, list):
        parts = [part.get("text") for part in text if isinstance(part, dict)]
        text = "".join(part for part in parts if isinstance(part, str))
    return text if isinstance(text, str) else None


def _tokens(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read_error(status: int, headers: Mapping[str, str], content: str, secret: Secret) -> Outcome | TryAgain:
    message, code = _error(content)
    told = f"HTTP {status}: {short(secret.hide(message))}"
    if status == 429:
        if code in _NO_MONEY:
            raise TeacherError(f"The teacher's account has no credit left ({told}); start again when it has.")
        wait = retry_after(headers.get("retry-after"))
        return TryAgain("rate_limited", told, wait, congested=True, rate_limited=True)
    if status in (408, 409, 425) or status >= 500:
        wait = retry_after(headers.get("retry-after"))
        # A gateway that gave up (504) leaves behind a model that goes on, for money.
        return TryAgain(f"status_{status}", told, wait, congested=status in (503, 504, 529), billed=status == 504)
    if status == 401:
        raise TeacherError(f"The teacher refuses the key ({told}); see the environment variable of api_key_variable.")
    if status in (402, 403):
        raise TeacherError(f"The teacher refuses to answer ({told}); see what the key may do and what it may spend.")
    if status == 404:
        raise TeacherError(f"The teacher does not know this model or this address ({told}); see model and base_url.")
    if status == 413 or (status in (400, 422) and (code == "context_length_exceeded" or _prompt_too_long(message))):
        return Failure(CONTEXT_TOO_LONG, told)
    if status in (400, 422):
        return Failure(CONTENT_FILTER if code == "content_filter" else BAD_REQUEST, told)
    raise TeacherError(f"The teacher's server answers what no OpenAI-compatible server does ({told}); see base_url.")


def _prompt_too_long(message: str) -> bool:
    if _ANSWER_TOO_LONG.search(message) and "context" not in message.lower():
        return False
    return _TOO_LONG.search(message) is not None


def refused_all(count: int, message: str) -> TeacherError:
    """What ends a run that got refusals and no answer: their cause is in what all requests share."""
    return TeacherError(
        f"The teacher refused the first {count} requests as wrong ({message}); see the parameters that are sent "
        f"(max_tokens, max_tokens_name, temperature, extra), the length of the demonstrations, and the endpoint (api)."
    )


def _error(content: str) -> tuple[str, str]:
    """(message, code) of an error's body, whatever its form."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return content, ""
    error = fields.get("error", fields) if isinstance(fields, dict) else fields
    if not isinstance(error, dict):
        return str(error), ""
    message = error.get("message") or error.get("detail") or content
    return str(message), str(error.get("code") or error.get("type") or "")


def short(text: str) -> str:
    """One line of a few hundred characters."""
    text = " ".join(text[: 4 * _LONGEST_MESSAGE].split())
    return text if len(text) <= _LONGEST_MESSAGE else text[:_LONGEST_MESSAGE] + "..."
