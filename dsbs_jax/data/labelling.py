"""A dataset's rows through a teacher: stage 1 of the method, from rows to a labelled folder that training reads.

For the folder see `label_folder.py`. Another prompt, model or parameter makes another folder beside the first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import itertools
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from dsbs_jax import __version__
from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.dataset import Dataset, Value
from dsbs_jax.data.find import OWN_TASKS, require_dataset
from dsbs_jax.data.label_card import UNANSWERED, Account, card_text
from dsbs_jax.data.label_folder import labelling_folder, open_folder
from dsbs_jax.data.label_progress import Progress
from dsbs_jax.files import write_whole
from dsbs_jax.schema import Example, TeacherOutput
from dsbs_jax.teacher import asking, prices
from dsbs_jax.teacher.agreement import agree, same_label
from dsbs_jax.teacher.desk import Asked, Limits
from dsbs_jax.teacher.filters import NO_GOLD_LABEL
from dsbs_jax.teacher.journal import Journal
from dsbs_jax.teacher.labelled import FORMATS, LabelledRow, labelled_file, read_labelled, write_labelled
from dsbs_jax.teacher.prompts import Prompt, make_prompt
from dsbs_jax.teacher.quality import measure
from dsbs_jax.teacher.replies import Api, body
from dsbs_jax.teacher.report import as_json, as_text
from dsbs_jax.teacher.report_html import as_html
from dsbs_jax.teacher.requests import Answer, Failure, Prompted, Request, Sampling, request_key

logger = logging.getLogger(__name__)

CARD = "card.json"


class Teacher(asking.Teacher, Protocol):
    """A way to ask that says which kind of prompt it takes."""

    @property
    def api(self) -> Api:
        """`chat` or `completions`."""

    @property
    def max_tokens_name(self) -> str:
        """What the server calls `Sampling.max_tokens`."""


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """One labelling of one split.

    Attributes:
      dataset: the name of a dataset.
      teacher: whom to ask, e.g. `OpenAITeacher`.
      output: the folder of all labellings of this dataset.
      split: one of the source's own; what is held out of train is labelled with it.
      data_dir: the folder that holds one folder per dataset.
      module: the Python module whose `DATASETS` hold the dataset.
      custom: a dataset described by values; wins over `dataset`.
      dataset_arguments: (name, value) pairs for the dataset's reader.
      prompt: a prompt file; empty for the one that comes with the dataset.
      demonstrations: how many to show, drawn by `demonstration_seed`; None for all.
      demonstration_seed: see there.
      zero_shot: shows no demonstrations.
      rationalise: shows the gold label; rows without one are not asked.
      samples: answers a row; the majority's label is the row's (self-consistency).
      sampling: the parameters sent; where `stop` is empty, the prompt's own are taken.
      limits: of cost and of requests.
      retry_failures: asks again where an earlier run met a final failure.
      shard: (index from 0, count): this process's share of the rows; several machines label one dataset.
      format: of the labelled rows, `jsonl` or `parquet`.
      tokenizer: to count tokens with; see `prices.token_counter`.
    """

    dataset: str
    teacher: Teacher
    output: str
    split: str = "train"
    data_dir: str | None = None
    module: str = OWN_TASKS
    custom: CustomDataset | None = None
    dataset_arguments: tuple[tuple[str, Value], ...] = ()
    prompt: str = ""
    demonstrations: int | None = None
    demonstration_seed: int = 0
    zero_shot: bool = False
    rationalise: bool = False
    samples: int = 1
    sampling: Sampling = Sampling()
    limits: Limits = Limits()
    retry_failures: bool = False
    shard: tuple[int, int] = (0, 1)
    format: str = "jsonl"
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard is {index}/{count}; it must be 0/{count} to {count - 1}/{count}.")
        if self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}; it must be one of {', '.join(FORMATS)}.")
        if not isinstance(self.samples, int) or self.samples < 1:
            raise ValueError(f"samples is {self.samples!r}; it must be a whole number of at least 1.")
        for name in ("demonstrations", "demonstration_seed"):
            if not isinstance(getattr(self, name), int | None):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a whole number.")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ValueError(
                f"{self.samples} samples of greedy answers would be one answer {self.samples} times: set "
                "Sampling.temperature (the macro TEMPERATURE), e.g. to 0.7."
            )


class Labelling:
    """One labelling, ready to be looked at, estimated, asked and written.

    Attributes:
      config: as asked for.
      dataset: the dataset.
      prompt: with its options applied.
      sampling: with the prompt's stop texts.
      identity: what decides the answers, as JSON values.
      folder: the labelling's own, by its identity.
      rows: the split's, in its order.
    """

    def __init__(self, config: LabelConfig):
        """Reads the rows and the prompt.

        Raises:
          FileNotFoundError, ValueError: for anything wrong with either.
        """
        self.config = config
        self.dataset = _with_parser(
            require_dataset(config.dataset, config.module, config.custom, config.dataset_arguments)
        )
        if not config.prompt and config.custom is not None:
            raise ValueError(f"Dataset {self.dataset.name!r} comes without a prompt: name a prompt file with --prompt.")
        self.prompt: Prompt = make_prompt(
            config.prompt or self.dataset.name,
            self.dataset.parse,
            self.dataset.label_set,
            demonstrations=config.demonstrations,
            seed=config.demonstration_seed,
            zero_shot=config.zero_shot,
            rationalise=config.rationalise,
        )
        stop = config.sampling.stop or self.prompt.stop
        self.sampling = dataclasses.replace(config.sampling, stop=stop)
        with _uncollected():
            self.rows: Sequence[Example] = self.dataset.source_rows(config.split, config.data_dir)
        identity = {
            "dataset": self.dataset.name,
            "model": config.teacher.model,
            "api": config.teacher.api,
            "prompt": dataclasses.asdict(self.prompt.as_sent()),
            "sampling": json.loads(self.sampling.canonical),
        }
        # As it reads back from a file: lists, not tuples.
        self.identity = json.loads(json.dumps(identity))
        self.folder = labelling_folder(config.output, self.identity)

    # -- Before anything is sent --

    def rendered(self, row: Example) -> Prompted:
        """What is sent for a row.

        Raises:
          ValueError: the row does not fit the prompt; names it.
        """
        try:
            if self.config.teacher.api == "completions":
                return self.prompt.completion(row.input, row.label)
            return self.prompt.chat(row.input, row.label)
        except ValueError as error:
            raise ValueError(f"{self.dataset.name}, row {row.id}: {error}") from None

    def requests(self) -> Iterator[Request]:
        """The requests of this shard, in the order of the rows."""
        for row in self._shard():
            yield from self._requests_of(row)

    def dry_run(self, n: int) -> str:
        """Exactly what would be sent for the first `n` rows, with token counts."""
        counter = prices.token_counter(self.config.tokenizer)
        teacher, lines = self.config.teacher, []
        for request in itertools.islice((request for request in self.requests() if request.sample == 0), n):
            prompt = request.prompt
            lines.append(f"=== {request.row}, {teacher.api}, {counter(prompt)} tokens (counted {counter.name})")
            if isinstance(prompt, str):
                lines.append(prompt)
            else:
                lines += [f"--- {role}\n{content}" for role, content in prompt]
            sent = body(request, teacher.model, self.sampling, teacher.api, teacher.max_tokens_name)
            parameters = {name: value for name, value in sent.items() if name not in ("prompt", "messages")}
            lines.append(f"--- with {json.dumps(parameters)}")
        return "\n".join(lines)

    def estimate(self) -> prices.Estimate:
        """Requests, tokens and money, before anything is sent; what the journal holds already is left out."""
        counter = prices.token_counter(self.config.tokenizer)
        teacher, limits = self.config.teacher, self.config.limits
        with Journal(self.folder / "journal", read_only=True) as journal:
            return prices.estimate(self.requests(), teacher.model, self.sampling, counter, limits.prices, journal)

    # -- Asking --

    def ask(self) -> Asked:
        """Asks what the journal does not hold yet, telling how it goes; see `asking.ask_all`."""
        open_folder(self.folder, self.identity)
        index, count = self.config.shard
        total = self.config.samples * sum(not self._left_out(row) for row in self._shard())
        with (
            Journal(self.folder / "journal", f"{self.config.split}-{index:05d}-of-{count:05d}") as journal,
            Progress(total) as progress,
        ):
            if journal.torn_bytes:
                logger.info("%d bytes of an answer that a killed run was writing were cut off.", journal.torn_bytes)
            return asking.ask_all(
                self.requests(),
                self.config.teacher,
                journal,
                self.config.limits,
                sampling=self.sampling,
                retry_failures=self.config.retry_failures,
                progress=progress,
                progress_seconds=progress.seconds,
            )

    # -- What came back --

    def write(self) -> dict[str, Any]:
        """Writes the labelled rows of the whole split and the card from what the journal holds.

        Returns:
          The card of this split.
        """
        open_folder(self.folder, self.identity)
        account = Account(self.config.samples, same_label(self.dataset.metric))
        with Journal(self.folder / "journal", read_only=True) as journal:
            path = self.folder / f"{self.config.split}.{self.config.format}"
            write_labelled(path, account.watched(self._labelled_rows(journal, account)))
            for suffix in FORMATS:
                if suffix != self.config.format:
                    path.with_suffix(f".{suffix}").unlink(missing_ok=True)
            card = account.card(self.config.limits.prices)
            card |= {"duplicates": journal.duplicates, "made_of": self._made_of()}
        cards_path = self.folder / CARD
        cards = json.loads(cards_path.read_text()) if cards_path.is_file() else {}
        cards[self.config.split] = card
        write_whole(cards_path, json.dumps(cards, indent=1) + "\n")
        write_whole(self.folder / "card.md", card_text(self.identity, cards))
        return card

    def written(self) -> dict[str, Any] | None:
        """The card of the labelled rows on disk, or None where `write` would make others: of other rows, read by
        another parser or version of this package, at other prices, or from a journal that has grown."""
        path, cards_path = self.folder / f"{self.config.split}.{self.config.format}", self.folder / CARD
        if not (path.is_file() and cards_path.is_file()):
            return None
        card = json.loads(cards_path.read_text()).get(self.config.split)
        journals = (self.folder / "journal").glob("*.jsonl")
        fresh = all(journal.stat().st_mtime_ns < path.stat().st_mtime_ns for journal in journals)
        return card if fresh and card and card.get("made_of") == self._made_of() else None

    def _made_of(self) -> dict[str, str | int]:
        """What decides the labelled rows besides the journal."""
        rows = hashlib.blake2b(digest_size=16)
        for row in self.rows:
            text = "\0".join((row.id, row.input, str(row.label), *row.choices, ""))
            rows.update(text.encode("utf-8", "surrogatepass"))
        dataset, code = self.dataset, hashlib.blake2b(digest_size=8)
        for module in ("parsers.py", "agreement.py"):
            code.update(Path(asking.__file__).with_name(module).read_bytes())
        return {
            "version": __version__,
            "code": code.hexdigest(),
            "rows": rows.hexdigest(),
            "samples": self.config.samples,
            "reading": repr((dataset.parse, dataset.label_set, dataset.metric)),
            "prices": repr(self.config.limits.prices),
        }

    def report(self) -> str:
        """Judges the labelled rows; leaves `{split}.report.json` and `{split}.report.html` beside them.

        Returns:
          The report as text.

        Raises:
          FileNotFoundError: nothing is labelled yet.
        """
        path = labelled_file(self.folder, self.config.split)
        if path is None:
            raise FileNotFoundError(f"{self.folder} has no labelled rows of the split {self.config.split!r} yet.")
        about = {
            "dataset": f"{self.dataset.name}, {self.config.split}",
            "model": self.config.teacher.model,
            "prompt": self.config.prompt or f"the one of {self.dataset.name}",
            "parameters": self.sampling.canonical,
        }
        quality = measure(
            read_labelled(path),
            same_label(self.dataset.metric),
            label_set=self.dataset.label_set,
            prompt=self.prompt,
        )
        write_whole(path.with_suffix(".report.json"), json.dumps(as_json(quality, about), indent=1) + "\n")
        write_whole(path.with_suffix(".report.html"), as_html(quality, about))
        return as_text(quality, about)

    def _shard(self) -> Sequence[Example]:
        index, count = self.config.shard
        return self.rows if count == 1 else self.rows[index::count]

    def _requests_of(self, row: Example) -> list[Request]:
        if self._left_out(row):
            return []
        prompt = self.rendered(row)
        return [Request(row.id, prompt, sample) for sample in range(self.config.samples)]

    def _left_out(self, row: Example) -> bool:
        return self.prompt.needs_label and row.label is None

    def _labelled_rows(self, journal: Journal, account: Account) -> Iterator[LabelledRow]:
        same, parse = same_label(self.dataset.metric), self.dataset.parse
        assert parse is not None
        for row in self.rows:
            answers: list[Answer] = []
            failure = NO_GOLD_LABEL if self._left_out(row) else UNANSWERED
            for request in self._requests_of(row):
                key = request_key(request, self.config.teacher.model, self.sampling)
                record = journal.get(key)
                if record is not None and isinstance(record.outcome, Answer):
                    answers.append(record.outcome)
                    account.paid(key, record.outcome)
                elif record is not None and isinstance(record.outcome, Failure):
                    failure = record.outcome.reason
            output, agreement = TeacherOutput(None, None, failure), 0
            if answers:
                judged = [self.dataset.with_teacher(row, parse(answer.text)).teacher for answer in answers]
                agreed = agree([output for output in judged if output is not None], same)
                output, agreement = agreed.output, agreed.agreement
            yield {
                "id": row.id,
                "input": row.input,
                "label": row.label,
                "answers": [answer.text for answer in answers],
                "rationale": output.rationale,
                "teacher_label": output.label,
                "failure": output.failure,
                "agreement": agreement,
                "samples": len(answers),
                "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in answers),
                "completion_tokens": sum(answer.completion_tokens or 0 for answer in answers),
            }


def _with_parser(dataset: Dataset) -> Dataset:
    if dataset.parse is None:
        raise ValueError(
            f"Dataset {dataset.name!r} has no parser for a teacher's answers: give CustomDataset.parser a MarkerParser "
            "or a RegexParser."
        )
    return dataset


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """For objects that live as long as the process: the collector would walk half a million rows again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
