"""What a drill has found: the cost of every interruption, and whether the results are the same bits."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table

from agl_core.durable.chain import first_difference, read_chains
from agl_core.durable.exits import INTERRUPTED
from agl_core.errors import UserError
from agl_core.reporting.events import read_all
from agl_core.reporting.goodput import account as times
from jobs.rehearsal import EVENTS, Incarnation, Tail

AVERAGE = "last-ema"
"""What only stages with an average of the weights leave."""
WEIGHTS = ("last", "best", AVERAGE)


@dataclass(frozen=True)
class Row:
    """One interruption. lost: steps that were done again because of it; resumed: seconds from the next launch to the
    end of its first step, None if that was interrupted before."""

    signal: str
    hit: str
    when: str
    code: int | None
    announced: bool
    lost: int
    resumed: float | None


@dataclass(frozen=True)
class Verdict:
    """The result of a drill. stall, save: seconds per checkpoint that the step waited, and that the writing took;
    goodput: see `goodput`; difference: where the results first differ; problems: broken promises that do not touch the
    results; account: where the time of the interrupted run has gone by its events, None if it has none."""

    rows: list[Row]
    saves: int
    stall: float
    save: float
    goodput: float
    difference: str | None
    problems: list[str]
    account: times.Account | None = None

    @property
    def identical(self) -> bool:
        """Whether the interrupted run has ended with the bits of the undisturbed one."""
        return self.difference is None

    @property
    def steps_lost(self) -> int:
        """Steps that were done again."""
        return sum(row.lost for row in self.rows)

    @property
    def announced_steps_lost(self) -> int:
        """Steps that were done again although the run had been warned."""
        return sum(row.lost for row in self.rows if row.announced)

    @property
    def seconds_to_resume(self) -> float:
        """Mean over the interruptions after which a step was done; 0 if there was none."""
        return fmean([row.resumed for row in self.rows if row.resumed is not None] or [0.0])

    def as_json(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "identical": self.identical,
            "interruptions": len(self.rows),
            "steps_lost": self.steps_lost,
            "announced_steps_lost": self.announced_steps_lost,
            "seconds_to_resume": round(self.seconds_to_resume, 3),
            "stall_seconds": round(self.stall, 6),
            "save_seconds": round(self.save, 6),
            "goodput": round(self.goodput, 4),
            "difference": self.difference,
            "problems": self.problems,
            "account": self.account.as_json() if self.account is not None else None,
        }

    def as_table(self) -> RenderableType:
        """For the user."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in ("", "signal", "to", "when", "exit code", "steps lost", "s to resume"):
            table.add_column(
                name, justify="right" if name in ("", "exit code", "steps lost", "s to resume") else "left"
            )
        for number, row in enumerate(self.rows, 1):
            resumed = "-" if row.resumed is None else f"{row.resumed:.1f}"
            table.add_row(str(number), row.signal, row.hit, row.when, str(row.code), str(row.lost), resumed)
        totals = Table(box=None, show_header=False, pad_edge=False)
        lost = f"{self.steps_lost}, of them {self.announced_steps_lost} after a warning (TERM, USR2)"
        stall = f"{1000 * self.stall:.1f} ms for a step, of {1000 * self.save:.1f} ms of writing; {self.saves} saves"
        for name, value in (
            ("interruptions", str(len(self.rows))),
            ("steps lost", lost),
            ("time to resume", f"{self.seconds_to_resume:.1f} s from the command to the end of its first step, mean"),
            ("checkpoint stall", stall),
            ("goodput", f"{self.goodput:.1%} (training time undisturbed / first launch to end)"),
            *_itemised(self.account),
            ("bit-identical", "yes" if self.identical else f"NO: {self.difference}"),
            *(("problem", problem) for problem in self.problems),
        ):
            totals.add_row(name, value)
        return Group(table, totals)


def _itemised(account: times.Account | None) -> list[tuple[str, str]]:
    """Where the time has gone, and what that makes of goodput, as rows of a table."""
    if account is None or not account.wall:
        return []
    parts = [
        f"{item} {seconds:.1f} s ({seconds / account.wall:.1%})" for item, seconds in account.seconds.items() if seconds
    ]
    effective = f"{account.goodput:.1%} (time of the steps that count / all time in which the run was not stopped)"
    return [("by its events", effective), (f"{account.wall:.1f} s", "; ".join(parts))]


