"""The report: the same numbers in three forms, and nothing that a teacher writes gets out of its place."""

import html.parser
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsbs_jax.teacher.agreement import same_label
from dsbs_jax.teacher.quality import measure
from dsbs_jax.teacher.report import MENDS, as_json, as_text, findings, percent
from dsbs_jax.teacher.report_html import as_html

EXACT = same_label("exact")
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\x00 & \"q\" 'a' </dd></style>\u202e\ud800"
ABOUT = {"dataset": "tickets", "teacher": "a model"}


def row(number=0, text="It beeps, so it is hardware.", gold="hardware", label="hardware", **other):
    return {
        "id": f"train/{number}",
        "input": text,
        "label": gold,
        "answers": [text],
        "rationale": text,
        "teacher_label": label,
        "failure": None,
        "agreement": 1,
        "samples": 1,
    } | other


class Page(html.parser.HTMLParser):
    """Tags, attributes and texts of a page; fails where tags are not nested."""

    VOID = ("meta",)

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], set(), [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


TAGS = {
    *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "h3", "div", "b", "span", "section", "ul"),
    *("li", "p", "table", "tr", "th", "td", "i", "details", "summary", "code", "dl", "dt", "dd"),
    *("svg", "rect", "text", "line"),
}


def evil_rows(text):
    return [
        row(0, text, text, text),
        row(1, text, text, "other"),
        row(2, text, text, None, failure=text or "f", rationale=None),
        row(3, text, text, text, agreement=2, samples=3, id=text),
    ]


def check_page(page):
    parsed = Page(page)
    assert parsed.tags <= TAGS
    for name, value in parsed.attributes:
        assert not name.startswith("on")
        assert name not in ("src", "href", "srcset", "action")
        assert "url(" not in (value or "")
    page.encode("utf-8")
    return parsed


def test_what_a_teacher_writes_is_text_and_nothing_else():
    quality = measure(evil_rows(EVIL), EXACT)
    page = as_html(quality, {EVIL: EVIL}, title=EVIL)
    parsed = check_page(page)
    shown = "".join(parsed.texts)
    assert "<script>alert(1)</script>" in shown, "escaped, not removed"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", page)


@given(st.text(max_size=40) | st.lists(st.sampled_from("<>&\"'\n\x00/-!{}aé"), max_size=20).map("".join))
def test_any_text_leaves_the_page_whole(text):
    check_page(as_html(measure(evil_rows(text), EXACT), {text: text}, title=text))


def test_the_page_asks_for_nothing_from_elsewhere():
    page = as_html(measure(evil_rows("a"), EXACT), ABOUT)
    assert "default-src 'none'" in page
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe", page)
    assert "prefers-color-scheme: dark" in page


def test_a_terminal_gets_no_escape_sequences():
    text = as_text(measure(evil_rows(EVIL), EXACT), {EVIL: EVIL})
    assert all(character == "\n" or character.isprintable() for character in text)


def test_json_is_json_and_has_the_numbers():
    rows = [row(i, f"It beeps {i} times") for i in range(8)] + [
        row(8, label="billing"),
        row(9, label=None, failure="no_label"),
    ]
    quality = measure(rows, EXACT, label_set=("hardware", "billing"))
    report = json.loads(json.dumps(as_json(quality, ABOUT)))
    assert report["about"] == ABOUT
    assert (report["rows"], report["correct"], report["accuracy"]) == (10, 8, 0.8)
    assert report["classes"] == {"hardware": {"rows": 10, "correct": 8}}
    assert report["failures"] == {"no_label": 1}
    assert report["failure_samples"]["no_label"][0]["id"] == "train/9"
    assert report["rationale_word_quantiles"]["50"] == 4
    assert any("no_label" in finding for finding in report["findings"])


def test_the_same_numbers_in_text_and_page():
    rows = [row(i, f"It beeps {i} times") for i in range(8)] + [row(8, label="billing")]
    quality = measure(rows, EXACT, label_set=("hardware", "billing"))
    text, page = as_text(quality, ABOUT), "".join(Page(as_html(quality, ABOUT)).texts)
    assert "teacher's accuracy: 8 (88.9 %) of 9 rows" in text
    assert "dataset: tickets" in text
    for shown in ("88.9 %", "tickets", "a model", "hardware", "billing"):
        assert shown in page


def test_nothing_to_report_is_a_report_too():
    quality = measure([], EXACT)
    check_page(as_html(quality))
    assert "rows: 0" in as_text(quality)
    json.dumps(as_json(quality))
    assert findings(quality) == []


@pytest.mark.parametrize(
    ("rows", "finding"),
    [
        ([row(0, failure="no_marker", label=None)], f"failed with no_marker: {MENDS['no_marker']}."),
        ([row(0, gold=None)], "No row has a gold label"),
        (
            [row(i, gold="a", label="a") for i in range(9)] + [row(9, gold="b", label="a")],
            "right on 0 % of the rows whose gold label is 'b', against 90 % of all; most often it says 'a' instead",
        ),
        ([row(0), row(1)], "50 % of the rationales repeat an earlier one"),
        ([row(0, "A long text that says it all")], "100 % of the rationales say little more than their question"),
        (
            [row(0, agreement=2, samples=2), row(1, agreement=1, samples=2, label="x")],
            "Where all samples agree the teacher is right on 100 % of the rows, elsewhere on 0 %",
        ),
    ],
)
def test_findings_say_what_to_look_at(rows, finding):
    assert any(finding in found for found in findings(measure(rows, EXACT)))


def test_nothing_stands_out_where_all_is_well():
    inputs = ["It beeps.", "No light.", "It smokes.", "It hums."]
    texts = [
        "A beep is a device's.",
        "Lamps are parts of one.",
        "Smoke comes from machines only.",
        "Humming fans are parts.",
    ]
    rows = [
        row(i, gold="h", label="h", input=a, rationale=b) for i, (a, b) in enumerate(zip(inputs, texts, strict=True))
    ]
    quality = measure(rows, EXACT)
    assert findings(quality) == []
    assert "Nothing stands out" in as_html(quality)


def test_percentages_do_not_round_to_nothing_or_all():
    assert [percent(*pair) for pair in ((0, 5), (1, 9999), (9998, 9999), (5, 5), (1, 8), (0, 0))] == [
        *("0 %", "< 0.1 %", "> 99.9 %", "100 %", "12.5 %", "0 %")
    ]
