"""The pieces of the page: what is shown cannot act, curves lose nothing that can be seen, axes have round numbers."""

import math
import re
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agl_core.reporting.goodput.account import Account, account
from agl_core.reporting.live.snapshot import LastEnd, Snapshot, take
from agl_core.reporting.page.chart import Chart, Series, figure
from agl_core.reporting.page.head import figures, last_end, where
from agl_core.reporting.page.layout import spread
from agl_core.reporting.page.markup import MOST_LETTERS, Markup, el, escape, join, table, visible
from agl_core.reporting.page.page import page
from agl_core.reporting.page.scales import Scale, linear, logarithmic, moments, told, within
from agl_core.reporting.page.thinning import band, thinned
from agl_core.reporting.page.timeline import pieces
from agl_core.reporting.report import Now, Report, Setting, Stage, Validation

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)


def test_text_is_escaped_once_and_markup_never() -> None:
    bold = el("b", "a < b & 'c'")
    assert bold == "<b>a &lt; b &amp; &#x27;c&#x27;</b>"
    assert el("p", bold, "<i>") == f"<p>{bold}&lt;i&gt;</p>"
    assert bold + "<" == f"{bold}&lt;"
    assert isinstance(bold + "<", Markup)
    assert join(["<", Markup("<br>")]) == "&lt;<br>"
    assert el("a", "x", href='" onclick="y', class_="k", data_n=None) == (
        '<a href="&quot; onclick=&quot;y" class="k">x</a>'
    )


@given(st.text())
def test_no_text_can_open_or_close_anything(text: str) -> None:
    shown = str(escape(text))
    assert not set("<>\"'") & set(shown)
    assert not re.search(r"&(?!(amp|lt|gt|quot|#x27);)", shown)
    shown.encode()  # no lone surrogates


def test_what_acts_instead_of_being_seen_is_named_and_endless_text_is_cut() -> None:
    assert visible("a\u202eb\x00c\x1b[1m") == "a[U+202E]b[U+0000]c[U+001B][1m"
    assert visible("Zürich 東京 €\n\tx") == "Zürich 東京 €\n\tx"
    assert len(visible("x" * 10**6)) < MOST_LETTERS + 10


def test_a_table_has_as_many_cells_as_it_is_given() -> None:
    made = table(["a", "b"], [["<td>", "1"], ["x", "2"]])
    assert made.count("<td") == 4
    assert made.count("<th ") == 2
    assert made.count('class="n"') == 3


@given(st.lists(st.tuples(st.floats(0, 100), NUMBERS), max_size=400), st.integers(1, 50))
def test_a_thinned_curve_covers_the_same_pixels(points: list[tuple[float, float]], columns: int) -> None:
    points = sorted(points, key=lambda point: point[0])
    kept = thinned(points, 0, 100, columns)
    assert [point for point in points if point in kept] or not points
    assert len(kept) <= 4 * (columns + 1)

    def outline(shown: list[tuple[float, float]]) -> dict[int, tuple[float, float]]:
        found: dict[int, tuple[float, float]] = {}
        for x, y in shown:
            low, high = found.get(int(x * columns / 100), (y, y))
            found[int(x * columns / 100)] = min(low, y), max(high, y)
        return found

    assert outline(kept) == outline(points)
    assert kept[:1] + kept[-1:] == points[:1] + points[-1:]
    for _, low, mean, high in band(points, 0, 100, columns):
        assert low - 1e-6 <= mean <= high + 1e-6


def test_what_is_not_finite_is_not_drawn() -> None:
    assert thinned([(0, math.nan), (1, 2), (math.inf, 1), (2, -math.inf)], 0, 2, 10) == [(1, 2)]
    assert figure(Chart("t", [Series("a", [(0, math.nan)])])) == ""
    assert figure(Chart("t", [Series("a", [(0, 0), (1, -1)])], log=True)) == ""
    for value in (1e308, -1e308, 5e-324, 1e-200, 0.0):
        assert "<svg" in figure(Chart("t", [Series("a", [(0, 1), (1, value)])], log=value == 1e-200))
        assert "nan" not in figure(Chart("t", [Series("b", [(0, value), (value, value)]), Series("c", [(0, 1)])]))


