"""A teacher in process: a causal language model of transformers in a folder, for small models and tests.

For large models a server (vLLM) is the better place: it batches continuously and uses several devices.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any, Literal

from dsbs_jax.teacher.asking import ask_each
from dsbs_jax.teacher.desk import Desk
from dsbs_jax.teacher.pacing import Concurrency, Patience
from dsbs_jax.teacher.replies import CONTEXT_TOO_LONG, Api
from dsbs_jax.teacher.requests import (
    Answer,
    Failure,
    Message,
    Outcome,
    Prompted,
    Request,
    Sampling,
    TryAgain,
    request_key,
)

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
# Of each weight file so many pieces of so many bytes are looked at: models of one shape have files of one size.
_PIECES = 64
_PIECE_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class LocalTeacher:
    """A folder with a causal language model and its tokenizer, as `save_pretrained` writes them.

    With temperature 0 answers are greedy. Otherwise each is drawn by `Sampling.seed` and its request alone: it
    does not depend on which others share its batch.

    Attributes:
      model_folder: config.json, weights, and the tokenizer's files.
      name: the model's name in keys; None takes the folder's name and a digest of what lies there. Another model needs
        another name.
      api: the kind of prompt: `chat` for a tokenizer with a chat template, `completions` for a base model.
      batch_size: requests that are generated together.
      device: `cpu`, `cuda`, `cuda:1`, ...; None takes a GPU where there is one.
      dtype: of weights and activations; `auto` as they were saved.
    """

    model_folder: str
    name: str | None = None
    api: Api = "chat"
    batch_size: int = 8
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        if self.api not in ("chat", "completions"):
            raise ValueError(f"LocalTeacher: api is {self.api!r}; it must be 'chat' or 'completions'.")
        if self.batch_size < 1:
            raise ValueError(f"LocalTeacher: batch_size is {self.batch_size}; it must be at least 1.")

    @functools.cached_property
    def model(self) -> str:
        """The name that is part of every key."""
        folder = Path(self.model_folder).resolve()
        # Where there is no model `work` says so.
        return self.name or (f"{folder.name}-{_digest(folder)}" if (folder / "config.json").is_file() else folder.name)

    @property
    def max_tokens_name(self) -> str:
        """What `Sampling.max_tokens` is called where a request is shown; nothing is sent."""
        return "max_tokens"

    async def work(self, desk: Desk) -> None:
        """See `asking.Teacher`.

        Raises:
          FileNotFoundError: there is no model in the folder.
          ImportError: torch or transformers is not installed.
        """
        loaded = await asyncio.to_thread(self._load)
        batches = _Batches(loaded, self.model, desk.sampling, self.batch_size)
        running = asyncio.create_task(batches.run())
        try:
            # Twice a batch: while one is generated the next one gathers.
            size = 2 * self.batch_size
            await ask_each(desk, batches.ask, Concurrency(size, 1, size), Patience(attempts=1))
        finally:
            running.cancel()
            await asyncio.wait({running})

    def _load(self) -> _Loaded:
        folder = Path(self.model_folder)
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"{folder} holds no config.json; model_folder must be a folder as save_pretrained writes it."
            )
        try:
            import torch
            from transformers import AutoModelForCausalLM, AutoTokenizer
        except ImportError as error:
            raise ImportError(
                f"A local teacher needs {error.name}; install it with: pip install 'dsbs_jax[local-teacher]'"
            ) from None
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # Answers begin where prompts end: padding goes in front.
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype).to(device).eval()
        return _Loaded(model, tokenizer, device)


def _digest(folder: Path) -> str:
    """8 digits that differ between models: of config.json, and of each weight file its name, size and some pieces."""
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=4)
    for path in sorted(path for path in folder.iterdir() if path.suffix in _WEIGHTS and path.is_file()):
        size = path.stat().st_size
        digest.update(f"\0{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            for number in range(_PIECES):
                file.seek(number * max(0, size - _PIECE_BYTES) // (_PIECES - 1))
                digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class _Loaded:
    model: Any
    tokenizer: Any
    device: str

    def text(self, prompt: Prompted) -> str:
        """What the model reads; a system text opens the first user message where the chat template has no such role.

        Raises:
          ValueError: a chat, and no chat template or one that refuses its roles.
        """
        if isinstance(prompt, str):
            return prompt
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"The tokenizer in {self.tokenizer.name_or_path} has no chat template; render prompts as text."
            )
        import jinja2

        told = ""
        # Equal where there is no system text.
        for messages in dict.fromkeys((prompt, _folded(prompt))):
            fields = [{"role": role, "content": content} for role, content in messages]
            try:
                return self.tokenizer.apply_chat_template(fields, tokenize=False, add_generation_prompt=True)
            except jinja2.TemplateError as error:
                told = told or str(error)
        raise ValueError(
            f"The chat template of the tokenizer in {self.tokenizer.name_or_path} refuses the prompt's roles "
            f"({', '.join(role for role, _ in prompt)}: {told}); change the prompt, or render prompts as text."
        )

    def ids(self, prompt: Prompted) -> list[int]:
        # A template brings its own special tokens.
        return self.tokenizer(self.text(prompt), add_special_tokens=isinstance(prompt, str))["input_ids"]

    @property
    def longest(self) -> int:
        """The tokens of prompt and answer together that the model has positions for."""
        return getattr(self.model.config, "max_position_embeddings", None) or 1 << 30


def _folded(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    """The chat with its system texts at the head of the first user message; as it is where it has none."""
    system = [content for role, content in prompt if role == "system"]
    folded = [message for message in prompt if message[0] != "system"]
    first = next((number for number, (role, _) in enumerate(folded) if role == "user"), None)
    if first is None:
        return prompt
    folded[first] = ("user", "\n\n".join([*system, folded[first][1]]))
    return tuple(folded)


class _Batches:
    """Gathers requests that are asked one at a time into batches."""

    def __init__(self, loaded: _Loaded, model: str, sampling: Sampling, size: int):
        self._loaded = loaded
        self._model = model
        self._sampling = sampling
        self._size = size
        self._queue: asyncio.Queue[tuple[Request, asyncio.Future[Outcome | TryAgain]]] = asyncio.Queue()

    async def ask(self, request: Request) -> Outcome | TryAgain:
        """See `asking.Ask`."""
        future: asyncio.Future[Outcome | TryAgain] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((request, future))
        return await future

    async def run(self) -> None:
        """Generates until cancelled."""
        while True:
            batch = [await self._queue.get()]
            # The others that are on their way come in before this task's next turn.
            await asyncio.sleep(0.001)
            while len(batch) < self._size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            requests = [request for request, _ in batch]
            try:
                outcomes = await asyncio.to_thread(generate, self._loaded, self._model, requests, self._sampling)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            for (_, future), outcome in zip(batch, outcomes, strict=True):
                if not future.done():
                    future.set_result(outcome)


def generate(loaded: _Loaded, model: str, requests: list[Request], sampling: Sampling) -> list[Outcome]:
    """Answers a batch; prompts that leave no room for `max_tokens` fail by themselves."""
    ids = [loaded.ids(request.prompt) for request in requests]
    outcomes: list[Outcome | None] = [None] * len(requests)
    fitting = []
    for number, prompt in enumerate(ids):
        if not prompt or len(prompt) + sampling.max_tokens > loaded.longest:
            told = f"{len(prompt)} prompt tokens and {sampling.max_tokens} for the answer, of {loaded.longest}"
            outcomes[number] = Failure(CONTEXT_TOO_LONG if prompt else "empty_prompt", told)
        else:
            fitting.append(number)
    if fitting:
        answers = _generate(loaded, model, [requests[n] for n in fitting], [ids[n] for n in fitting], sampling)
        for number, answer in zip(fitting, answers, strict=True):
            outcomes[number] = answer
    return [outcome for outcome in outcomes if outcome is not None]


def _generate(
    loaded: _Loaded, model: str, requests: list[Request], ids: list[list[int]], sampling: Sampling
) -> list[Answer]:
    import torch
    from transformers import GenerationConfig

    tokenizer = loaded.tokenizer
    batch = tokenizer.pad({"input_ids": ids}, padding=True, return_tensors="pt").to(loaded.device)
    config = GenerationConfig(
        max_new_tokens=sampling.max_tokens,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=loaded.model.generation_config.eos_token_id or tokenizer.eos_token_id,
        stop_strings=list(sampling.stop) or None,
    )
    processors = []
    if sampling.temperature:
        processors = [
            functools.partial(_draw, sampling, [_generator(r, model, sampling, loaded.device) for r in requests])
        ]
    with torch.inference_mode():
        output = loaded.model.generate(
            **batch,
            generation_config=config,
            logits_processor=processors,
            tokenizer=tokenizer if sampling.stop else None,
        )
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or ())
    return [
        _answer(tokenizer, row, len(ids[n]), ends, sampling)
        for n, row in enumerate(output[:, batch["input_ids"].shape[1] :])
    ]


def _answer(tokenizer: Any, row: Any, prompt_tokens: int, ends: set[int], sampling: Sampling) -> Answer:
    tokens = row.tolist()
    end = next((n for n, token in enumerate(tokens) if token in ends), None)
    reason = "length" if end is None and len(tokens) >= sampling.max_tokens else "stop"
    written = tokens if end is None else tokens[:end]
    text = tokenizer.decode(written, skip_special_tokens=True)
    for stop in sampling.stop:
        # As servers do: the answer ends before the stop text.
        before, found, _ = text.partition(stop)
        if found:
            text, reason = before, "stop"
    return Answer(text, reason, prompt_tokens, len(written) + (end is not None))


def _generator(request: Request, model: str, sampling: Sampling, device: str) -> Any:
    import torch

    # The key holds prompt, parameters (with the seed) and sample: the same request draws the same answer.
    digest = hashlib.blake2b(request_key(request, model, sampling).encode(), digest_size=7).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big"))


def _draw(sampling: Sampling, generators: list[Any], _: Any, logits: Any) -> Any:
    """Logits whose maximum is a draw from the softmax (the Gumbel-max trick), each row by its own generator.

    Args:
      logits: [batch, vocabulary].
    """
    import torch

    logits = logits.float() / sampling.temperature
    if sampling.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        # Out is what lies behind the tokens that reach top_p; the first token always stays.
        out = share.cumsum(dim=-1) - share >= sampling.top_p
        logits = logits.masked_fill(out.gather(1, order.argsort(dim=-1)), float("-inf"))
    uniform = torch.stack([torch.rand(logits.shape[1], generator=g, device=logits.device) for g in generators])
    return logits - torch.log(-torch.log(uniform.clamp(min=1e-20, max=1 - 1e-7)))
