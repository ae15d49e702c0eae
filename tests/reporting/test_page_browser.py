"""The page in a real browser: it says nothing wrong, asks for nothing, shows its curves, and runs nothing of others."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agl_core.config import ReportConfig, StageConfig, TrainConfig
from agl_core.geometry import Pose
from agl_core.reporting.events import Appender, EventLog
from agl_core.reporting.page.script import SCRIPT
from agl_core.reporting.pictures.tiles import Tile, write_tiles
from jobs.history import History
from jobs.reports import report
from jobs.runs import Run, create, run_of
from tests.reporting.browser import Browser
from tests.reporting.histories import CITIES, long_run

MIB = 2**20
EVIL = (
    "<script>window.ran=1</script>",
    "\"'><img src=x onerror=window.ran=2>",
    "]]></style></script><script>window.ran=3</script><!--",
    "</title><svg onload=window.ran=4>",
    "a\x00\x1b[31m\x07b\x85c",
    "\u202egnp.exe\u2066\u200f\ufeff",
    "javascript:window.ran=5",
    "{{7*7}} ${7*7} &lt;b&gt; &#0; \ud800",
)
SHOWN = """return [...document.querySelectorAll(arguments[0])].filter(one => one.checkVisibility()).map(one => {
  const box = one.getBoundingClientRect();
  return {width: box.width, height: box.height, text: one.textContent, points: (one.dataset.v || "").split(" ").length,
    name: one.dataset.n || ""};
});"""


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run of 1550 epochs and 50 starts."""
    folder = long_run(tmp_path_factory.mktemp("runs") / "long")
    return told("long", folder.parent)


def told(names: str, runs: Path) -> Path:
    out = runs / "report.html"
    report(ReportConfig(run=names, runs=str(runs), out=str(out)))
    return out


def checked(browser: Browser, page: Path) -> None:
    """Nothing was wrong with the page that is open, and nothing but it was asked for."""
    assert browser.console() == []
    asked = browser.requests()
    assert asked, "the log of requests is kept"
    assert [url for url in asked if url != page.as_uri() and not url.startswith("data:")] == []


def test_a_run_of_1550_epochs_and_50_starts_is_below_5_mb_and_shows_its_curves(browser: Browser, long: Path) -> None:
    assert long.stat().st_size < 5 * MIB
    browser.open(long)
    checked(browser, long)
    curves = browser.run(SHOWN, "svg.curves path[data-v]")
    names = [curve["name"] for curve in curves]
    for city in CITIES:
        assert names.count(city) == 3, "score, heights and flow"
    score = next(curve for curve in curves if curve["name"] == "score")
    assert score["points"] > 800
    assert (score["width"], score["height"]) > (900, 100)
    for curve in curves:
        assert curve["points"] > 100
        assert curve["width"] > 200
    assert len(browser.run(SHOWN, "svg.curves .restart")) > 48
    assert {one["text"] for one in browser.run(SHOWN, "svg.curves .stagename")} == {"crops", "full"}
    timeline = browser.run(SHOWN, "svg rect.item")
    assert len(timeline) > 100
    assert min(piece["height"] for piece in timeline) > 5
    body = browser.run("return document.body.innerText")
    for word in ("preempted", "goodput", "Learning curves", "What the score would be", "Configuration"):
        assert word in body


@pytest.mark.parametrize("width", [1280, 800, 400])
def test_nothing_is_wider_than_the_window(browser: Browser, long: Path, width: int) -> None:
    browser.open(long, width)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.run("return document.documentElement.scrollWidth") <= width
    shown = browser.run(SHOWN, "svg.wide, svg.narrow")
    assert shown
    assert max(one["width"] for one in shown) <= width
    letters = browser.run(
        "return [...document.querySelectorAll('svg text')].filter(one => one.checkVisibility())"
        ".map(one => parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a)"
    )
    assert min(letters) > 8


def test_letters_of_a_chart_do_not_lie_on_one_another(browser: Browser, long: Path) -> None:
    for width in (1280, 400):
        browser.open(long, width)
        overlapping = browser.run(
            """return [...document.querySelectorAll('svg')].flatMap(svg => {
              const texts = [...svg.querySelectorAll('text')].filter(one => one.checkVisibility() && one.textContent);
              const boxes = texts.map(one => one.getBoundingClientRect());
              const found = [];
              texts.forEach((one, n) => texts.slice(n + 1).forEach((other, m) => {
                const a = boxes[n], b = boxes[n + 1 + m];
                const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
                const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
                if (wide > 1 && high > 4) found.push(one.textContent + ' / ' + other.textContent);
              }));
              return found;
            })"""
        )
        assert overlapping == []


def luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
    return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_it_is_dark_where_the_user_wants_it_and_light_on_paper_and_can_be_read(browser: Browser, long: Path) -> None:
    def colours() -> dict[str, Any]:
        return dict(
            browser.run(
                """const of = (one, what) => getComputedStyle(document.querySelector(one))[what];
                return {page: of('body', 'backgroundColor'), ink: of('body', 'color'), soft: of('p.note', 'color'),
                  tick: of('svg text.tick', 'fill'), lines: [0, 1, 2, 3].map(n => of('.line.k' + n, 'stroke'))};"""
            )
        )

    browser.open(long)
    light = colours()
    browser.open(long, dark=True)
    dark = colours()
    browser.media(dark=True, medium="print")
    paper = colours()
    assert luminance(light["page"]) > 0.9 > 0.1 > luminance(dark["page"])
    assert paper == light
    for found in (light, dark):
        for text in ("ink", "soft", "tick"):
            assert contrast(found[text], found["page"]) >= 4.5
        assert min(contrast(line, found["page"]) for line in found["lines"]) >= 3
        assert len(set(found["lines"])) == 4
    checked(browser, long)


def test_it_can_be_printed(browser: Browser, long: Path) -> None:
    browser.open(long)
    printed = browser.pdf()
    assert printed.startswith(b"%PDF")
    assert 2 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") <= 30
    browser.open(long, 760)
    browser.media(medium="print")
    right = "return Math.max(...[...document.querySelectorAll('table')].map(one => one.getBoundingClientRect().right))"
    assert browser.run(right) <= 760
    listed = browser.run("return document.querySelector('table.lives').getBoundingClientRect().height")
    assert listed > 500, "what is closed on a screen is on paper too"
    broken = browser.run(
        """const split = one => new Set([...one.getClientRects()].map(box => Math.round(box.top))).size > 1;
        return [...document.querySelectorAll('td.n, .lives td:nth-child(2)')].filter(one => {
          const range = document.createRange();
          range.selectNodeContents(one);
          return split(range);
        }).map(one => one.textContent)"""
    )
    assert broken == []


def test_values_are_told_under_the_pointer_and_nothing_is_missing_without_the_script(
    browser: Browser, long: Path
) -> None:
    browser.open(long)
    assert browser.run("return document.querySelectorAll('.tip').length") == 0
    whole = browser.run("return document.body.innerText")
    shown = browser.run(
        """const svg = document.querySelector('svg.curves'), box = svg.getBoundingClientRect();
        svg.dispatchEvent(new PointerEvent('pointermove', {clientX: box.left + box.width / 2, clientY: box.top + 50}));
        return document.querySelector('.tip').innerText.split('\\n');"""
    )
    assert shown[0].startswith("epoch 7")
    assert 0.85 < float(shown[1].removeprefix("score")) < 0.9
    text = long.read_text(encoding="utf-8")
    bare = long.with_name("bare.html")
    bare.write_text(text.replace(SCRIPT, ""), encoding="utf-8")
    browser.open(bare)
    assert browser.run("return document.body.innerText") == whole
    checked(browser, bare)


def test_its_policy_lets_nothing_in_or_out(browser: Browser, long: Path) -> None:
    browser.open(long)
    refused = browser.driver.execute_async_script(
        """const done = arguments[0], found = [];
        document.addEventListener('securitypolicyviolation', event => {
          found.push(event.effectiveDirective);
          if (found.length == 4) done(found.sort());
        });
        const script = document.createElement('script');
        script.textContent = 'window.ran = 1';
        document.body.append(script);
        const picture = new Image();
        picture.src = 'http://127.0.0.1:9/x.png';
        fetch('http://127.0.0.1:9/x').catch(() => 0);
        const sheet = document.createElement('style');
        sheet.textContent = 'body { color: red }';
        document.head.append(sheet);"""
    )
    assert refused == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    assert browser.run("return window.ran === undefined")
    browser.console()


