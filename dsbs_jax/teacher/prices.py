"""What asking costs: prices that the user gives, tokens counted or guessed, an estimate before anything is sent."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any

from dsbs_jax.teacher.requests import Prompted, Request, Sampling, request_key

# What a chat template adds around a message (OpenAI's: 3 or 4), and a bound for any template that is known.
_TOKENS_A_MESSAGE = 4
_TEMPLATE_BOUND = 32
# So many prompts are tokenised for an estimate; the rest is taken at their ratio of tokens to bytes.
_COUNTED = 2000


@dataclasses.dataclass(frozen=True)
class Prices:
    """Money for a million tokens, in any one currency.

    Attributes:
      prompt: per million prompt tokens.
      completion: per million completion tokens.
    """

    prompt: float
    completion: float

    def __post_init__(self) -> None:
        if self.prompt < 0 or self.completion < 0:
            raise ValueError(f"Prices: {self.prompt} and {self.completion} per million tokens; none may be negative.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The price of so many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


@dataclasses.dataclass(frozen=True)
class TokenCounter:
    """Counts a prompt's tokens.

    Attributes:
      name: says how, in words for the user.
      count: the number of tokens of a text.
      exact: False for a guess.
    """

    name: str
    count: Callable[[str], int]
    exact: bool

    def __call__(self, prompt: Prompted) -> int:
        """The number of tokens of a prompt; in a chat, 4 for each message's frame are assumed."""
        if isinstance(prompt, str):
            return self.count(prompt)
        return sum(self.count(content) + _TOKENS_A_MESSAGE for _, content in prompt)


def token_counter(tokenizer: str | None = None) -> TokenCounter:
    """A way to count tokens.

    Args:
      tokenizer: a folder with `tokenizer.json` (or that file), or `tiktoken:ENCODING` such as `tiktoken:o200k_base`.
        None guesses 4 bytes a token, which is about right for English prose and far off for other scripts.

    Raises:
      FileNotFoundError: the folder holds no tokenizer.json.
      ValueError: neither of these, an encoding that tiktoken cannot give, or a broken tokenizer.json.
      ImportError: tokenizers or tiktoken is not installed.
    """
    if tokenizer is None:
        return TokenCounter("approximately: 4 bytes a token", lambda text: -(-prompt_bytes(text) // 4), exact=False)
    if not isinstance(tokenizer, str):
        raise ValueError(
            f"The tokenizer is {tokenizer!r}; it must be a folder with tokenizer.json, or 'tiktoken:ENCODING'."
        )
    if tokenizer.startswith("tiktoken:"):
        encoding = _encoding(tokenizer.removeprefix("tiktoken:"))
        return _cached(f"by {tokenizer}", lambda text: len(encoding.encode(text, disallowed_special=())))
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is not there: the tokenizer must be a folder with tokenizer.json, or 'tiktoken:ENCODING'."
        )
    model = _tokenizer(path)
    return _cached(f"by the tokenizer {path}", lambda text: len(model.encode(text).ids))


def _encoding(name: str) -> Any:
    try:
        import tiktoken
    except ImportError:
        raise ImportError("Counting tokens by tiktoken needs tiktoken; install it with: pip install tiktoken") from None
    try:
        return tiktoken.get_encoding(name)
    except (ValueError, OSError) as error:
        # Of another name, or not to be downloaded; tiktoken says it in several lines.
        told = " ".join(str(error).split())[:200]
        raise ValueError(
            f"tiktoken has no encoding {name!r} at hand ({told}); name one that it knows, e.g. 'tiktoken:o200k_base', "
            f"and let it be downloaded once."
        ) from None


def _tokenizer(path: Path) -> Any:
    try:
        import tokenizers
    except ImportError:
        raise ImportError(
            f"Counting tokens by {path} needs tokenizers; install it with: pip install tokenizers"
        ) from None
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        # The library raises bare exceptions.
        raise ValueError(
            f"{path} is not a tokenizer.json that tokenizers {tokenizers.__version__} can read ({error}); save it "
            f"anew, or leave the tokenizer out to count approximately."
        ) from None


def _cached(name: str, count: Callable[[str], int]) -> TokenCounter:
    # Demonstrations come back in every prompt.
    return TokenCounter(name, functools.lru_cache(maxsize=1024)(count), exact=True)


def prompt_bytes(prompt: Prompted) -> int:
    """The prompt's text in UTF-8, in bytes."""
    if isinstance(prompt, str):
        return len(prompt) if prompt.isascii() else len(prompt.encode("utf-8", "surrogatepass"))
    return sum(prompt_bytes(content) for _, content in prompt)


def prompt_tokens_at_most(prompt: Prompted) -> int:
    """A bound on a prompt's tokens: no tokenizer makes more tokens than bytes, template aside."""
    messages = 1 if isinstance(prompt, str) else len(prompt) + 1
    return prompt_bytes(prompt) + _TEMPLATE_BOUND * messages


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What asking would take.

    Attributes:
      requests: that would be sent: answered ones and repeated texts are not.
      already: requests that the journal holds.
      shared: requests with the text of another one, whose answer they share.
      prompt_tokens: of the requests to send.
      completion_tokens_at_most: every answer as long as `max_tokens`.
      cost_at_most: for these tokens; None without prices.
      counted: how prompt tokens were counted.
    """

    requests: int
    already: int
    shared: int
    prompt_tokens: int
    completion_tokens_at_most: int
    cost_at_most: float | None
    counted: str

    def text(self) -> str:
        """For people."""
        money = "no prices were given" if self.cost_at_most is None else f"at most {self.cost_at_most:.2f}"
        return (
            f"{self.requests} requests ({self.already} answered already, {self.shared} with another one's text), "
            f"{self.prompt_tokens} prompt tokens (counted {self.counted}), "
            f"at most {self.completion_tokens_at_most} completion tokens, cost: {money}"
        )


def estimate(
    requests: Iterable[Request],
    model: str,
    sampling: Sampling,
    counter: TokenCounter,
    prices: Prices | None = None,
    done: Container[str] = (),
) -> Estimate:
    """Requests, tokens and money, before anything is sent. Retries after lost answers are not foreseen.

    Args:
      requests: read once, in constant memory but for 16 bytes a key.
      model: as asked; part of what makes an answer reusable.
      sampling: the parameters sent along.
      counter: see `token_counter`. It counts the first 2,000 prompts; the rest is taken at their tokens per byte.
      prices: per million tokens.
      done: keys that need no asking: the journal.
    """
    seen: set[bytes] = set()
    already = shared = counted_tokens = counted_bytes = rest_bytes = 0
    number = itertools.count()
    for request in requests:
        key = request_key(request, model, sampling)
        if key in done:
            already += 1
        elif bytes.fromhex(key) in seen:
            shared += 1
        else:
            seen.add(bytes.fromhex(key))
            size = prompt_bytes(request.prompt)
            if next(number) < _COUNTED:
                counted_tokens += counter(request.prompt)
                counted_bytes += size
            else:
                rest_bytes += size
    tokens = counted_tokens + (round(rest_bytes * counted_tokens / counted_bytes) if counted_bytes else 0)
    how = counter.name if not rest_bytes else f"{counter.name}, on the first {_COUNTED}"
    completion = len(seen) * sampling.max_tokens
    cost = prices.cost(tokens, completion) if prices else None
    return Estimate(len(seen), already, shared, tokens, completion, cost, how)
