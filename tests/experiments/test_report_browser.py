"""The report's pages in a browser, as a reader uses them: mouse, keyboard, a phone's width, and no way out."""

import json
import shutil
import time

import pytest

from dsbs_jax.experiments.report import write_report

pytest.importorskip("selenium", reason="drives the browser: pip install 'dsbs_jax[test]'")
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

EXAMPLES = 40
EVIL = "</script><script>console.error('ran')</script><img src=x onerror=alert(1)> <!-- & | \\ \u2028 \"'"
# Right answers of 40: half of the data, then all of it; seeds 0 and 1.
RIGHT = {
    ("standard", "llm"): ((10, 12), (20, 24)),
    ("step_by_step", "expert"): ((14, 16), (30, 32)),
    ("step_by_step", "llm"): ((16, 16), (32, 36)),
}
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}


@pytest.fixture(scope="module")
def root(tmp_path_factory, cell_record, finish_cell):
    """A finished sweep: two methods, two teachers, two shares of the data, two seeds."""
    root = tmp_path_factory.mktemp("sweep")
    for (method, teacher), counts in RIGHT.items():
        data = {"teacher": {"test": {"rows": EXAMPLES, "right": 38 if teacher == "llm" else 36}}}
        for fraction, by_seed in zip((0.5, 1.0), counts, strict=True):
            for seed, count in enumerate(by_seed):
                name = f"{method}-{teacher}-{fraction}-{seed}"
                record = cell_record(name, method, fraction=fraction, seed=seed, teacher=teacher)
                answers = [
                    {"id": f"test/{i}", "input": EVIL if i == 0 else f"question {i}", "label": "yes"}
                    | {"prediction": "yes" if i < count else "constructor", "correct": i < count, "output": "yes"}
                    | {"teacher_label": "yes", "rationale": f"{teacher} says: {EVIL}"}
                    for i in range(EXAMPLES)
                ]
                finish_cell(root, record, answers, data)
    return root


@pytest.fixture(scope="module")
def page(root):
    return write_report(root)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """One browser for all tests of this file."""
    programs = [
        next(filter(None, map(shutil.which, names)), None)
        for names in (("chromium", "chromium-browser", "google-chrome"), ("chromedriver",))
    ]
    if not all(programs):
        pytest.skip("no chromium with chromedriver here: install both to see the pages in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    flags = ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-component-update")
    for flag in (*flags, "disable-background-networking", "disable-sync", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with pytest.MonkeyPatch.context() as patch:
        # An environment's proxy does not know this machine's loopback address, where chromedriver listens.
        patch.setenv("NO_PROXY", "localhost,127.0.0.1")
        patch.setenv("no_proxy", "localhost,127.0.0.1")
        driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
        yield driver
        driver.quit()


@pytest.fixture
def browser(chromium):
    """The browser; after each test nothing stands in its console, and no request has left the pages."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    chromium.get("about:blank")
    # What was before, such as the browser's own first page, is not the test's.
    for name in ("browser", "performance"):
        chromium.get_log(name)
    yield chromium
    assert chromium.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(url.startswith("file://") for url in asked), asked
    assert {url.partition("#")[0].rpartition("/")[2] for url in asked} <= {"report.html", "examples.html"}


def texts(browser, selector):
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def centres(browser, selector):
    """Where elements lie on the screen: [(x, y)]."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
        ".map(b => [b.x + b.width / 2, b.y + b.height / 2])",
        selector,
    )


def one(browser, selector):
    return browser.find_element("css selector", selector)


def until(true):
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_marks_lie_where_the_axes_say(browser, page):
    browser.get(page.as_uri())
    assert texts(browser, ".plot text.label") == ["training data used, %", "test accuracy, %"]
    across, up = (
        dict(zip(texts(browser, ticks), centres(browser, ticks), strict=True))
        for ticks in (".plot text[text-anchor=middle]", ".plot text[text-anchor=end]")
    )
    for line, counts in enumerate(RIGHT.values()):
        marks = centres(browser, f".plot .slot{line} .point")[:2]
        for (x, y), tick, by_seed in zip(marks, ("50", "100"), counts, strict=True):
            assert x == pytest.approx(across[tick][0], abs=1)
            share = (up["20"][1] - y) / (up["20"][1] - up["100"][1])
            assert 20 + 80 * share == pytest.approx(100 * sum(by_seed) / 2 / EXAMPLES, abs=0.5)
    # Two teachers; and the paper's four numbers, side by side to the right of all data.
    assert len(centres(browser, ".plot line.teacher[data-said]")) == 2
    marks = [x for x, _ in centres(browser, ".plot .mark[data-said]")]
    assert len(marks) == 4
    assert marks == sorted(marks)
    drawing = one(browser, ".plot svg").rect
    assert across["100"][0] < marks[0] < marks[-1] < drawing["x"] + drawing["width"]