def evil_run(runs: Path, name: str) -> Run:
    """A run in which whatever is shown is evil."""
    everything = " ".join(EVIL)
    stages = {EVIL[0]: StageConfig(), EVIL[1]: StageConfig(start="encoder")}
    data = everything.replace("\ud800", "").replace("${", "")
    config = TrainConfig(run=name, runs=str(runs), data=data, stages=stages, encoder=EVIL[2])
    run = run_of(config)
    create(run, config)
    for number, stage in enumerate(stages):
        log = EventLog(run.events, stage, number)
        log.write(
            "start", step=0, steps=20, epochs=4, world_size=1, device=everything, precision=EVIL[3], torch=EVIL[4]
        )
        for step in range(1, 20):
            log.write("step", step=step, epoch=1, loss=1.0 / step, lr=EVIL[0], crops_per_second=1.0)
        cities = {evil: {"score": 0.5, "agl_r2": 0.4, "vflow_r2": 0.6} for evil in EVIL}
        log.write("validation", step=5, epoch=1, score=0.5, cities=cities, seconds=1)
        log.write("validation", step=9, epoch=2, score=0.6, cities=cities, seconds=1)
        log.write("warning", step=9, text=everything)
        log.close()
    appender = Appender(run.events)
    for evil in EVIL:
        appender.append(json.dumps({"time": 1e9, "kind": evil, "stage": evil}))
    history = History(run.history)
    history.begin(EVIL[0], "pid 7", step=0)
    history.end(
        EVIL[0], "pid 7", step=9, end="crashed", why=EVIL[1], deed="give up", text=everything, traceback=everything
    )
    cities = {evil: {"images": 3, "score": 0.5, "agl_r2": evil} for evil in EVIL}
    what_if = {evil: {"score": 0.5, "cities": dict.fromkeys(EVIL, 0.5)} for evil in EVIL}
    run.score_file.write_text(
        json.dumps({"score": 0.5, "cities": cities, "what_if": what_if, "best_constant": EVIL[1]})
    )
    run.cluster_file.write_text(json.dumps({"executor": EVIL[0], "partition": EVIL[1].replace("${", "")}))
    heights = np.zeros((32, 32), np.uint16)
    rgb = np.zeros((32, 32, 3), np.uint8)
    tiles = [Tile(evil.replace("\ud800", ""), EVIL[0], rgb, heights, heights, None, Pose(1, 1)) for evil in EVIL]
    write_tiles(run.path / "tiles" / next(iter(stages)).replace("/", ""), tiles)
    return run


@pytest.mark.parametrize("names", ["evil", "evil,other"])
def test_nothing_that_others_have_written_runs(browser: Browser, tmp_path: Path, names: str) -> None:
    for name in names.split(","):
        evil_run(tmp_path, name)
    page = told(names, tmp_path)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    checked(browser, page)
    assert browser.run("return window.ran === undefined")
    assert browser.run("return document.scripts.length") == 1
    assert browser.run("return document.querySelectorAll('[onerror], [onload], iframe, object, base').length") == 0
    assert browser.run("return [...document.images].every(one => one.src.startsWith('data:image/'))")
    links = browser.run("return [...document.links].map(one => one.getAttribute('href'))")
    assert links
    assert all(link.startswith("#") for link in links)
    body = browser.run("return document.body.textContent")
    assert "<script>window.ran=1</script>" in body
    assert "]]></style></script>" in body
    assert "[U+202E]gnp.exe[U+2066][U+200F][U+FEFF]" in body
    assert "[U+001B]" in body
    for letter in "\u202e\u2066\u200f\ufeff\x00\x1b\x07\x85":
        assert letter not in body


def test_runs_are_compared_in_the_same_charts(browser: Browser, tmp_path: Path) -> None:
    long_run(tmp_path / "one", 30, 3)
    long_run(tmp_path / "two", 60, 5)
    config = tmp_path / "two" / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.0001", "lr: 0.0003", 1))
    page = told("one,two", tmp_path)
    browser.open(page)
    checked(browser, page)
    curves = browser.run(SHOWN, "#curves ~ figure path[data-v]")
    assert [curve["name"] for curve in curves] == ["two", "one"]
    one, two = (next(curve for curve in curves if curve["name"] == name) for name in ("one", "two"))
    assert one["width"] == pytest.approx(two["width"] / 2, rel=0.1)
    differing = browser.run(
        "return [...document.querySelectorAll('#differences ~ .scroll tr.differs')].map(r => r.innerText)"
    )
    assert any("optimizer.lr" in row and "0.0001" in row and "0.0003" in row for row in differing)
    browser.run("location.hash = '#run1'")
    assert browser.run("return document.querySelectorAll('details.run').length") == 2
