"""`dsbs parse`: the counts of the reference's files, broken files, and answers without rows."""

import json
import subprocess
import sys

import pytest

from dsbs_jax.data.custom import CustomDataset
from dsbs_jax.data.parse_answers import find_answers, parse_answers, render
from dsbs_jax.teacher.parsers import MarkerParser


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def question(answer, choices=("car", "boat", "boot", "hat", "sea")):
    return {"question": "What floats?", "choices": list(choices), "answer": answer}


@pytest.fixture
def cqa(tmp_path):
    data = write(tmp_path / "questions.json", [question("boat"), question("boat"), question("boat"), question("sea")])
    answers = [
        "Boats float. So the answer is (b) Boat.\n\nQ: next",
        "Cars float. So the answer is (a) car.",
        "Bees float. So the answer is (e) bee.",
        "It is cut off",
    ]
    write(tmp_path / "llm" / "test_CoT_0.json", answers[:1])
    write(tmp_path / "llm" / "test_CoT_1.json", answers[1:])
    return tmp_path, data


def test_one_object_accounts_for_every_row(cqa):
    folder, data = cqa
    report = parse_answers("cqa", [str(folder / "llm" / "test_CoT_*.json")], data)
    examples = report.pop("examples")
    assert report == {
        "dataset": "cqa",
        "rows": 4,
        "parsed": 3,
        "failures": {"no_marker": 1},
        "labels_outside_set": 1,
        "judged": 4,
        "teacher_accuracy": 0.25,
    }
    assert examples["no_marker"] == [{"id": "questions/3", "label": None, "answer": "It is cut off"}]
    assert [(row["id"], row["label"]) for row in examples["label_outside_set"]] == [("questions/2", "bee")]
    assert json.loads(render({**report, "examples": examples}, as_json=True))["rows"] == 4
    text = render({**report, "examples": examples})
    assert "3 of 4 answers read in full" in text
    assert "25.00% of 4 rows" in text
    assert "no_marker: 1" in text


def test_one_file_and_answers_alone(cqa):
    folder, _ = cqa
    report = parse_answers("cqa", [folder / "llm" / "test_CoT_1.json"])
    assert (report["rows"], report["parsed"], report["teacher_accuracy"], report["judged"]) == (3, 2, None, 0)
    assert report["labels_outside_set"] == 0
    assert "accuracy" not in render(report)


def test_files_are_read_in_numeric_order(tmp_path):
    for number in (10, 9, 1, 0, 2):
        write(tmp_path / f"a_{number}.json", [])
    names = [path.name for path in find_answers([str(tmp_path / "a_*.json"), tmp_path / "a_9.json"])]
    assert names == ["a_0.json", "a_1.json", "a_2.json", "a_9.json", "a_10.json"]


def test_what_is_refused(cqa):
    folder, data = cqa
    with pytest.raises(ValueError, match=r"questions.json has 4 rows, but the 1 files of answers hold 1 \(.*_0.json\)"):
        parse_answers("cqa", [folder / "llm" / "test_CoT_0.json"], data)
    with pytest.raises(FileNotFoundError, match="no file of answers"):
        parse_answers("cqa", [str(folder / "none_*.json")], data)
    with pytest.raises(ValueError, match="no dataset 'sqa'; datasets are anli1"):
        parse_answers("sqa", [folder / "llm" / "test_CoT_0.json"], data)
    with pytest.raises(ValueError, match="row rows/0: there is no column 'choices'; columns there: text"):
        parse_answers("cqa", [write(folder / "one.json", ["a"])], write(folder / "rows.json", [{"text": "?"}]))


def test_a_dataset_of_ones_own(tmp_path):
    data = tmp_path / "other.jsonl"
    data.write_text('{"input": "Black screen", "label": "hardware"}\n{"input": "Twice", "label": null}\n')
    answers = write(tmp_path / "answers.json", ["A device. Team: Hardware", "Money. Team: cash"])
    parser = MarkerParser("Team:", label="line")
    custom = CustomDataset("tickets", "elsewhere.jsonl", parser=parser, label_set=("hardware", "billing"))
    report = parse_answers(custom, [answers], data)
    assert (report["parsed"], report["labels_outside_set"], report["judged"]) == (2, 1, 1)
    assert report["teacher_accuracy"] == 1.0


@pytest.mark.parametrize(
    ("dataset", "split", "expected"),
    [
        ("cqa", "test", {"rows": 1221, "parsed": 1221, "failures": {}}),
        ("svamp", "test", {"rows": 200, "parsed": 198, "failures": {"no_marker": 2}}),
        ("esnli", "valid", {"rows": 9842, "parsed": 9838, "failures": {"no_marker": 4}}),
    ],
)
def test_palms_files(shared_data, dataset, split, expected):
    folder = shared_data / "dss" / dataset
    report = parse_answers(dataset, [str(folder / "llm" / f"{split}_CoT_*.json")], folder / f"{dataset}_{split}.json")
    assert {key: report[key] for key in expected} == expected
    assert report["judged"] == report["rows"]


def test_asdivs_file_is_xml(shared_data, tmp_path):
    data = shared_data / "asdiv" / "ASDiv.xml"
    answers = write(tmp_path / "a.json", ["So 9. The answer is (7 + 2)."] + ["no"] * 2304)
    report = parse_answers("asdiv", [answers], data)
    assert (report["rows"], report["parsed"]) == (2305, 1)
    assert report["teacher_accuracy"] == pytest.approx(1 / report["judged"])
    with pytest.raises(
        ValueError, match="is no file of the dataset 'bestiary', whose rows come from the generated world"
    ):
        parse_answers("bestiary", [answers], data)


def test_neither_tensorflow_nor_jax_is_loaded(cqa):
    folder, data = cqa
    code = (
        "import sys; from dsbs_jax.data.parse_answers import parse_answers; "
        f"parse_answers('cqa', [{str(folder / 'llm' / 'test_CoT_*.json')!r}], {str(data)!r}); "
        "print([name for name in ('tensorflow', 'jax', 'seqio', 'gin') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_half_a_surrogate_pair_can_be_printed(tmp_path):
    (tmp_path / "answers.json").write_text('["no idea \\ud83d"]', encoding="ascii")
    text = render(parse_answers("cqa", [tmp_path / "answers.json"]), as_json=True)
    assert json.loads(text.encode("utf-8"))["rows"] == 1
