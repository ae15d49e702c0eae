"""Curves as SVG: axes, lines with a mark and a name of their own, stage changes, restarts, the best.

Colours are classes of the page's style sheet, so that they follow light and dark; every line differs from the others by
its marks or dashes too, and is named where it ends. A chart is drawn twice, for wide and for narrow windows, since the
letters of an SVG shrink with it; the style sheet shows one of the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agl_core.reporting.page.layout import LETTER, LINE, Size, cut, spread
from agl_core.reporting.page.marks import KINDS, symbol
from agl_core.reporting.page.markup import NOTHING, Markup, el, join, short
from agl_core.reporting.page.scales import Scale, linear, logarithmic, told, within
from agl_core.reporting.page.thinning import Point, band, thinned

LARGEST = 1e60  # no value of a run is larger, but a damaged file may say so
MOST_LABEL = 15  # letters of a name beside its curve
MOST_STAGES = 12  # names of stages in one chart


@dataclass(frozen=True)
class Series:
    """A curve. colour: number of its colour and mark, from 0; bare: without marks and name, for what is the only one;
    noisy: where its points are closer than pixels, their mean is drawn, over a band from the lowest to the highest;
    dashed: drawn over the others, with gaps through which that below it can be seen."""

    name: str
    points: Sequence[Point]
    colour: int = 0
    bare: bool = False
    noisy: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Star:
    """A point to look at, and what it is."""

    x: float
    y: float
    text: str


@dataclass(frozen=True)
class Chart:
    """What is drawn, and said below it. stages: where each begins and its name; restarts: where the run went on after
    an interruption; share: values of 0 to 1, told in percent; form: how a value is told on hovering; floor, ceiling:
    where the axis has to begin and end; calm: a few outliers do not set the axis, they are drawn at its border."""

    title: str
    series: Sequence[Series]
    note: str = ""
    x_name: str = "epoch"
    y_name: str = ""
    stages: Sequence[tuple[float, str]] = ()
    restarts: Sequence[float] = ()
    stars: Sequence[Star] = ()
    log: bool = False
    share: bool = False
    form: str = ".4g"
    floor: float | None = None
    ceiling: float | None = None
    calm: bool = False


def figure(chart: Chart, wide: Size | None = (520, 260), narrow: Size = (350, 250)) -> Markup:
    """The chart with its title and note, at two sizes, or at the narrow one alone; nothing if there is nothing to
    draw."""
    chart = replace(chart, series=[_finite(one, chart.log) for one in chart.series])
    chart = replace(chart, series=[one for one in chart.series if one.points])
    if not chart.series:
        return NOTHING
    low, high, beyond = _extent(chart)
    notes = [chart.note, beyond]
    said = el("p", " ".join(note for note in notes if note), class_="note") if any(notes) else NOTHING
    return el(
        "figure",
        el("figcaption", chart.title),
        _draw(chart, *wide, low, high, "wide") if wide is not None else NOTHING,
        _draw(chart, *narrow, low, high, "narrow"),
        said,
        class_="chart",
    )


def _finite(series: Series, log: bool) -> Series:
    points = [p for p in series.points if _drawable(p[0]) and _drawable(p[1]) and (p[1] > 1 / LARGEST or not log)]
    return replace(series, points=points)


def _drawable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


def _extent(chart: Chart) -> tuple[float, float, str]:
    """The lowest and the highest value of the axis, and what lies beyond it."""
    values = sorted(y for one in chart.series for _, y in one.points)
    low, high = values[0], values[-1]
    beyond = ""
    if chart.calm and len(values) > 20:
        first, last = (values[int(share * (len(values) - 1))] for share in (0.05, 0.95))
        border = max(min(first - 1.5 * (last - first), last), low)
        count = sum(value < border for value in values)
        if border - low > 0.05 * (high - low) and count:
            many = f"{count} values lie" if count > 1 else "1 value lies"
            beyond = f"{many} below the axis and {'are' if count > 1 else 'is'} drawn at its border (lowest {low:.4g})."
            low = border
    low = low if chart.floor is None else min(low, chart.floor)
    high = high if chart.ceiling is None else max(high, chart.ceiling)
    return low, high, beyond


def _draw(chart: Chart, width: int, height: int, low: float, high: float, class_: str) -> Markup:
    named = [one for one in chart.series if not one.bare]
    longest = max((min(len(one.name), MOST_LABEL) for one in named), default=0)
    right = 18.0 + longest * LETTER + 12 if named else 18.0
    top, bottom = (34.0 if chart.stages else 20.0), height - 34.0
    if chart.log:
        y, ticks = logarithmic(low, high, bottom, top)
    else:
        y, ticks = linear(low, high, bottom, top, 5)
    texts = [_tick(tick, chart.share) for tick in ticks]
    left = 12.0 + max(len(text) for text in texts) * LETTER
    x_high = max(point[0] for one in chart.series for point in one.points)
    x, x_ticks = within(0.0, max(x_high, 0.0), left, width - right, max(2, int((width - right - left) / 64)))
    columns = max(1, int(x.end - x.begin))
    parts = [
        _grid(y, ticks, texts, x),
        _feet(x, x_ticks, bottom, chart.x_name),
        el("text", chart.y_name, x=left, y=top - 8, class_="axis") if chart.y_name and not chart.stages else NOTHING,
        _stages(chart.stages, x, top, bottom),
        *(_restart(moment, x, bottom) for moment in _apart(chart.restarts, x)),
        *(_curve(one, x, y, columns, chart) for one in _from_below(chart.series)),
        *(_star(star, x, y) for star in chart.stars),
        _labels(named, x, y, top, bottom),
    ]
    return el(
        "svg",
        *parts,
        viewBox=f"0 0 {width} {height}",
        class_=f"curves {class_}",
        role="img",
        aria_label=_summary(chart),
        data_x=f"{short(x.begin)} {short(x.end)} {x.low:.8g} {x.high:.8g}",
        data_y=f"{short(top)} {short(bottom)}",
        data_name=chart.x_name,
    )


def _tick(value: float, share: bool) -> str:
    return f"{100 * value:.4g} %" if share else told(value)


def _summary(chart: Chart) -> str:
    ends = ", ".join(f"{one.name} {_value(chart, one.points[-1][1])}" for one in chart.series)
    return f"{chart.title}; at the end: {ends}"


def _value(chart: Chart, value: float) -> str:
    return f"{100 * value:.1f} %" if chart.share else f"{value:{chart.form}}"


def _grid(y: Scale, ticks: Sequence[float], texts: Sequence[str], x: Scale) -> Markup:
    def line(tick: float) -> Markup:
        class_ = "zero" if tick == 0 and y.low < 0 else "grid"
        return el("line", x1=x.begin, x2=x.end, y1=y(tick), y2=y(tick), class_=class_)

    lines = join(line(tick) for tick in ticks)
    names = (
        el("text", text, x=x.begin - 6, y=y(tick) + 4, class_="tick end")
        for tick, text in zip(ticks, texts, strict=True)
    )
    return join([lines, *names])


def _feet(x: Scale, ticks: Sequence[float], bottom: float, name: str) -> Markup:
    axis = el("line", x1=x.begin, x2=x.end, y1=bottom, y2=bottom, class_="base")
    marks: list[Markup] = []
    for tick in ticks:
        marks.append(el("line", x1=x(tick), x2=x(tick), y1=bottom, y2=bottom + 4, class_="base"))
        marks.append(el("text", told(tick), x=x(tick), y=bottom + 17, class_="tick middle"))
    return join([axis, *marks, el("text", name, x=x.end, y=bottom + 31, class_="axis end")])


def _stages(stages: Sequence[tuple[float, str]], x: Scale, top: float, bottom: float) -> Markup:
    """A line where a stage begins and its name above, as far as there is room until the next one."""
    parts: list[Markup] = []
    for number, (begin, name) in enumerate(stages[:MOST_STAGES]):
        place = x(begin)
        until = x(stages[number + 1][0]) if number + 1 < len(stages) else x.end + 40
        room = int((until - place - 10) / LETTER)
        if begin > x.low:
            parts.append(el("line", x1=place, x2=place, y1=top - 20, y2=bottom, class_="stage"))
        if room >= 3 and begin < x.high:
            parts.append(el("text", cut(name, room), x=place + 5, y=top - 10, class_="stagename"))
    return join(parts)


def _apart(moments: Sequence[float], x: Scale) -> list[float]:
    """Restarts that are a pixel apart at least."""
    kept: list[float] = []
    for moment in sorted(moment for moment in moments if x.low <= moment <= x.high):
        if not kept or x(moment) - x(kept[-1]) >= 1:
            kept.append(moment)
    return kept


def _restart(moment: float, x: Scale, bottom: float) -> Markup:
    place = x(moment)
    return el("path", d=f"M{short(place - 3)} {short(bottom)}h6l-3 -6z", class_="restart")


def _curve(series: Series, x: Scale, y: Scale, columns: int, chart: Chart) -> Markup:
    """A curve, which is broken where a stage begins: what lies between two stages is no progress."""
    kind = f"k{series.colour % KINDS}"
    bands: list[Markup] = []
    points: list[list[Point]] = []
    for part in _parts(series.points, [begin for begin, _ in chart.stages]):
        if series.noisy and len(series.points) > columns:
            found = band(part, x.low, x.high, columns // 3)
            outline = [(at, high) for at, _, _, high in found] + [(at, low) for at, low, _, _ in reversed(found)]
            bands.append(_path([(x(a), y(b)) for a, b in outline]) + Markup("z"))
            points.append([(at, mean) for at, _, mean, _ in found])
        else:
            points.append(thinned(part, x.low, x.high, columns))
    pixels = [[(x(a), y(b)) for a, b in part] for part in points]
    dots = [el("circle", cx=part[0][0], cy=part[0][1], r=3, class_=f"dot {kind}") for part in pixels if len(part) == 1]
    values = Markup(" ".join(_value(chart, b).replace(" ", "") for part in points for _, b in part))
    line = el(
        "path",
        d=join(map(_path, pixels)),
        class_=f"line {kind}{' dashed' * series.dashed}",
        data_n=series.name,
        data_v=values,
    )
    behind = el("path", d=join(bands), class_=f"band {kind}") if bands else NOTHING
    marked = NOTHING if series.bare else _marks(series, [pixel for part in pixels for pixel in part], x)
    return join([behind, line, *dots, marked])


def _from_below(series: Sequence[Series]) -> list[Series]:
    """In the order in which they are drawn: the first lies on the others, and dashed ones on all."""
    return [one for dashed in (False, True) for one in reversed(series) if one.dashed == dashed]


def _parts(points: Sequence[Point], begins: Sequence[float]) -> list[list[Point]]:
    """Points by the stage that they are of: the last one of a stage lies where the next begins."""
    parts: list[list[Point]] = []
    before = -1
    for point in points:
        stage = sum(point[0] > begin for begin in begins)
        if stage != before:
            parts.append([])
            before = stage
        parts[-1].append(point)
    return parts


def _path(pixels: Sequence[Point]) -> Markup:
    return Markup("M" + " ".join(f"{short(a)} {short(b)}" for a, b in pixels))


def _marks(series: Series, pixels: Sequence[Point], x: Scale) -> Markup:
    """A few marks along the curve, each curve's at places of its own."""
    every = (x.end - x.begin) / 5
    wanted = x.begin + every * (0.3 + 0.17 * (series.colour % KINDS))
    parts: list[Markup] = []
    for a, b in pixels:
        if a >= wanted:
            parts.append(symbol(series.colour, a, b))
            while wanted <= a:
                wanted += every
    return join(parts)