@given(NUMBERS, NUMBERS)
def test_axes_hold_all_values_between_few_round_ticks(one: float, other: float) -> None:
    low, high = sorted((one, other))
    scale, ticks = linear(low, high, 0, 100)
    assert 2 <= len(ticks) <= 9
    assert ticks[0] == pytest.approx(scale.low, abs=1e-9)
    slack = 1e-6 * (scale.high - scale.low) + 1e-9
    assert scale.low <= low + slack
    assert scale.high >= high - slack
    _, inside = within(0, abs(high), 0, 100)
    assert all(0 <= tick <= max(abs(high) * (1 + 1e-9), 1) for tick in inside)
    assert inside


@pytest.mark.parametrize(("low", "high"), [(1e-7, 1e-4), (0.1, 0.3), (2, 2), (1e-12, 1e6), (0.999, 1.001)])
def test_axes_of_powers_hold_all_values(low: float, high: float) -> None:
    scale, ticks = logarithmic(low, high, 100, 0)
    assert 2 <= len(ticks) <= 12
    assert scale.low <= low * 1.000001
    assert scale.high >= high / 1.000001
    assert scale(scale.low) == 100
    assert scale(scale.high) == pytest.approx(0)


@pytest.mark.parametrize("seconds", [5, 300, 7200, 86400, 700000, 1e7, 3e8])
def test_times_have_ticks_at_round_moments(seconds: float) -> None:
    _, ticks = moments(1_750_000_123.4, 1_750_000_123.4 + seconds, 0, 1000)
    assert 1 <= len(ticks) <= 8
    assert all(text for _, text in ticks)
    assert [told(value) for value in (0, 0.25, 1e-7, 25000, 1.5e6, 1550)] == ["0", "0.25", "1e-7", "25k", "2e6", "1550"]


@given(st.lists(st.floats(0, 200), min_size=1, max_size=12))
def test_names_beside_curves_are_a_line_apart(places: list[float]) -> None:
    found = spread(sorted(places), 14, 0, 200)
    assert all(b - a >= 14 - 1e-6 for a, b in pairwise(found))
    assert found[-1] <= 200 + 1e-6
    assert found[0] >= -1e-6 or len(found) * 14 > 200


@dataclass(frozen=True)
class Stretch:
    begin: float
    end: float
    item: str


def test_the_timeline_shows_every_stretch_that_can_be_seen_and_joins_those_that_cannot() -> None:
    spans = [Stretch(0, 100, "queue"), Stretch(100, 101, "start-up")]
    spans += [
        Stretch(101 + n / 100, 101 + (n + 1) / 100, "validation" if n % 10 == 0 else "training") for n in range(9900)
    ]
    spans += [Stretch(200, 260, "down")]
    found = pieces(spans, Scale(0, 260, 0, 260))  # type: ignore[arg-type]
    assert [item for _, _, item in found] == ["queue", "start-up", "training", "down"]
    assert found[2][1] - found[2][0] == pytest.approx(99, abs=1)
    assert found[-1][:2] == (200, 260)


def report(**changes: object) -> Report:
    stage = Stage("a", False, 10, 20, 1, 2, 1, curve=[Validation(5, 1, 0.5, {"X": 0.5}, 0.6, {"score": {"X": 0.5}})])
    values = {"name": "first", "kind": "run", "path": "/runs/first", "made": 1e9, "version": "1", "stages": [stage]}
    return Report(**{**values, **changes})  # type: ignore[arg-type]


def test_a_page_of_nothing_and_of_little_is_whole_and_always_the_same() -> None:
    empty = Report("first", "run", "/runs/first", 1e9, "1")
    for told_of in ([empty], [report()], [report(), empty], [report(now=Now("running", "a", "17", "n1"))]):
        text = page(told_of)
        assert text == page(told_of)
        assert text.startswith("<!DOCTYPE html>")
        assert text.endswith("</html>\n")
        assert "nan" not in re.sub(r"<script>.*</script>", "", text, flags=re.S).lower().split()
    assert "Nothing of it was started yet." in page([empty])
    assert "<h2" not in page([empty])


def test_the_best_is_that_of_the_average_where_it_is_higher() -> None:
    text = page([report()])
    assert "best 0.6000" in text
    assert "of the average of the weights" in text


def test_what_differs_from_the_recipe_comes_first_and_identity_before_the_rest() -> None:
    settings = [
        Setting("same", "1", "1", True),
        Setting("workers", "6", "null", False),
        Setting("lr", "0.2", "0.1", True),
        Setting("data", "/d", None, False),
    ]
    text = page([report(settings=settings)])
    differing = text[text.index("What differs from the recipe") : text.index("All 4 settings")]
    assert differing.index(">lr<") < differing.index(">workers<")
    assert ">same<" not in differing
    assert ">data<" not in differing


