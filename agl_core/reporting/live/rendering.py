"""A run at one moment, for the eye: the same rows on the terminal that trains and on the one that watches, and one
line for a log."""

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.seen import Validated
from agl_core.reporting.live.snapshot import LastEnd, Snapshot
from agl_core.reporting.words import COSTS, clean, counted, in_words, moment, plural, span, spans

COLOURS = {
    states.TRAINS: "green", states.VALIDATES: "green", states.WORKS: "green", states.FINISHED: "bold green",
    states.WAITS: "yellow", states.STARTS: "yellow", states.SILENT: "red", states.FAILED: "red",
    states.INTERRUPTED: "red", states.CANCELLED: "red",
}  # fmt: skip
NO_ROWS: Mapping[str, str] = MappingProxyType({})
DISPENSABLE = (
    "", "ask", "before", "why", "best", "images", "loss", "speed", "restarts", "stage", "goodput", "score", "job",
    "last", "go on", "result", "done", "left", "end",
)  # fmt: skip
"""Rows that are left out where there is no room, the least important first."""
BAR = 40  # columns of the bar at most
UNKNOWN_STEP = "how far its start has come cannot be known from outside"
AT_WORK = (states.TRAINS, states.VALIDATES)
ALIVE = (states.STARTS, states.SILENT, states.WORKS)


def render(
    snapshot: Snapshot, width: int, further: Mapping[str, str] = NO_ROWS, height: int | None = None
) -> RenderableType:
    """The rows of a view of `width` columns, and `further` ones by label; text of others in it is never taken for
    markup or for an order. If they are more than `height` lines, the least important ones are left out."""
    told = [*rows(snapshot, width), *((label, Text(clean(words))) for label, words in further.items())]
    table = _table(told)
    for name in DISPENSABLE if height is not None else ():
        if _lines(table, width) <= (height or 0):
            break
        told = [row for row in told if row[0] != name]
        table = _table(told)
    return table


