"""A small HTTP server that speaks the OpenAI protocol: for benchmarks, demonstrations and tests, not to serve models.

    python -m dsbs_jax.teacher.toy_server --port 8000

answers every request at once with the same text. `serve` takes any handler.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import json
from collections.abc import Awaitable, Callable
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request: header names in lower case, the path with its query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """The bytes to send, from the status line on, and whether the connection ends after them."""

    data: bytes
    close: bool = False


# Handlers that need not wait return a Reply; others a coroutine of one.
Handler = Callable[[Call], Reply | Awaitable[Reply]]


def reply(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Reply:
    """A whole HTTP answer with JSON, or with bytes as they are."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
    fields = {"Content-Type": kind, "Content-Length": str(len(body))} | (headers or {})
    lines = [f"HTTP/1.1 {status} Status", *(f"{name}: {value}" for name, value in fields.items())]
    return Reply("\r\n".join([*lines, "", ""]).encode("latin-1") + body)


def completion(text: str, *, chat: bool, model: str = "toy", prompt_tokens: int = 0) -> dict[str, Any]:
    """The body of an answer, as the protocol has it; a token is counted for every four characters."""
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    tokens = -(-len(text) // 4)
    return {
        "id": "toy-1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 0,
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": prompt_tokens + tokens,
        },
    }


def answering(answer: Callable[[str], str], model: str = "toy") -> Handler:
    """A handler for `/v1/models`, `/v1/chat/completions` and `/v1/completions`.

    Args:
      answer: gets the last message of a chat, or the text to complete, and returns the answer's text.
      model: the name it goes by.
    """

    def handle(call: Call) -> Reply:
        path = call.path.partition("?")[0]
        if path == "/v1/models":
            return reply({"object": "list", "data": [{"id": model, "object": "model"}]})
        if call.method != "POST" or path not in ("/v1/chat/completions", "/v1/completions"):
            return reply({"error": {"message": f"no such endpoint: {call.method} {path}"}}, status=404)
        body = call.json()
        chat = path == "/v1/chat/completions"
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        return reply(completion(answer(asked), chat=chat, model=model, prompt_tokens=len(call.body) // 4))

    return handle


class _Connection(asyncio.Protocol):
    def __init__(self, handle: Handler):
        self._handle = handle
        self._buffer = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, _: Exception | None) -> None:
        for task in self._tasks:
            task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (call := self._take()) is not None:
            answer = self._handle(call)
            if isinstance(answer, Reply):
                self._send(answer)
            else:
                task = asyncio.ensure_future(self._later(answer))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _later(self, answer: Awaitable[Reply]) -> None:
        self._send(await answer)

    def _send(self, answer: Reply) -> None:
        if not self._transport.is_closing():
            self._transport.write(answer.data)
            if answer.close:
                self._transport.close()

    def _take(self) -> Call | None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self._buffer[:end].decode("latin-1").split("\r\n")
        method, path, _ = first.split(" ", 2)
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        start = end + 4
        stop = start + int(headers.get("content-length", 0))
        if headers.get("transfer-encoding", "").lower() == "chunked":
            chunked = _unchunk(self._buffer, start)
            if chunked is None:
                return None
            body, stop = chunked
        elif len(self._buffer) < stop:
            return None
        else:
            body = bytes(self._buffer[start:stop])
        del self._buffer[:stop]
        return Call(method, path, headers, body)


def _unchunk(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body of a chunked request and the end of it, or None where more is to come."""
    body = bytearray()
    while (end := buffer.find(b"\r\n", start)) >= 0:
        size = int(bytes(buffer[start:end]).partition(b";")[0], 16)
        start = end + 2 + size + 2
        if len(buffer) < start:
            return None
        body += buffer[end + 2 : end + 2 + size]
        if size == 0:
            return bytes(body), start
    return None


async def serve(handle: Handler, port: int = 0, ready: Callable[[str], object] | None = None) -> None:
    """Serves on this machine's loopback address until cancelled.

    Args:
      handle: answers a call; what it raises closes the connection.
      port: 0 for a free one.
      ready: is told the base URL, e.g. `http://127.0.0.1:8000/v1`, once the server listens.
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(handle), "127.0.0.1", port, backlog=1024)
    if ready:
        ready(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    async with server:
        await server.serve_forever()


def announce(url: str) -> None:
    """Prints the URL on a line of its own, for whoever started this process."""
    print(url, flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="default: a free one, which is printed")
    parser.add_argument("--answer", default="Dogs bark at strangers. " * 12 + "So the answer is (a) dog.")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(answering(lambda _: arguments.answer), arguments.port, announce))


if __name__ == "__main__":
    main()
