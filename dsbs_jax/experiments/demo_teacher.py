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
import hashlib
import json

from dsbs_jax.data.dataset import SPLITS
from dsbs_jax.tasks import bestiary
from dsbs_jax.teacher.toy_server import announce, answering, serve

MODEL = "bestiary-expert"
# Of all questions.
WRONG_KIND = 0.18
RAMBLING = 0.02


class Expert:
    """Knows a world, not perfectly.

    Args:
      world: the world.
      wrong_kind: share of the questions at which it takes the creature for one of another kind.
      rambling: share of the questions to which it gives no answer.
    """

    def __init__(self, world: bestiary.World, wrong_kind: float = WRONG_KIND, rambling: float = RAMBLING):
        self._world = world
        self._pairs = {
            world.example("", int(pair)).input: int(pair) for split in SPLITS for pair in world.questions(split).pairs
        }
        self._wrong_kind, self._rambling = wrong_kind, rambling

    def answer(self, asked: str) -> str:
        """The answer to a prompt's last question, `Q: What does a grolbek eat?`."""
        question = asked.rpartition("Q:")[2].partition("\n")[0].strip()
        pair = self._pairs.get(question)
        if pair is None:
            return "I know nothing about that."
        # A question's luck is its own: asked again, it gets the same answer.
        chance, which = (_uniform(f"{draw}/{question}") for draw in (0, 1))
        creature, index = divmod(pair, self._world.parameters.attributes)
        name, kind = self._world.creatures[creature], int(self._world.kind_of[creature])
        if chance < self._rambling:
            return f"A {name} is a creature that few have seen, and those who have seen one tell different stories."
        if chance < self._rambling + self._wrong_kind:
            others = [other for other in range(len(self._world.kinds)) if other != kind]
            kind = others[int(which * len(others))]
        attribute = bestiary.ATTRIBUTES[index]
        value = attribute.values[self._world.value_of[kind, index]]
        kind_name = self._world.kinds[kind]
        statement = attribute.statement.format(kinds=f"{kind_name}s", value=value)
        return f"A {name} is a {kind_name}, and {statement}. So the answer is {value}."


def _uniform(text: str) -> float:
    """A number in [0, 1) that the text alone decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


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
