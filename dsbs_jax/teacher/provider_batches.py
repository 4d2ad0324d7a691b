"""A provider's batch API: a file of requests is uploaded, answered within a day at a lower price, and downloaded.

Beside the journal, in `batches-{name}/`, lies what survives a restart:

    ID.jsonl        the requests as they are uploaded, one a line; `custom_id` is the request's key
    ID.rows.jsonl   [key, row, sample, cost at most] of each
    ID.json         the provider's id of the batch; written when the provider has accepted it

ID is drawn and its files are on disk before anything is sent, and the batch carries it as metadata. A process that died
between submitting and writing ID.json finds its batch again by that, so nothing is submitted twice. Once a batch's
answers are in the journal its files are removed; what came back without an answer goes into a later batch.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsbs_jax.teacher import replies
from dsbs_jax.teacher.desk import Desk, Task
from dsbs_jax.teacher.journal import sync_folder
from dsbs_jax.teacher.openai_client import OPENAI_URL, check_address, check_variable, find_key, open_client
from dsbs_jax.teacher.requests import Failure, Outcome, Request, TeacherError, TryAgain

if TYPE_CHECKING:
    import openai

logger = logging.getLogger(__name__)

# The name of our id in a batch's metadata.
_METADATA = "dsbs_batch"
_OVER = ("completed", "failed", "expired", "cancelled")
# So many refusals and no answer are not the rows' own, even where an earlier start got answers.
_UNWANTED = 20


@dataclasses.dataclass(frozen=True)
class ProviderBatches:
    """OpenAI's batch API, or one like it.

    Attributes:
      model: as the provider calls it; part of every key.
      base_url: up to and with `/v1`.
      api_key_variable: the environment variable that holds the key.
      api: `chat` or `completions`.
      max_tokens_name: OpenAI's reasoning models want `max_completion_tokens`.
      requests_per_batch: at most; OpenAI allows 50,000.
      bytes_per_batch: of the uploaded file, at most; OpenAI allows 200 MB.
      open_batches: that wait for their answers at a time.
      poll_seconds: between two looks at them.
      attempts: of one request, before its row is unfinished.
      timeout_s: for one HTTP request, uploads and downloads among them, in seconds.
    """

    model: str
    base_url: str = OPENAI_URL
    api_key_variable: str = "OPENAI_API_KEY"
    api: replies.Api = "chat"
    max_tokens_name: str = "max_tokens"
    requests_per_batch: int = 50_000
    bytes_per_batch: int = 190_000_000
    open_batches: int = 4
    poll_seconds: float = 60.0
    attempts: int = 3
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("ProviderBatches: model is empty; give the name under which the provider offers it.")
        check_address(self.base_url)
        check_variable(self.api_key_variable)
        if min(self.requests_per_batch, self.bytes_per_batch, self.open_batches, self.attempts) < 1:
            raise ValueError(
                "ProviderBatches: requests_per_batch, bytes_per_batch, open_batches and attempts must be at least 1."
            )

    async def work(self, desk: Desk) -> None:
        """See `asking.Teacher`. What waits at the provider when a run is stopped is fetched by the next one."""
        if desk.journal.path is None:
            raise ValueError(f"{desk.journal.folder} is open for reading only.")
        folder = desk.journal.folder / f"batches-{desk.journal.path.stem}"
        secret = find_key(self.api_key_variable, self.base_url)
        async with open_client(self.base_url, secret, self.timeout_s) as (client, http):
            import openai

            refused: tuple[int, Mapping[str, str], str]
            try:
                await _Run(self, desk, client.with_options(max_retries=5), folder, http.secret).work()
                return
            except openai.APIStatusError as error:
                refused = error.status_code, error.response.headers, error.response.text
            except openai.APIError as error:
                refused = 0, {}, error.message
        # Outside of the handlers: the SDK's error, whose request holds the key, is not in the chain of ours.
        raise _told(http.secret, *refused)


def _told(secret: replies.Secret, status: int, headers: Mapping[str, str], content: str) -> TeacherError:
    if not status:
        return TeacherError(f"The batch API cannot be reached ({secret.hide(content)}); start again to go on.")
    try:
        reply = replies.read(status, headers, content, secret)
    except TeacherError as error:
        return error
    message = reply.message if isinstance(reply, Failure | TryAgain) else "an answer in the wrong place"
    return TeacherError(f"The batch API refuses ({message}); start again to go on.")


class _Run:
    def __init__(
        self, teacher: ProviderBatches, desk: Desk, client: openai.AsyncOpenAI, folder: Path, secret: replies.Secret
    ):
        self._teacher = teacher
        self._desk = desk
        self._client = client
        self._folder = folder
        self._secret = secret
        self._failed_attempts: dict[str, int] = {}
        self._again: list[Task] = []
        self._answered = False
        # Our ids of batches that an earlier start sent, maybe with other parameters.
        self._adopted: set[str] = set()
        self._left_over: Task | None = None

    async def work(self) -> None:
        """Adopts what an earlier run left, then submits, polls and ingests until nothing is left."""
        self._folder.mkdir(parents=True, exist_ok=True)
        # The provider's ids of open batches, by ours.
        waiting = await self._adopt()
        while True:
            while len(waiting) < self._teacher.open_batches and not self._desk.stopping.is_set():
                name = await self._gather(bool(waiting))
                if name is None:
                    break
                waiting[name] = await self._submit(name)
            if not waiting:
                return
            if self._interrupted():
                logger.info("%d batches stay with the provider; start again to fetch their answers", len(waiting))
                return
            for name, batch_id in list(waiting.items()):
                if await self._fetch(name, batch_id):
                    del waiting[name]
            if waiting:
                await self._pause()

    def _interrupted(self) -> bool:
        # A limit that is reached stops the submitting; answers on their way are paid for and awaited.
        return self._desk.stopping.is_set() and (self._desk.asked().stopped or "").startswith("SIG")

    async def _pause(self) -> None:
        if self._desk.stopping.is_set():
            await asyncio.sleep(self._teacher.poll_seconds)
        else:
            await self._desk.sleep(self._teacher.poll_seconds)

    async def _adopt(self) -> dict[str, str]:
        """The batches of earlier runs that are with the provider; what never got there is removed and asked anew."""
        adopted = {}
        for name in sorted({path.name.partition(".")[0] for path in self._folder.iterdir()}):
            rows = self._folder / f"{name}.rows.jsonl"
            batch_id = (self._submitted(name) or await self._find(name)) if rows.exists() else None
            if batch_id is None:
                self._remove(name)
                continue
            self._note(name, batch_id)
            adopted[name] = batch_id
            self._adopted.add(name)
            for task in self._tasks(name).values():
                self._desk.adopt(task.key, task.bound)
        return adopted

    def _tasks(self, name: str) -> dict[str, Task]:
        """The requests of a batch whose answers are not in the journal, without their prompts."""
        tasks = {}
        journal = self._desk.journal
        with (self._folder / f"{name}.rows.jsonl").open(encoding="ascii") as file:
            for line in file:
                key, row, sample, bound = json.loads(line)
                if key not in journal or journal.failed(key):
                    tasks[key] = Task(key, Request(row, "", sample), bound)
        return tasks

    async def _gather(self, waiting: bool) -> str | None:
        """Writes the files of the next batch; None where nothing may be asked, now or at all."""
        name = uuid.uuid4().hex
        count = size = 0
        requests, rows = self._folder / f"{name}.jsonl", self._folder / f"{name}.rows.jsonl.part"
        with requests.open("wb") as file, rows.open("w", encoding="ascii") as rows_file:
            while count < self._teacher.requests_per_batch:
                task = await self._next()
                if task is None:
                    break
                line = self._line(task)
                if count and size + len(line) > self._teacher.bytes_per_batch:
                    self._left_over = task
                    break
                # What is with the provider may turn out cheaper than its bound, but not while this waits.
                if not self._desk.affordable(task) and (count or waiting):
                    self._left_over = task
                    break
                if not await self._desk.reserve(task):
                    self._desk.forget(task)
                    break
                file.write(line)
                rows_file.write(json.dumps([task.key, task.request.row, task.request.sample, task.bound]) + "\n")
                count, size = count + 1, size + len(line)
            for written in (file, rows_file):
                written.flush()
                os.fsync(written.fileno())
        if not count:
            requests.unlink()
            rows.unlink()
            return None
        rows.rename(self._folder / f"{name}.rows.jsonl")
        sync_folder(self._folder)
        return name

    async def _next(self) -> Task | None:
        if self._left_over is not None:
            task, self._left_over = self._left_over, None
            return task
        if self._again and not self._desk.stopping.is_set():
            return self._again.pop()
        return await self._desk.next()

    def _line(self, task: Task) -> bytes:
        teacher = self._teacher
        body = replies.body(task.request, teacher.model, self._desk.sampling, teacher.api, teacher.max_tokens_name)
        item = {"custom_id": task.key, "method": "POST", "url": self._endpoint, "body": body}
        return json.dumps(item).encode("ascii") + b"\n"

    @property
    def _endpoint(self) -> Any:
        return "/v1" + replies.endpoint(self._teacher.api)

    async def _submit(self, name: str) -> str:
        """Sends a batch and returns the provider's id of it."""
        batch_id = await self._create(name)
        self._note(name, batch_id)
        logger.info("batch %s is with the provider", batch_id)
        return batch_id

    def _submitted(self, name: str) -> str | None:
        state = self._folder / f"{name}.json"
        return json.loads(state.read_text())["batch_id"] if state.exists() else None

    def _note(self, name: str, batch_id: str) -> None:
        part = self._folder / f"{name}.json.part"
        with part.open("w") as file:
            json.dump({"batch_id": batch_id}, file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._folder / f"{name}.json")
        sync_folder(self._folder)

    async def _find(self, name: str) -> str | None:
        async for batch in self._client.batches.list(limit=100):
            if (batch.metadata or {}).get(_METADATA) == name:
                return batch.id
        return None

    async def _create(self, name: str) -> str:
        import openai

        path = self._folder / f"{name}.jsonl"
        with path.open("rb") as file:
            uploaded = await self._client.files.create(file=(path.name, file), purpose="batch")
        for attempt in range(self._teacher.attempts):
            # A retry of the SDK's could create the batch twice, and each would be paid for.
            once = self._client.with_options(max_retries=0)
            with contextlib.suppress(openai.APIConnectionError, openai.InternalServerError):
                batch = await once.batches.create(
                    input_file_id=uploaded.id,
                    endpoint=self._endpoint,
                    completion_window="24h",
                    metadata={_METADATA: name},
                )
                return batch.id
            await asyncio.sleep(min(self._teacher.poll_seconds, 2.0**attempt))
            if (found := await self._find(name)) is not None:
                return found
        raise TeacherError(f"The batch API took no batch in {self._teacher.attempts} attempts; start again later.")

    async def _fetch(self, name: str, batch_id: str) -> bool:
        """Ingests a batch if it is over; False where it is not."""
        import openai

        batch = None
        with contextlib.suppress(openai.NotFoundError):
            batch = await self._client.batches.retrieve(batch_id)
        if batch is None:
            raise TeacherError(
                f"The provider does not know the batch {batch_id}; see whether the key is of the account that sent it, "
                f"or remove {self._folder / name}.json, .jsonl and .rows.jsonl and its rows are asked again."
            )
        if batch.status not in _OVER:
            return False
        tasks = self._tasks(name)
        total, gone = len(tasks), False
        refused: list[tuple[Task, Failure]] = []
        for file_id in (batch.output_file_id, batch.error_file_id):
            if file_id:
                try:
                    content = await self._client.files.content(file_id)
                except openai.NotFoundError:
                    gone = True
                    continue
                # Not `iter_lines`: that also ends lines at separators which JSON allows inside of texts.
                for line in content.read().split(b"\n"):
                    await self._ingest(line, tasks, refused)
        if gone:
            told = f"The provider has no longer the answers of the batch {batch_id} ({self._folder / name}.json)"
            logger.warning("%s; %d rows are asked again.", told, len(tasks))
        if batch.status == "failed" and len(tasks) == total:
            errors = batch.errors.data if batch.errors and batch.errors.data else []
            told = (
                "; ".join(replies.short(self._secret.hide(str(error.message))) for error in errors[:3])
                or "no reason was given"
            )
            self._remove(name)
            raise TeacherError(f"The provider refused the batch {batch_id} ({told}); see model and parameters.")
        # Without an answer it may be the parameters. An earlier answer counts where few are left, all of them bad.
        if refused and not self._answered and (len(refused) >= _UNWANTED or not self._desk.journal.answers):
            if name not in self._adopted:
                self._remove(name)
                raise replies.refused_all(len(refused), refused[0][1].message)
            tasks, refused = tasks | {task.key: task for task, _ in refused}, []
        for task, failure in refused:
            await self._desk.deliver(task, failure)
        prompts = self._prompts(name, tasks)
        for task in tasks.values():
            await self._lost(dataclasses.replace(task, request=prompts[task.key]), batch.status, billed=gone)
        await self._desk.written()
        self._remove(name)
        return True

    async def _ingest(self, line: bytes, tasks: dict[str, Task], refused: list[tuple[Task, Failure]]) -> None:
        """Delivers one line's outcome and takes its task out of `tasks`; leaves it there where there is none.

        What is refused goes into `refused`: whether for good is seen when all lines are.
        """
        try:
            item = json.loads(line)
            task = tasks[item["custom_id"]]
            response = item["response"]
            status, body = response["status_code"], response["body"]
        except (ValueError, TypeError, KeyError):
            # Cut off, a second copy, or an error such as `batch_expired`: what stays in `tasks` is asked again.
            return
        outcome: Outcome | TryAgain
        try:
            outcome = replies.read(status, {}, json.dumps(body), self._secret)
        except TeacherError as error:
            outcome = Failure(f"status_{status}", str(error), final=False)
        if isinstance(outcome, TryAgain) or (isinstance(outcome, Failure) and not outcome.final):
            return
        del tasks[task.key]
        if isinstance(outcome, Failure) and outcome.reason in replies.UNWANTED:
            refused.append((task, outcome))
            return
        self._answered = True
        await self._desk.deliver(task, outcome)

    async def _lost(self, task: Task, status: str, billed: bool) -> None:
        self._desk.lost(task, "no_answer_in_batch", billed=billed)
        failures = self._failed_attempts.get(task.key, 0) + 1
        self._failed_attempts[task.key] = failures
        if failures >= self._teacher.attempts:
            self._desk.give_up(task, "no_answer_in_batch", f"{failures} batches, the last {status}")
        else:
            self._again.append(task)

    def _prompts(self, name: str, tasks: dict[str, Task]) -> dict[str, Request]:
        """The requests of the tasks that got no answer, out of the file that was uploaded."""
        found: dict[str, Request] = {}
        if not tasks:
            return found
        with (self._folder / f"{name}.jsonl").open("rb") as file:
            for line in file:
                item = json.loads(line)
                task = tasks.get(item["custom_id"])
                if task is not None:
                    body = item["body"]
                    messages = tuple((message["role"], message["content"]) for message in body.get("messages", ()))
                    found[task.key] = dataclasses.replace(task.request, prompt=messages or body["prompt"])
        return found

    def _remove(self, name: str) -> None:
        # With the rows' file gone first the batch is over, whatever else is left of it.
        for suffix in (".rows.jsonl", ".rows.jsonl.part", ".jsonl", ".json", ".json.part"):
            (self._folder / f"{name}{suffix}").unlink(missing_ok=True)
