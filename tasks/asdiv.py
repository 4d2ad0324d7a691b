"""ASDiv (Miao et al., 2020): 2,305 word problems; the paper uses their questions as unlabelled inputs for SVAMP.

One XML file without splits: test and validation are held out of it. The label is the number before the unit in
`Answer`, compared by value; the rows whose answer is no single number (a name, a time of day, two numbers) have none.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from dsbs_jax.data.dataset import Dataset, Rows
from dsbs_jax.data.sources import contents, require_folder
from dsbs_jax.metrics import equation
from dsbs_jax.schema import Example
from dsbs_jax.teacher.parsers import PARSERS

FILE = "ASDiv.xml"
_UNIT = re.compile(r"\s*\([^()]*\)$")


def number(answer: str) -> str | None:
    """The number of an answer such as `9 (apples)`, or None where the answer is no single number."""
    answer = answer.strip()
    for text in (answer, _UNIT.sub("", answer)):
        if equation.evaluate(text) is not None:
            return text
    return None


def read(split: str, data_dir: str | Path | None) -> Rows:
    """All problems; `split` names them in the examples' ids.

    Raises:
      FileNotFoundError: where `{data_dir}/asdiv/ASDiv.xml` is not there.
      ValueError: where it is not the XML file that it should be.
    """
    folder = require_folder("asdiv", data_dir)
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; {contents(folder)}.")
    try:
        problems = ElementTree.parse(path).getroot().findall("ProblemSet/Problem")
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not valid XML: {error}.") from None
    examples = []
    for index, problem in enumerate(problems):
        body, question, answer = (problem.findtext(tag) for tag in ("Body", "Question", "Answer"))
        if body is None or question is None or answer is None:
            raise ValueError(f"{path}, problem {index}: Body, Question or Answer is missing.")
        examples.append(Example(f"{split}/{index}", f"{body.strip()}\n{question.strip()}", number(answer)))
    return Rows(examples, str(path), folder, "train")


DATASET = Dataset("asdiv", read, source_splits=("train",), metric="equation", parse=PARSERS["asdiv"])