def test_lines_differ_without_colour(browser, page):
    browser.get(page.as_uri())
    look = """return [...document.querySelectorAll('.plot svg[role=img] > g')].map(g => {
      const line = g.querySelector('polyline, line'), mark = g.querySelector('.point, .mark');
      const dash = line && line.getAttribute('stroke-dasharray');
      return [g.className.baseVal.split(' ')[0], dash, mark && mark.getAttribute('d')];
    })"""
    looks = [tuple(one) for one in browser.execute_script(look)]
    assert len(looks) == len(RIGHT) + 2 + 4
    assert len(set(looks)) == len(looks)
    students = [(dash, mark) for kind, dash, mark in looks if kind == "series"]
    assert len({dash for dash, _ in students}) == len({mark for _, mark in students}) == len(RIGHT)


def test_a_line_is_switched_off_and_stays_off(browser, page):
    browser.get(page.as_uri())
    drawn = lambda: one(browser, "g[data-series=s0]").is_displayed()  # noqa: E731
    button = one(browser, ".legend button")
    assert (button.text, drawn()) == ("standard finetuning", True)
    button.click()
    assert not drawn()
    assert one(browser, "g[data-series=s1]").is_displayed()
    # What is switched off is in the address: loaded anew, or sent to somebody, the page looks the same.
    browser.refresh()
    assert not drawn()
    one(browser, ".legend button").click()
    assert drawn()
    assert browser.current_url.endswith("#")


def test_the_keyboard_reaches_a_marks_seeds(browser, page):
    browser.get(page.as_uri())
    said = one(browser, "#said")
    assert not said.is_displayed()
    heard = []
    for _ in range(16):
        webdriver.ActionChains(browser).send_keys(Keys.TAB).perform()
        if said.is_displayed():
            heard.append(said.text)
    assert "standard finetuning\n55.00 ± 5.00 % at 100\nseed 0: 50.00, seed 1: 60.00" in heard
    assert "step-by-step, llm\n85.00 ± 5.00 % at 100\nseed 0: 80.00, seed 1: 90.00" in heard
    # The browser's own titles would hide it.
    assert browser.execute_script("return document.querySelectorAll('.plot title').length") == 0


def test_filters_change_the_examples(browser, page):
    browser.get(page.with_name("examples.html").as_uri())
    shown = lambda: len(browser.find_elements("css selector", ".sample"))  # noqa: E731
    assert shown() == EXAMPLES
    # The first, with all that was said of it, as it was written.
    first = one(browser, ".sample").get_attribute("textContent")
    assert EVIL in first
    assert f"teacher llm's rationalellm says: {EVIL}" in first
    assert f"teacher expert's rationaleexpert says: {EVIL}" in first
    assert "teacher expert's labelyes" in first
    assert browser.find_elements("css selector", "img") == []
    show = one(browser, "select[name=show]")
    # More than half of two seeds is both: standard on the first 20 examples, step-by-step (expert's) on the first 30.
    for key, option, count in (
        (Keys.ARROW_DOWN, "step-by-step right, standard wrong", 10),
        (Keys.ARROW_DOWN, "step-by-step wrong, standard right", 0),
        (Keys.ARROW_UP, "step-by-step right, standard wrong", 10),
    ):
        show.send_keys(key)
        chosen = browser.execute_script("return arguments[0].selectedOptions[0].text", show)
        assert (chosen, shown()) == (option, count)
    one(browser, "input[name=q]").send_keys("question 25")
    until(lambda: shown() == 1)
    address = browser.current_url
    assert address.endswith("#group=0&pair=0&show=gained&q=question+25")
    browser.get(page.as_uri())
    browser.get(address)
    assert shown() == 1
    # The other teacher's students are right on the first 32.
    for name, keys in (("q", Keys.BACKSPACE * 20), ("pair", Keys.ARROW_DOWN)):
        one(browser, f"[name={name}]").send_keys(keys)
    chosen = "return document.querySelector('[name=pair]').selectedOptions[0].text"
    assert browser.execute_script(chosen) == "step-by-step, llm against standard finetuning"
    assert shown() == 12


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_sticks_out(browser, page, scheme):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    for name in ("report.html", "examples.html"):
        browser.get(page.with_name(name).as_uri())
        width = "return [innerWidth, document.documentElement.scrollWidth]"
        assert browser.execute_script(width) == [360, 360], name
        # What was said has the width of the page, however long the name of who said it.
        widths = "return [...document.querySelectorAll('.sample dd')].map(e => e.getBoundingClientRect().width)"
        assert all(width > 250 for width in browser.execute_script(widths))
        colours = "const look = getComputedStyle(document.body); return [look.color, look.backgroundColor]"
        dark_text = sum(map(int, browser.execute_script(colours)[0].strip("rgba()").split(",")[:3])) < 384
        assert dark_text == (scheme["features"][0]["value"] == "light")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_a_watched_page_loads_itself_anew_and_stays_as_it_was(browser, root, tmp_path):
    page = write_report(root, tmp_path / "report", reload=1)
    browser.get(page.as_uri())
    one(browser, ".legend button").click()
    browser.execute_script("window.before = true")
    until(lambda: browser.execute_script("return window.before") is None)
    assert not one(browser, "g[data-series=s0]").is_displayed()
    browser.get(page.with_name("examples.html").as_uri() + "#show=gained")
    browser.execute_script("window.before = true")
    until(lambda: browser.execute_script("return window.before") is None)
    assert len(browser.find_elements("css selector", ".sample")) == 10
