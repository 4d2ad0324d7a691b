"""A teacher for the demo: a process that answers the bestiary's questions over HTTP, most of them rightly.

    python -m dsbs_jax.experiments.demo_teacher --port 8000

It speaks the OpenAI protocol, so that `dsbs label` asks it as it would ask an LLM. Like one it reasons in prose before
it answers, takes a creature for one of another kind now and then (rationale and label are wrong together), sometimes
rambles on without an answer, and answers the same question always in the same way.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json

from dsbs_jax.data.dataset import SPLITS
from dsbs_jax.tasks import bestiary
from dsbs_jax.teacher.toy_server import announce, answering, serve

MODEL = "bestiary-expert"
# Of all questions.
WRONG_KIND = 0.18


class Expert:
    """Knows a world, not perfectly.

    Args:
      world: the world.
      wrong_kind: share of the questions at which it takes the creature for one of another kind.
      rambling: share of the questions to which it gives no answer.
    """

    def __init__(self, world: bestiary.World, wrong_kind: float = WRONG_KIND, rambling: float = bestiary.RAMBLING):
        self._world = world
        self._pairs = {
            world.example("", int(pair)).input: int(pair) for split in SPLITS for pair in world.questions(split).pairs
        }
        self._wrong_kind, self._rambling = wrong_kind, rambling

    def answer(self, asked: str) -> str:
        """The answer to a prompt's last question, `Q: What does a grolbek eat?`; asked again, the same answer."""
        question = asked.rpartition("Q:")[2].partition("\n")[0].strip()
        pair = self._pairs.get(question)
        if pair is None:
            return "I know nothing about that."
        return self._world.answer(pair, self._wrong_kind, self._rambling)


def main() -> None:
    """The command line: prints the base URL, then serves until it is killed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="default: a free one")
    parser.add_argument("--world", type=json.loads, default={}, help='parameters of the world as JSON: {"seed": 1}')
    arguments = parser.parse_args()
    expert = Expert(bestiary.World(bestiary.Parameters(**arguments.world)))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(answering(expert.answer, MODEL), arguments.port, announce))


if __name__ == "__main__":
    main()
