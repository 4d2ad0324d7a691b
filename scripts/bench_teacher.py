"""Answers a second of the teacher's client against a server that answers at once, in a process of its own.

    python scripts/bench_teacher.py --requests 50000

prints one JSON line: answers a second (journalled, each group synced), processor time an answer, and the memory of
this process; from a fifth of the way to the end, so without the seconds that imports take. The prompt is a chat of 22
messages, about 5,500 characters.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dsbs_jax.teacher.asking import ask_all
from dsbs_jax.teacher.desk import Asked
from dsbs_jax.teacher.journal import Journal
from dsbs_jax.teacher.openai_client import OpenAITeacher
from dsbs_jax.teacher.pacing import Concurrency
from dsbs_jax.teacher.requests import Request


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--plain", type=int, default=0, help="also so many requests by the SDK as it comes")
    parser.add_argument("--folder", help="for the journal (default: a temporary one)")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "dsbs_jax.teacher.toy_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = server.stdout.readline().strip()
            with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
                print(json.dumps(_measure(url, arguments.requests, arguments.concurrency, Path(folder))))
            if arguments.plain:
                print(json.dumps(asyncio.run(_plain(url, arguments.plain, arguments.concurrency))))
        finally:
            server.terminate()


def _measure(url: str, count: int, concurrency: int, folder: Path) -> dict[str, float]:
    teacher = OpenAITeacher("toy", base_url=url, concurrency=Concurrency(concurrency, 1, concurrency))
    # (answers, seconds, processor seconds, bytes in memory)
    marks: list[tuple[int, float, float, int]] = []

    def progress(asked: Asked) -> None:
        marks.append((asked.answered, time.perf_counter(), time.process_time(), _resident()))

    with Journal(folder) as journal:
        asked = ask_all(_requests(count), teacher, journal, progress=progress, progress_seconds=0.2)
    assert asked.answered == count, asked
    early = next(mark for mark in marks if mark[0] >= count // 5)
    answers, seconds, busy, _ = (last - first for first, last in zip(early, marks[-1], strict=True))
    return {
        "answers": count,
        "concurrency": concurrency,
        "answers_per_second": round(answers / seconds, 1),
        "processor_ms_per_answer": round(1e3 * busy / answers, 3),
        "cores": os.cpu_count() or 0,
        "resident_mb_at_a_fifth": round(early[3] / 1e6, 1),
        "resident_mb_at_the_end": round(marks[-1][3] / 1e6, 1),
        "resident_mb_peak": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, 1),
    }


async def _plain(url: str, count: int, concurrency: int) -> dict[str, float]:
    """The same requests by the SDK's typed call over its own connections, without a journal."""
    import openai

    requests = _requests(count)
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask() -> None:
            for request in requests:
                messages = [{"role": role, "content": content} for role, content in request.prompt]
                await client.chat.completions.create(model="toy", messages=messages, max_tokens=256, temperature=0.0)  # type: ignore[arg-type]

        started, busy = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask() for _ in range(concurrency)))
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
    return {
        "plain_sdk_answers": count,
        "answers_per_second": round(count / seconds, 1),
        "processor_ms_per_answer": round(1e3 * busy / count, 3),
    }


def _requests(count: int) -> Iterator[Request]:
    shown = [
        (role, f"{role} {n} " + "what is known of it, and why. " * 8)
        for n in range(10)
        for role in ("user", "assistant")
    ]
    begun = (("system", "Answer like the examples. " * 8), *shown)
    for n in range(count):
        yield Request(f"train/{n}", (*begun, ("user", f"Question {n}: " + "which of these barks? " * 8)))


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
