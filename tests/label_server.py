"""A teacher for tests of labelling, in a process of its own: `python label_server.py` prints its base URL.

It answers the bestiary's questions for a small world, remembers every body that it received, and does what
`POST /control` says:

    status, echo   refuse everything with this status; repeat the key in the message
    after          answer so many requests before refusing any
    answers        answer with these in turn, by the request's seed, instead
    hold           from the so-many-th request on, answer nothing before the next `POST /control`

`GET /log` tells the bodies; `GET /wait?count=N` answers when N requests have come in.
"""

from __future__ import annotations

import asyncio
import sys

from dsbs_jax.experiments.demo_teacher import Expert
from dsbs_jax.tasks import bestiary
from dsbs_jax.teacher.toy_server import Call, Reply, announce, completion, reply, serve

CREATURES = 12


class LabelServer:
    """The state: settings, and what came in since they were made."""

    def __init__(self) -> None:
        self.expert = Expert(bestiary.World(bestiary.Parameters(creatures=CREATURES)))
        self.released = asyncio.Event()
        self.came = asyncio.Condition()
        self.reset({})

    def reset(self, settings: dict) -> None:
        self.settings = {"status": None, "echo": False, "after": 0, "answers": None, "hold": None} | settings
        self.bodies: list[dict] = []
        self.answered = 0
        self.released.set()
        self.released = asyncio.Event()

    def __call__(self, call: Call):
        path, _, query = call.path.partition("?")
        if path == "/v1/control":
            self.reset(call.json())
            return reply({})
        if path == "/v1/log":
            return reply({"bodies": self.bodies, "answered": self.answered})
        if path == "/v1/wait":
            return self.wait(int(query.partition("=")[2]))
        return self.answer(call, path)

    async def wait(self, count: int) -> Reply:
        async with self.came:
            await self.came.wait_for(lambda: len(self.bodies) >= count)
        return reply({})

    async def answer(self, call: Call, path: str) -> Reply:
        body = call.json()
        async with self.came:
            self.bodies.append(body)
            number = len(self.bodies)
            self.came.notify_all()
        if self.settings["status"] and number > self.settings["after"]:
            told = f"no, {call.headers.get('authorization')}" if self.settings["echo"] else "no"
            return reply({"error": {"message": told}}, self.settings["status"])
        if self.settings["hold"] is not None and number > self.settings["hold"]:
            await self.released.wait()
        chat = path == "/v1/chat/completions"
        asked = body["messages"][-1]["content"] if chat else body["prompt"]
        answers = self.settings["answers"]
        text = answers[body.get("seed", 0) % len(answers)] if answers else self.expert.answer(asked)
        self.answered += 1
        return reply(completion(text, chat=chat, prompt_tokens=100))


async def main() -> None:
    """Serves until it is killed."""
    await serve(LabelServer(), int(sys.argv[1]) if len(sys.argv) > 1 else 0, announce)


if __name__ == "__main__":
    asyncio.run(main())