def _table(told: Sequence[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in told:
        table.add_row(Text(label), text)
    return table


def _lines(table: Table, width: int) -> int:
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    return len(console.render_lines(table))


def plain(snapshot: Snapshot, width: int, further: Mapping[str, str] = NO_ROWS) -> str:
    """The same without colours, for a file or a pipe; every line ends with a newline."""
    console = Console(width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(render(snapshot, width, further))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())


def rows(snapshot: Snapshot, width: int) -> Iterator[tuple[str, Text]]:
    """What is shown, row by row: a label and its text; rows of which nothing is known are left out."""
    yield "run", _head(snapshot)
    if snapshot.job:
        yield "stage" if snapshot.stage_number else "job", Text(_stage(snapshot))
    if snapshot.step is not None:
        yield "done", Text(_done(snapshot))
        if snapshot.steps:
            yield "", _bar(snapshot.step / snapshot.steps, min(BAR, width - 17))
    if "loss" in snapshot.losses:
        yield "loss", Text(_losses(snapshot))
    if snapshot.crops_per_second is not None and snapshot.state in AT_WORK:
        yield "speed", Text(_speed(snapshot))
    if snapshot.validation is not None:
        is_best = snapshot.validation == snapshot.best
        yield "score", Text(_score(snapshot.validation, ", the best so far" * is_best))
        if snapshot.best is not None and not is_best:
            yield "best", Text(_score(snapshot.best))
    others = {name: score for name, score in snapshot.scores.items() if name != snapshot.job}
    if others:
        yield "before", Text(", ".join(f"best score of {name} {score:.4f}" for name, score in others.items()))
    if snapshot.reasons:
        yield "restarts", Text(_restarts(snapshot))
    if snapshot.last_end is not None:
        yield "last", Text(end_in_words(snapshot.last_end, snapshot.now))
    if snapshot.goodput:
        yield "goodput", Text(goodput_in_words(snapshot))
    if (left := left_in_words(snapshot)) is not None:
        yield "left", Text(left)
    if (end := ends_in_words(snapshot)) is not None:
        yield "end", Text(end)


def line(snapshot: Snapshot) -> str:
    """One line for a log."""
    loss = snapshot.losses.get("loss")
    parts = [
        f"{snapshot.job} {_of(snapshot.step, snapshot.steps, '/')}",
        f"epoch {_of(snapshot.epoch, snapshot.epochs, '/')}" if snapshot.epoch is not None else "",
        "" if loss is None else f"loss {loss:.4g}" + _in_brackets(_parts(snapshot.losses)),
        f"lr {snapshot.lr:.3g}" if snapshot.lr is not None else "",
        f"{snapshot.crops_per_second:.3g} crops/s" if snapshot.crops_per_second is not None else "",
        f"data {snapshot.data_wait:.0%}" if snapshot.data_wait is not None else "",
        f"saving {snapshot.checkpoint_share:.1%}" if snapshot.checkpoint_share else "",
        f"score {snapshot.validation.score:.4f}" if snapshot.validation else "",
        f"best {snapshot.best.score:.4f}" if snapshot.best else "",
        f"about {span(snapshot.seconds_left)} left" if snapshot.seconds_left else "",
    ]
    return "  ".join(part for part in parts if part)


def watch_line(snapshot: Snapshot) -> str:
    """One line for who watches into a pipe: the state, and where it stands."""
    parts = [
        _head(snapshot).plain,
        line(snapshot) if snapshot.step is not None else snapshot.job,
        f"goodput {snapshot.goodput:.1%}" if snapshot.goodput else "",
        ends_in_words(snapshot) or "",
    ]
    return "  ".join(part for part in parts if part)


def end_in_words(end: LastEnd, now: float) -> str:
    """How and when a start ended last, and what came then."""
    because = in_words(end.reason)
    if end.text and end.reason in ("crashed", "refused"):
        because = end.text if "killed" in end.text else f"{because}: {end.text}"
    words = f"{moment(end.at, now)}, after {span(end.ran)}: {because}"
    return words + ("; not started again yet" if end.away is None else f"; started again after {span(end.away)}")


def goodput_in_words(snapshot: Snapshot) -> str:
    """The share of the time that has brought the run forward, and what interruptions have cost."""
    words = f"{snapshot.goodput or 0.0:.1%} of the time is training"
    if snapshot.costs and snapshot.interrupted_seconds >= 1:
        names = sorted(snapshot.costs, key=lambda name: -snapshot.costs[name])
        whole, parts = spans([snapshot.costs[name] for name in names])
        told = [COSTS.get(name, name + " {}").format(part) for name, part in zip(names, parts, strict=True) if part]
        words += f"; interruptions have cost {whole}: {', '.join(told)}"
    return words


def left_in_words(snapshot: Snapshot) -> str | None:
    """How long the stage will still take, undisturbed and with what interruptions cost; None if there is no saying."""
    left = snapshot.seconds_left
    if left is None:
        return None
    words = f"about {span(left)} of this stage at the {'present' if snapshot.state in AT_WORK else 'last'} rate"
    if snapshot.cost_share >= 0.005 and left:
        words += f", {span(left * (1 + snapshot.cost_share))} with interruptions as so far"
    return words


def ends_in_words(snapshot: Snapshot) -> str | None:
    """When all stages will be done; None if there is no saying."""
    what = "all stages are" if snapshot.stages > 1 else "training is"
    starts, left = snapshot.starts_at, snapshot.to_end
    if left is not None and (starts is not None or (snapshot.ends_at is None and snapshot.state == states.WAITS)):
        after = f"{span(left)} after it starts"
        if starts is None:
            return f"{what} done {after}"
        end = f"about {moment(starts + left, snapshot.now)}, {after}"
        return f"{what} done {end}, which is expected about {moment(starts, snapshot.now)}"
    if snapshot.ends_at is None:
        return None
    inside = f"in {span(snapshot.ends_at - snapshot.now)}"
    far = ", if interruptions go on as so far" if snapshot.cost_share >= 0.005 else ""
    return f"{what} done about {moment(snapshot.ends_at, snapshot.now)}, {inside}{far}"


def _head(snapshot: Snapshot) -> Text:
    told = snapshot.told or snapshot.state
    if snapshot.state == states.STARTS:
        told = f"{told}; {UNKNOWN_STEP}"
    colour = COLOURS.get(snapshot.state, "")
    return Text.assemble((snapshot.run, "bold"), " " if snapshot.run else "", (told, colour))


def _stage(snapshot: Snapshot) -> str:
    number = f"{snapshot.stage_number} of {snapshot.stages}: " if snapshot.stages > 1 and snapshot.stage_number else ""
    where = f", {snapshot.where}" if snapshot.where and snapshot.state in (*AT_WORK, *ALIVE) else ""
    return f"{number}{snapshot.job}{where}"


def _done(snapshot: Snapshot) -> str:
    parts = [f"step {_of(snapshot.step, snapshot.steps, ' of ')}"]
    if snapshot.epoch is not None:
        parts.insert(0, f"epoch {_of(snapshot.epoch, snapshot.epochs, ' of ')}")
    return ", ".join(parts)


def _of(part: int | None, total: int | None, between: str) -> str:
    return f"{'?' if part is None else part}" + (f"{between}{total}" if total is not None else "")


def _bar(share: float, width: int) -> Text:
    done = round(min(max(share, 0.0), 1.0) * width)
    return Text.assemble(("━" * done, "green"), ("─" * (width - done), "dim"), f" {share:.1%}")


def _parts(losses: Mapping[str, float]) -> str:
    return ", ".join(
        f"{clean(name.removesuffix('_loss'))} {value:.4g}" for name, value in losses.items() if name != "loss"
    )


def _in_brackets(text: str) -> str:
    return f" ({text})" if text else ""


def _losses(snapshot: Snapshot) -> str:
    lr = f"; learning rate {snapshot.lr:.3g}" if snapshot.lr is not None else ""
    return f"{snapshot.losses['loss']:.4g}{_in_brackets(_parts(snapshot.losses))}{lr}"


def _speed(snapshot: Snapshot) -> str:
    waits = [
        f"{share:.1%} for {what}"
        for share, what in ((snapshot.data_wait, "data"), (snapshot.checkpoint_share, "checkpoints"))
        if share is not None
    ]
    waiting = f"; of the time it waits {', '.join(waits)}" if waits else ""
    return f"{snapshot.crops_per_second or 0.0:.3g} crops/s{waiting}"


def _score(found: Validated, more: str = "") -> str:
    cities = ", ".join(f"{clean(city)} {score:.3f}" for city, score in found.cities.items())
    when = f"epoch {found.epoch}" if found.epoch is not None else f"step {found.step}"
    average = ", of the average of the weights" if found.average else ""
    return f"{found.score:.4f} after {when}{more}{average}{_in_brackets(cities)}"


def _restarts(snapshot: Snapshot) -> str:
    reasons = _in_brackets(counted(snapshot.reasons))
    again = plural(snapshot.steps_lost, "step") if snapshot.steps_lost else "no step"
    return f"{sum(snapshot.reasons.values())}{reasons}; {again} done again"