def _star(star: Star, x: Scale, y: Scale) -> Markup:
    """A ring around a point, and its words where they have room."""
    a, b = x(star.x), y(star.y)
    half = len(star.text) * LETTER / 2
    middle = min(max(a, x.begin + half), x.end - half)
    below = b - 14 < y.end + 4
    ring = el("circle", cx=a, cy=b, r=5.5, class_="best")
    return join([ring, el("text", star.text, x=middle, y=b + 22 if below else b - 11, class_="bestname middle")])


def _labels(named: Sequence[Series], x: Scale, y: Scale, top: float, bottom: float) -> Markup:
    """The name of every curve beside its end, pushed apart where they would lie on one another."""
    wanted = sorted(((y(one.points[-1][1]), number) for number, one in enumerate(named)))
    places = spread([place for place, _ in wanted], LINE, top, bottom)
    parts: list[Markup] = []
    for (from_, number), place in zip(wanted, places, strict=True):
        one = named[number]
        end = x(one.points[-1][0])
        kind = f"k{one.colour % KINDS}"
        d = f"M{short(end + 2)} {short(from_)}L{short(x.end + 8)} {short(place)}"
        parts.append(el("path", d=d, class_=f"leader {kind}"))
        sign = symbol(one.colour, x.end + 14, place)
        name = el("text", cut(one.name, MOST_LABEL), x=x.end + 22, y=place + 4, class_=f"label {kind}")
        parts += [sign, name]
    return join(parts)