def test_of_several_runs_only_the_settings_that_differ_are_told() -> None:
    one = report(settings=[Setting("seed", "1", "1", True), Setting("lr", "0.1", "0.1", True)])
    two = report(name="second", settings=[Setting("seed", "2", "1", True), Setting("lr", "0.1", "0.1", True)])
    text = page([one, two])
    told_of = text[text.index("What differs</h2>") : text.index("Curves</h2>")]
    assert ">seed<" in told_of
    assert ">lr<" not in told_of


def books() -> Account:
    """Of a stage that was interrupted twice and refused once."""
    events = []
    for number, (end, why) in enumerate((("interrupted", "INT"), ("interrupted", "preempted"), ("refused", ""))):
        who = {"stage": "a", "id": "17", "restart": number, "attempt": 0, "host": "n1"}
        events.append({"time": 100.0 * number, "kind": "launch", **who})
        events.append({"time": 100.0 * number + 90, "kind": "leave", "end": end, "why": why, "deed": "", **who})
    found = account(events)
    assert found is not None
    return found


def of_reasons(**reasons: int) -> Snapshot:
    return replace(take([], None, 1e9), reasons=reasons)


def test_the_newest_step_tells_the_epoch_everywhere() -> None:
    stage = Stage("a", False, 213, 600, epoch=186, epochs=533, starts=1)
    found = report(stages=[stage], now=Now("interrupted", "a", "17"))
    assert "epoch 189 of 533, step 213" in where(found)
    assert "189 of 533 epochs" in figures(found)
    assert "188 of 533 epochs" in figures(report(stages=[replace(stage, step=212)]))  # 188.3: 188 are done
    assert "epoch 189 of" in where(report(stages=[replace(stage, step=213)], now=Now("interrupted", "a")))


def test_a_refusal_counts_as_no_interruption_anywhere() -> None:
    assert books().interruptions == 2
    end = LastEnd("a", "refused", "", 290.0, 90.0, None, None)
    told_end = last_end(report(snapshot=replace(of_reasons(), last_end=end)))
    assert "interrupted" not in told_end
    assert "Refused to go on" in told_end
    preempted = replace(end, reason="preempted")
    assert "Last interrupted" in last_end(report(snapshot=replace(of_reasons(), last_end=preempted)))


@pytest.mark.parametrize(
    ("reasons", "mostly"), [({"INT": 1, "preempted": 1}, False), ({"INT": 1, "preempted": 2}, True), ({}, False)]
)
def test_mostly_is_more_than_half(reasons: dict[str, int], mostly: bool) -> None:
    assert ("mostly " in figures(report(account=books(), snapshot=of_reasons(**reasons)))) == mostly


def test_curves_that_hide_one_another_are_told_of_and_dashed_on_top() -> None:
    stage = Stage("a", True, 4, 4, 4, 4, 1, curve=[Validation(n, n, n / 10, {}) for n in range(1, 5)])
    other = replace(stage, curve=[Validation(n, n, n / 9, {}) for n in range(1, 5)])
    three = [report(stages=[stage]), report(name="second", stages=[other]), report(name="third", stages=[stage])]
    text = page(three)
    text = text[text.index('id="curves"') : text.index('id="runs"')]
    assert "Dashed, on top: third is the same as first." in text
    assert re.findall(r'class="line (\w+ ?\w*)" data-n="(\w+)"', text)[:3] == [
        ("k1", "second"), ("k0", "first"), ("k2 dashed", "third"),
    ]  # fmt: skip
    assert "Dashed" not in page([three[0], three[1]])


def test_a_comparison_says_where_all_of_it_is_from() -> None:
    assert "from /runs/first, /runs/second by" in page([report(), report(name="second", path="/runs/second")])


def test_of_machines_is_told_once_what_was_always_the_same() -> None:
    first = {"host": "n1", "torch": "2.9", "python": "3.11"}
    stage = Stage("a", False, 1, 2, machines=[first, {**first, "host": "n2"}], starts=2)
    text = page([report(stages=[stage])])
    text = text[text.index('id="machine"') :]
    assert text.count("2.9") == 1
    assert "<td>n1</td>" in text
    assert "<td>n2</td>" in text
