"""Asking any OpenAI-compatible server, one request an answer: vLLM, Ollama, llama.cpp, or a hosted API."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import urllib.parse
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from dsbs_jax.teacher import replies
from dsbs_jax.teacher.asking import ask_each
from dsbs_jax.teacher.desk import Desk
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.requests import Failure, Outcome, Request, TryAgain

if TYPE_CHECKING:
    import openai

    from dsbs_jax.teacher.http_client import DirectClient

logger = logging.getLogger(__name__)

OPENAI_URL = "https://api.openai.com/v1"


@dataclasses.dataclass(frozen=True)
class OpenAITeacher:
    """A server that speaks the OpenAI protocol.

    Attributes:
      model: as the server calls it; part of every key.
      base_url: up to and with `/v1`, e.g. `http://localhost:8000/v1` for vLLM.
      api_key_variable: the environment variable that holds the key. The key itself is never written anywhere. Servers
        other than OpenAI's are asked without one where the variable is not set.
      api: `chat` (`/chat/completions`) or `completions`, for base models.
      max_tokens_name: OpenAI's reasoning models want `max_completion_tokens`.
      timeout_s: for one attempt, in seconds.
      concurrency: bounds of the requests in flight.
      patience: how long a request is tried.
      unwanted_in_a_row: the run stops where the first so many requests are all refused as wrong or too long. Until the
        first answer no refusal is final: its cause may lie in the parameters.
    """

    model: str
    base_url: str = OPENAI_URL
    api_key_variable: str = "OPENAI_API_KEY"
    api: replies.Api = "chat"
    max_tokens_name: str = "max_tokens"
    timeout_s: float = 120.0
    concurrency: Concurrency = Concurrency()
    patience: Patience = Patience()
    unwanted_in_a_row: int = 20

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("OpenAITeacher: model is empty; give the name under which the server offers it.")
        check_address(self.base_url)
        check_variable(self.api_key_variable)
        if self.api not in ("chat", "completions"):
            raise ValueError(f"OpenAITeacher: api is {self.api!r}; it must be 'chat' or 'completions'.")
        if self.timeout_s <= 0:
            raise ValueError(f"OpenAITeacher: timeout_s is {self.timeout_s}; it must be above 0.")

    async def work(self, desk: Desk) -> None:
        """See `asking.Teacher`.

        Raises:
          TeacherError: refusals and no answer, neither now nor in the journal.
        """
        secret = find_key(self.api_key_variable, self.base_url)
        url = self.base_url.rstrip("/") + replies.endpoint(self.api)
        async with open_client(self.base_url, secret, self.timeout_s) as (client, http):
            answered = False
            unwanted: list[tuple[Request, Failure]] = []

            async def ask(request: Request) -> Outcome | TryAgain:
                nonlocal answered
                fields = replies.body(request, self.model, desk.sampling, self.api, self.max_tokens_name)
                outcome = await send(client, http, url, fields)
                if not isinstance(outcome, Failure | TryAgain):
                    answered = True
                elif isinstance(outcome, Failure) and outcome.reason in replies.UNWANTED and not answered:
                    outcome = dataclasses.replace(outcome, final=False)
                    unwanted.append((request, outcome))
                    if len(unwanted) >= self.unwanted_in_a_row:
                        raise replies.refused_all(len(unwanted), outcome.message)
                    desk.refused(request)
                return outcome

            await ask_each(desk, ask, self.concurrency, self.patience)
            if desk.error is not None or not unwanted:
                return
            # An answer of an earlier start counts too: the last rows may be the ones that are refused.
            if not answered and not desk.journal.answers:
                raise replies.refused_all(len(unwanted), unwanted[-1][1].message)
            for refused, failure in unwanted:
                desk.confirm(refused, failure)


def check_address(base_url: str) -> None:
    """Refuses what is not an address, and one with a password in it, which messages and cards would repeat.

    Raises:
      ValueError: see above.
    """
    url = urllib.parse.urlsplit(base_url)
    if url.username is not None or url.password is not None:
        raise ValueError("base_url holds a user name or a password; put the key into an environment variable instead.")
    if url.scheme not in ("http", "https") or not url.hostname:
        raise ValueError(f"base_url is {base_url!r}; it must be like 'http://localhost:8000/v1'.")


def check_variable(variable: str) -> None:
    """Refuses what is no variable's name, e.g. the key itself, without repeating it.

    Raises:
      ValueError: see above.
    """
    if not (isinstance(variable, str) and re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", variable)):
        raise ValueError(
            "api_key_variable is not the name of an environment variable; put the key into one, e.g. OPENAI_API_KEY, "
            "and its name here."
        )


def find_key(variable: str, base_url: str) -> replies.Secret | None:
    """The key in an environment variable; None where there is none and the server is not OpenAI's.

    Raises:
      ValueError: OpenAI's server and no key, what cannot be one, or what cannot be a variable's name.
    """
    check_variable(variable)
    value = os.environ.get(variable, "").strip()
    host = urllib.parse.urlsplit(base_url).hostname or ""
    if not value:
        if host == "api.openai.com":
            # Some keys look like names, in lower case: what is not set may be one.
            named = variable if variable.isupper() else "that api_key_variable names"
            raise ValueError(f"{base_url} needs a key; put it into the environment variable {named}.")
        return None
    if not (value.isascii() and value.isprintable() and " " not in value):
        # Here, and without the value: later errors would repeat the header.
        raise ValueError(f"The environment variable {variable} holds characters that no key has; set it again.")
    if base_url.startswith("http:") and not replies.loopback(host):
        logger.warning("the key in %s goes to %s without encryption (http)", variable, host)
    return replies.Secret(value)


@contextlib.asynccontextmanager
async def open_client(
    base_url: str, secret: replies.Secret | None, timeout_s: float
) -> AsyncIterator[tuple[openai.AsyncOpenAI, DirectClient]]:
    """The SDK's client, and the connections under it.

    Raises:
      ImportError: the SDK or aiohttp is not installed.
    """
    try:
        import openai

        from dsbs_jax.teacher.http_client import DirectClient
    except ImportError as error:
        raise ImportError(
            f"Asking a server needs {error.name}; install it with: pip install 'dsbs_jax[teacher]'"
        ) from None
    http = DirectClient(base_url, timeout_s, secret)
    async with openai.AsyncOpenAI(
        base_url=base_url,
        api_key=secret.reveal() if secret else "none",
        timeout=timeout_s,
        max_retries=0,
        http_client=http,
    ) as client:
        yield client, http


async def send(client: openai.AsyncOpenAI, http: DirectClient, url: str, fields: dict[str, Any]) -> Outcome | TryAgain:
    """One attempt at one request.

    The first to a URL is the SDK's, the others repeat it with another body.

    Args:
      client: the SDK's client.
      http: the connections under it.
      url: the whole address.
      fields: the request's body.

    Raises:
      TeacherError: asking further is of no use.
    """
    import httpx
    import openai

    try:
        reply = await http.repeat(url, json.dumps(fields).encode())
        if reply is None:
            response = await client.post(url, cast_to=httpx.Response, body=fields)
            reply = response.status_code, dict(response.headers), response.text
    except openai.APIStatusError as error:
        reply = error.status_code, dict(error.response.headers), error.response.text
    except (openai.APITimeoutError, httpx.TimeoutException):
        return TryAgain("timeout", "no answer in time", congested=True, billed=True)
    except (openai.APIConnectionError, httpx.TransportError) as error:
        cause = error.__cause__ or error
        told = replies.short(str(cause))
        unsent = isinstance(cause, httpx.ConnectError)
        return TryAgain("no_connection" if unsent else "cut_connection", told, congested=unsent, billed=not unsent)
    # Outside of the handlers: no exception of the SDK, whose request holds the key, is in the chain of ours.
    return replies.read(*reply, http.secret)