def account(incarnations: Sequence[Incarnation]) -> list[Row]:
    """The interruptions of a run and what each has cost.

    A run that is interrupted before it says from which step it continues has lost nothing by that: what turns out to be
    lost afterwards was lost by the interruption before.
    """
    lost: dict[int, int] = {}
    position, open_since = 0, None
    for number, found in enumerate(incarnations):
        if found.start is not None:
            if open_since is not None:
                lost[open_since] = max(position - found.start, 0)
                open_since = None
            position = found.start
        if found.reached is not None:
            position = found.reached
        if found.hit and open_since is None:
            open_since = number
    after = [*incarnations[1:], None]
    return [
        Row(
            found.interruption.signal,
            found.hit,
            found.when,
            found.code,
            found.interruption.announced,
            lost.get(number, 0),
            following.resumed if following is not None else None,
        )
        for number, (found, following) in enumerate(zip(incarnations, after, strict=True))
        if found.hit and found.interruption is not None
    ]


def problems(incarnations: Sequence[Incarnation], rows: Sequence[Row], asked: int) -> list[str]:
    """Promises that were broken, a sentence each."""
    found = []
    if len(rows) < asked:
        found.append(
            f"only {len(rows)} of {asked} interruptions happened, since the run was finished before the others"
        )
    for number, row in enumerate(rows, 1):
        if row.announced and row.lost:
            found.append(f"interruption {number} lost {row.lost} steps although it was announced by {row.signal}")
        if row.announced and row.when != "start-up" and row.code not in (INTERRUPTED, 0):
            found.append(f"interruption {number}, {row.signal}, ended with exit code {row.code}, not {INTERRUPTED}")
    for number, incarnation in enumerate(incarnations, 1):
        if incarnation.left_behind:
            commands = "; ".join(incarnation.left_behind)
            found.append(f"after interruption {number} processes did not end and were killed: {commands}")
    return found


def compare_runs(interrupted: Path, whole: Path, stage: str) -> str | None:
    """Where two runs of a stage first differ, as a sentence, or None: their digest chains, then their weights."""
    undisturbed = read_chains(whole, stage)
    if len(undisturbed) != 1:
        return f"the undisturbed run has {len(undisturbed)} chains in {whole / 'chain'} instead of one"
    try:
        difference = first_difference(read_chains(interrupted, stage), undisturbed[0])
    except UserError as error:
        return str(error)
    if difference is not None:
        return str(difference)
    for which in WEIGHTS:
        name = Path("weights") / stage / f"{which}.safetensors"
        if which == AVERAGE and not ((interrupted / name).exists() or (whole / name).exists()):
            continue
        if (found := compare_tensors(interrupted / name, whole / name)) is not None:
            return found
    return None


def compare_tensors(path: Path, other: Path) -> str | None:
    """The first tensor, by name, in which two safetensors files differ in type, shape or any bit; None if in none."""
    for file in (path, other):
        if not file.exists():
            return f"{file} is missing"
    here, there = read_tensors(path), read_tensors(other)
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            return f"tensor {name} of {path} differs from that of {other}"
    return None


def read_tensors(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Type, shape and bytes of every tensor of a safetensors file (8 bytes of header length, JSON header, data)."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    return {
        name: (
            entry["dtype"],
            entry["shape"],
            content[begin + entry["data_offsets"][0] : begin + entry["data_offsets"][1]],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def goodput(whole: Path, incarnations: Sequence[Incarnation]) -> float:
    """The share of the interrupted run's time that it had to take: seconds of the undisturbed run in `whole` from the
    start of its training to its end, by seconds of the interrupted one from its first launch to its last end."""
    times = {
        event["kind"]: float(event["time"]) for event in read_events(whole) if event["kind"] in ("start", "finish")
    }
    return (times["finish"] - times["start"]) / (incarnations[-1].ended - incarnations[0].launched)


def time_spent(run_dir: Path) -> times.Account | None:
    """Where the time of a run has gone, by its events; None if it has none."""
    return times.account(read_all(run_dir / EVENTS))


def read_events(run_dir: Path) -> list[dict[str, Any]]:
    """All events of a run as they were appended, those that a restart took back included."""
    return Tail(run_dir / EVENTS, begin=True).read()
