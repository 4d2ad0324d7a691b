"""A server with faults, in a process of its own: `python fault_server.py '{"rate": 0.2}'` prints its base URL.

Its answers are `answer to LAST MESSAGE` unless a fault comes up, drawn by seed from the prompt and the number of times
it was asked. The prompt can ask for more: `length` (too long), `invalid`, `empty` and `poison` (500 for ever) as words.
`POST /control` changes the settings, `GET /log` tells what was done for each prompt.
"""

from __future__ import annotations

import asyncio
import collections
import email.utils
import hashlib
import json
import random
import re
import sys
import time

from dsbs_jax.teacher.toy_server import Call, Reply, announce, completion, reply, serve

FAULTS = (
    "429",
    "429_seconds",
    "429_date",
    "500",
    "503",
    "hang",
    "cut_before",
    "cut_within",
    "not_json",
    "not_an_object",
    "no_choices",
    "no_text",
    "error_in_200",
    "twice",
)
# Answers that come through all the same.
HARMLESS = ("twice",)


class FaultServer:
    """The state: settings, what was asked, files and batches."""

    def __init__(self, settings: dict):
        self.settings = {
            "rate": 0.0,
            "faults": FAULTS,
            "seed": 0,
            "hang_s": 3600.0,
            "delay_s": 0.0,
            "limit": None,
            "window_s": 0.1,
            "limit_tells": True,
            "status": None,
            "status_body": None,
            "batch_polls": 1,
            "batch_faults": {},
            "batch_refuses": False,
            "max_batch_requests": 50_000,
        } | settings
        self.log: dict[str, list[str]] = collections.defaultdict(list)
        self.in_flight = self.most_in_flight = 0
        self.window: tuple[float, int] = (0.0, 0)
        self.files: dict[str, bytes] = {}
        self.batches: list[dict] = []
        self.batch_creations = 0
        self.headers: list[dict[str, str]] = []

    def __call__(self, call: Call):
        """Answers a call."""
        path = call.path.partition("?")[0]
        if path == "/v1/control":
            self.settings |= call.json()
            return reply({})
        if path == "/v1/log":
            return reply(
                {
                    "log": self.log,
                    "most_in_flight": self.most_in_flight,
                    "batches": self.batches,
                    "batch_creations": self.batch_creations,
                    "headers": self.headers[-5:],
                }
            )
        self.headers = [*self.headers[-4:], call.headers]
        if self.settings["status"]:
            body = self.settings["status_body"] or {"error": {"message": "as the test wants it", "code": "wanted"}}
            if body == "echo":
                body = {"error": {"message": f"bad credentials: {call.headers.get('authorization')}"}}
            if body == "echo escaped":
                told = json.dumps({"error": {"message": f"bad credentials: {call.headers.get('authorization')}"}})
                body = told.replace("/", "\\/").replace("=", "\\u003d").encode()
            return reply(body, self.settings["status"], {"x-echo": call.headers.get("authorization", "")})
        if path.startswith(("/v1/files", "/v1/batches")):
            return self.batch_api(call, path)
        return self.complete(call, path)

    def complete(self, call: Call, path: str):
        """One answer, or a fault."""
        chat = path == "/v1/chat/completions"
        body = call.json()
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        fault = self.draw(asked)
        self.log[asked].append(fault)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.settings["delay_s"] or fault in ("hang", "twice_late"):
            return self.later(asked, chat, fault)
        self.in_flight -= 1
        return self.answer(asked, chat, fault)

    async def later(self, asked: str, chat: bool, fault: str) -> Reply:
        try:
            await asyncio.sleep(self.settings["hang_s"] if fault == "hang" else self.settings["delay_s"])
        finally:
            self.in_flight -= 1
        return self.answer(asked, chat, fault)

    def draw(self, asked: str) -> str:
        """Which fault comes up, `ok` for none."""
        words = set(asked.split())
        for word in ("length", "invalid", "empty", "poison"):
            if word in words:
                return word
        if self.settings["limit"] is not None:
            begun, count = self.window
            if time.monotonic() - begun > self.settings["window_s"]:
                begun, count = time.monotonic(), 0
            self.window = (begun, count + 1)
            if count >= self.settings["limit"]:
                return "limit"
        number = len(self.log[asked])
        digest = hashlib.blake2b(f"{self.settings['seed']} {number} {asked}".encode(), digest_size=8).digest()
        chance = random.Random(digest)
        return chance.choice(self.settings["faults"]) if chance.random() < self.settings["rate"] else "ok"

    def answer(self, asked: str, chat: bool, fault: str) -> Reply:
        """The bytes of an answer or of a fault."""
        text = "" if fault == "empty" else f"answer to {asked}"
        good = completion(text, chat=chat, prompt_tokens=len(asked))
        whole = reply(good).data
        # Whole seconds: mostly in the past, which means now.
        date = email.utils.formatdate(time.time() + 0.2, usegmt=True)
        left = max(0.0, self.settings["window_s"] - (time.monotonic() - self.window[0]))
        match fault:
            case "ok" | "empty" | "hang":
                return Reply(whole)
            case "429":
                return reply({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, 429)
            case "429_seconds":
                return reply({"error": {"message": "slow down"}}, 429, {"Retry-After": "0.05"})
            case "429_date":
                return reply({"error": {"message": "slow down"}}, 429, {"Retry-After": date})
            case "limit":
                headers = {"Retry-After": f"{left:.3f}"} if self.settings["limit_tells"] else {}
                return reply({"error": {"message": "rate limit"}}, 429, headers)
            case "500" | "poison":
                return reply({"error": {"message": "an error of ours"}}, 500)
            case "503":
                return reply(b"<html>overloaded</html>", 503)
            case "cut_before":
                return Reply(b"", close=True)
            case "cut_within":
                return Reply(whole[: len(whole) - 20], close=True)
            case "not_json":
                return reply(whole[-30:])
            case "not_an_object":
                return reply(["choices"])
            case "no_choices":
                return reply(good | {"choices": []})
            case "no_text":
                return reply(good | {"choices": [{"index": 0, "finish_reason": "stop"}]})
            case "error_in_200":
                return reply({"error": {"message": "the model behind is away"}})
            case "twice":
                return Reply(whole + whole)
            case "length":
                message = "This model's maximum context length is 8192 tokens."
                return reply({"error": {"message": message, "code": "context_length_exceeded"}}, 400)
            case "invalid":
                return reply({"error": {"message": "there is something wrong with this row"}}, 400)
        raise ValueError(fault)

    def batch_api(self, call: Call, path: str) -> Reply:
        """Files and batches, as far as OpenAI's documentation describes them."""
        if call.method == "POST" and path == "/v1/files":
            name = f"file-{len(self.files)}"
            self.files[name] = _uploaded(call)
            return reply(
                {"id": name, "object": "file", "bytes": 1, "created_at": 0, "filename": name, "purpose": "batch"}
            )
        if path.startswith("/v1/files/"):
            if self.settings["batch_faults"].pop("gone", 0):
                return reply({"error": {"message": "No such File object"}}, 404)
            return reply(self.files[path.split("/")[3]])
        if call.method == "POST" and path == "/v1/batches":
            return self.create(call.json())
        if path == "/v1/batches":
            after = re.search(r"after=([\w-]+)", call.path)
            names = [batch["id"] for batch in self.batches][::-1]
            first = names.index(after[1]) + 1 if after else 0
            page = self.batches[::-1][first : first + 2]
            return reply({"object": "list", "data": page, "has_more": first + 2 < len(names)})
        batch = next((batch for batch in self.batches if batch["id"] == path.split("/")[3]), None)
        if batch is None:
            return reply({"error": {"message": "No batch found with that id"}}, 404)
        return self.poll(batch)

    def create(self, body: dict) -> Reply:
        self.batch_creations += 1
        lines = self.files[body["input_file_id"]].decode().splitlines()
        if len(lines) > self.settings["max_batch_requests"]:
            return reply({"error": {"message": "too many requests in the file"}}, 400)
        batch = {
            "id": f"batch-{len(self.batches)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": body["completion_window"],
            "created_at": 0,
            "input_file_id": body["input_file_id"],
            "status": "in_progress",
            "metadata": body.get("metadata"),
        }
        self.batches.append(batch | {"polls": 0})
        if not self.settings["batch_polls"]:
            self.finish(self.batches[-1])
        if self.settings["batch_faults"].pop("create_cut", 0):
            return Reply(b"", close=True)
        return reply(batch)

    def poll(self, batch: dict) -> Reply:
        batch["polls"] += 1
        if batch["status"] == "in_progress" and batch["polls"] >= self.settings["batch_polls"]:
            self.finish(batch)
        return reply(batch)

    def finish(self, batch: dict) -> None:
        """Runs a batch: every request once, with the faults that `batch_faults` counts down."""
        chat = batch["endpoint"] == "/v1/chat/completions"
        faults = self.settings["batch_faults"]
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].decode().splitlines():
            item = json.loads(line)
            assert item["url"] == batch["endpoint"]
            body = item["body"]
            asked = body["messages"][-1]["content"] if chat else body["prompt"]
            fault = next((name for name in ("expired", "line_500", "missing") if faults.get(name, 0) > 0), "ok")
            fault = next((word for word in ("length", "invalid") if word in asked.split()), fault)
            fault = "invalid" if self.settings["batch_refuses"] else fault
            if fault in faults:
                faults[fault] -= 1
            self.log[asked].append(fault)
            status, content = 200, completion(f"answer to {asked}", chat=chat, prompt_tokens=len(asked))
            if fault == "length":
                status, content = (
                    400,
                    {"error": {"message": "maximum context length", "code": "context_length_exceeded"}},
                )
            elif fault == "invalid":
                status, content = 400, {"error": {"message": "Unsupported parameter: 'max_tokens'."}}
            elif fault == "line_500":
                status, content = 500, {"error": {"message": "an error of ours"}}
            out = {"id": "r", "custom_id": item["custom_id"], "error": None}
            out["response"] = {"status_code": status, "request_id": "q", "body": content}
            if fault == "expired":
                out |= {"response": None, "error": {"code": "batch_expired", "message": "not executed in time"}}
            if fault != "missing":
                (good if out["response"] and status == 200 else bad).append(out)
        if faults.pop("twice", 0):
            good += good
        random.Random(0).shuffle(good)
        for name, lines in (("output", good), ("error", bad)):
            if lines:
                batch[f"{name}_file_id"] = f"file-{len(self.files)}"
                self.files[f"file-{len(self.files)}"] = "\n".join(map(json.dumps, lines)).encode() + b"\n"
        batch["status"] = faults.pop("status", "completed")


def _uploaded(call: Call) -> bytes:
    """The part of a multipart form that is the file."""
    boundary = call.headers["content-type"].partition("boundary=")[2].encode()
    for part in call.body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    raise ValueError("no file in the form")


if __name__ == "__main__":
    asyncio.run(serve(FaultServer(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}), ready=announce))
