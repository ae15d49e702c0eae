"""An hour of preemptions, kills and requeues on a real Slurm, and the same bits in the end.

    python -m tests.slurm.drill --interruptions 300 --steps 12000 --seed 0 [--out FOLDER] [--json FILE]

Trains a tiny run on a small cluster on this machine, once left alone and once interrupted at moments drawn from the
seed, by everything that a site, a user or an accident can do to a job. Prints what each interruption cost, where the
time went by the run's events, when `plan` says that such a run ends, and whether weights and history are the same. The
exit code is 0 only if they are, no announced interruption has cost a step, the items of the time add up to all of it,
and the plan was right to a tenth (if the machine has kept its pace; otherwise with the times of the interrupted run).
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from agl_core.files import read_json, write_json
from jobs.interruption import Interruption, Moment, Pace, aim
from jobs.runs import Run
from jobs.verdict import compare_runs
from tests.slurm.foretold import DEVIATION, Foretold, adds_up, foretell, spent
from tests.slurm.judge import lost_steps
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import FINAL, MiniSlurm
from tests.slurm.scenario import Scenario
from tests.slurm.strikes import DEEDS, Blow
from tests.slurm.tiny import _STAGE, BASE, Workplace
from tests.slurm.watch import Watch, send

STAGE = "train"
EVERY, VALIDATE = 20, 60
PATIENCE = 240.0  # seconds for the job to train again

KINDS = {
    "preempt": 0.25,
    "requeue": 0.1,
    "warn": 0.15,
    "kill one": 0.15,
    "kill all": 0.1,
    "kill conductor": 0.1,
    "node down": 0.05,
    "cancel": 0.05,
    "kill everything": 0.05,
}
"""What interrupts the run, and how often; the last two end the job, and the command is given again."""
ENDS = ("cancel", "kill everything")
EARLY = (0.25, 0.5, 0.0)
"""Where kinds that are not drawn strike: so early that a run that is a little faster does not end before the last."""
UNANNOUNCED = ("kill all", "kill everything")


@dataclass
class Row:
    """One interruption. at: step; struck: when, seconds since 1970; starts: of training until then; lost: steps done
    again because of it; waited: seconds until the job was started again, Slurm's own delay included; resumed: until its
    first step after that, None if it was struck before."""

    kind: str
    phase: str
    at: int
    struck: float = 0.0
    starts: int = 0
    lost: int = 0
    waited: float | None = None
    resumed: float | None = None


class FinishedError(Exception):
    """The interrupted run has come to its end."""


class Drill:
    """The interrupted run, and what has happened to it so far."""

    def __init__(self, slurm: MiniSlurm, workplace: Workplace, processes: int, steps: int) -> None:
        self.slurm, self.workplace, self.steps = slurm, workplace, steps
        self.scenarios = {
            name: Scenario(name, recipe="drill", processes=processes) for name in ("alone", "again", "interrupted")
        }
        self.rows: list[Row] = []
        self.seconds = {"alone": 0.0, "interrupted": 0.0}

    def run_dir(self, name: str) -> Path:
        """The run directory of one of the two runs."""
        return self.workplace.run_dir(self.scenarios[name])

    def watch(self, name: str) -> Watch:
        """The job of its last submission."""
        run = Run(self.run_dir(name))
        return Watch(self.slurm, run, STAGE, str(read_json(run.submitted)[STAGE]))

    def leave_alone(self) -> Pace:
        """Train without any interruption; how it went."""
        began = time.monotonic()
        self.workplace.launch(self.scenarios["alone"], self.slurm)
        watch = self.watch("alone")
        facts = self.slurm.wait(watch.id, FINAL, timeout=3600)
        if facts["JobState"] != "COMPLETED":
            raise RuntimeError(f"the run that was left alone is {facts['JobState']}; see {watch.run.path}")
        self.seconds["alone"] = time.monotonic() - began
        times = {kind: watch.events(kind)[-1]["time"] for kind in ("start", "finish")}
        spent = {kind: fmean(event["seconds"] for event in watch.events(kind)) for kind in ("validation", "checkpoint")}
        step = (times["finish"] - times["start"]) / self.steps
        return Pace(self.steps, EVERY, VALIDATE, 5.0, step, spent["validation"], spent["checkpoint"])

    def start_again(self) -> None:
        """Train the same run until it was started a second time, which takes less than the first, and cancel it."""
        self.workplace.launch(self.scenarios["again"], self.slurm)
        watch = self.watch("again")
        self._until(watch, lambda: len(watch.events("startup")) > 0)
        self.slurm.run("scontrol", "requeue", watch.id)
        self._until(watch, lambda: len(watch.events("startup")) > 1)
        self.slurm.run("scancel", watch.id)
        self.slurm.wait(watch.id, FINAL, timeout=PATIENCE)

    def interrupt(
        self, count: int, seed: int, pace: Pace, tell: Callable[[Row], None], kinds: Sequence[str] = ()
    ) -> None:
        """Train the same run with `count` interruptions; `kinds`, if they are not to be drawn."""
        random = np.random.Generator(np.random.Philox(seed))
        began = time.monotonic()
        self.workplace.launch(self.scenarios["interrupted"], self.slurm)
        starts = 0
        for number in range(count):
            drawn = str(random.choice(list(KINDS), p=list(KINDS.values())))
            phase = str(random.choice(["step", "start-up", "validation", "save"], p=[0.6, 0.15, 0.1, 0.15]))
            places = tuple(map(float, random.random(3)))
            kind, phase, places = (kinds[number], "step", EARLY) if kinds else (drawn, phase, places)
            draw = Interruption("KILL" if kind in UNANNOUNCED else "TERM", kind, phase, *places)
            watch = self.watch("interrupted")
            try:
                row = self._await(watch, draw, starts, count - number - 1, pace)
                if row is None:
                    break
                row.starts = starts = len(watch.events("start"))
                before = lost_steps(watch.run.path, STAGE)
                self._strike(watch, kind, row)
            except FinishedError:  # before its last interruptions
                break
            row.lost = before  # the difference is taken when the next incarnation has shown where it goes on
            self.rows.append(row)
            tell(row)
        self.slurm.wait(self.watch("interrupted").id, ["COMPLETED"], timeout=3600)
        self.seconds["interrupted"] = time.monotonic() - began
        self._note_resumed()
        after = [*[row.lost for row in self.rows[1:]], lost_steps(self.run_dir("interrupted"), STAGE)]
        first = self.rows[0] if self.rows else None
        for row, total in zip(self.rows, after, strict=True):
            lost, row.lost = total - row.lost, 0
            # Whoever is struck before it says where it goes on has lost nothing by that: the one before has.
            first = first if first is not None and first.starts == row.starts else row
            first.lost += lost

    def _await(self, watch: Watch, draw: Interruption, starts: int, left: int, pace: Pace) -> Row | None:
        """Wait for the moment of an interruption; None if the run is finished before."""
        if draw.phase == "start-up":
            self._until(watch, lambda: bool(watch.ranks()) and watch.begins()[-1:] != [])
            time.sleep(draw.fraction * pace.startup)
            return Row(draw.target, "start-up", watch.step) if self._runs(watch) else None
        self._until(watch, lambda: len(watch.events("start")) > starts)
        start = int(watch.events("start")[-1]["step"])
        moment: Moment = aim(draw, start, left, pace)
        self._until(watch, lambda: watch.step >= moment.step)
        time.sleep(moment.delay)
        return Row(draw.target, moment.phase, watch.step) if self._runs(watch) else None

    def _strike(self, watch: Watch, kind: str, row: Row) -> None:
        row.struck = time.time()
        begins = len(watch.begins())
        with ExitStack() as after:
            blow = Blow(watch, self.workplace.checkout(self.scenarios["interrupted"]), after,
                        restart=int(watch.facts()["Restarts"]))  # fmt: skip
            if kind == "kill everything":
                conductor = watch.conductor()
                send([*([conductor] if conductor else []), *watch.family()], 9)
            else:
                DEEDS[kind](blow)
            if kind in ENDS:
                self.slurm.wait(watch.id, [state for state in FINAL if state != "COMPLETED"], timeout=PATIENCE)
                self.workplace.launch(self.scenarios["interrupted"], self.slurm)
            again = self.watch("interrupted")
            self._until(again, lambda: len(again.begins()) > begins)
        row.waited = again.begins()[begins]["time"] - row.struck

    def _note_resumed(self) -> None:
        """Fill in when the run came back from each interruption, if it did before the next one."""
        firsts = [event["time"] for event in self.watch("interrupted").events("startup")]
        for row, until in zip(self.rows, [*[row.struck for row in self.rows[1:]], time.time()], strict=True):
            times = [first for first in firsts if row.struck < first <= until]
            row.resumed = times[0] - row.struck if times else None

    def _runs(self, watch: Watch) -> bool:
        return watch.facts()["JobState"] == "RUNNING" and watch.step < self.steps - 1

    def _until(self, watch: Watch, there: Callable[[], bool]) -> None:
        def come() -> bool:
            if watch.facts()["JobState"] in FINAL and not there():
                if watch.run.finished(STAGE):
                    raise FinishedError
                raise RuntimeError(f"job {watch.id} is {watch.facts()['JobState']}; see {watch.run.path}")
            return there()

        self.slurm.until(come, lambda: f"job {watch.id} does not go on: {watch.facts()}", PATIENCE)


def problems(drill: Drill, asked: int) -> list[str]:
    """What should not be."""
    found = adds_up(drill.run_dir("interrupted"))
    if len(drill.rows) < asked:
        found.append(f"only {len(drill.rows)} of {asked} interruptions happened")
    for number, row in enumerate(drill.rows, 1):
        if row.lost and row.kind not in UNANNOUNCED:
            found.append(f"interruption {number} ({row.kind} in {row.phase} at step {row.at}) cost {row.lost} steps")
    difference = compare_runs(drill.run_dir("interrupted"), drill.run_dir("alone"), STAGE)
    if difference is not None:
        found.append(f"the runs differ: {difference}")
    return found


def table(rows: Sequence[Row]) -> Table:
    """A line per kind of interruption."""
    shown = Table(caption="seconds: medians; until the ranks were started again, and until their first step was done")
    for name in ("interruption", "times", "steps lost", "s to start", "s to first step"):
        shown.add_column(name, justify="left" if name == "interruption" else "right")
    for kind in KINDS:
        same = [row for row in rows if row.kind == kind]
        if same:
            waited = [row.waited for row in same if row.waited is not None]
            resumed = [row.resumed for row in same if row.resumed is not None]
            shown.add_row(kind, str(len(same)), str(sum(row.lost for row in same)), _median(waited), _median(resumed))
    return shown


def foresight(drill: Drill) -> Foretold:
    """What `plan` makes of the interruptions that there were, and of the times of the run that was left alone."""
    known = [(row.kind, row.struck, row.waited) for row in drill.rows]
    scenario = drill.scenarios["alone"]
    return foretell(
        drill.workplace, scenario, drill.run_dir("alone"), drill.run_dir("interrupted"), known, drill.run_dir("again")
    )


def _median(values: Sequence[float]) -> str:
    return f"{median(values):.1f}" if values else "-"


def write_recipe(workplace: Workplace, steps: int) -> None:
    """The recipe of both runs, beside those of the scenarios."""
    stage: dict[str, Any] = {**_STAGE, "length": f"{steps} steps", "validate_every": f"{VALIDATE} steps"}
    base = {**BASE, "checkpoint": {"every": f"{EVERY} steps", "interval": "never", "keep": 3}}
    recipe = OmegaConf.create({**base, "stages": {STAGE: stage}})
    (workplace.folder / "drill.yaml").write_text(OmegaConf.to_yaml(recipe), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.slurm.drill", description=__doc__.splitlines()[0])
    for name, default in (("interruptions", 300), ("steps", 12000), ("processes", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--out", type=Path, help="an empty folder for the runs and their logs; default: a temporary one"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    given = parser.parse_args(argv)
    folder = (given.out or Path(tempfile.mkdtemp(prefix="drill-slurm-"))).absolute()
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty: give a new folder with --out")
    workplace = Workplace(folder)
    folder.mkdir(parents=True, exist_ok=True)
    workplace.build()
    write_recipe(workplace, given.steps)
    say = Console(stderr=True)
    with MiniSlurm(folder / "slurm", MiniSettings(nodes=3, grace=20, kill_wait=10)) as slurm:
        drill = Drill(slurm, workplace, given.processes, given.steps)
        say.print(f"drill: {given.steps} steps left alone, {given.processes} processes (in {folder})", highlight=False)
        pace = drill.leave_alone()
        drill.start_again()
        say.print(f"drill: {drill.seconds['alone']:.0f} s; now with {given.interruptions} interruptions")

        def tell(row: Row) -> None:
            say.print(f"{len(drill.rows):4d}. {row.kind} in {row.phase} at step {row.at}: started again after "
                      f"{row.waited or 0:.1f} s", highlight=False)  # fmt: skip

        drill.interrupt(given.interruptions, given.seed, pace, tell)
    found = problems(drill, given.interruptions)
    account, foretold = spent(drill.run_dir("interrupted")), foresight(drill)
    if foretold.wrong:
        found.append(f"plan is wrong by more than {DEVIATION:.0%}: {foretold}")
    slowdown = drill.seconds["interrupted"] / drill.seconds["alone"]
    output = Console(width=110 if not sys.stdout.isatty() else None)
    output.print(table(drill.rows))
    output.print(foretold.table())
    lost = sum(row.lost for row in drill.rows)
    print(f"{len(drill.rows)} interruptions in {drill.seconds['interrupted'] / 60:.0f} minutes, {lost} steps lost, "
          f"goodput {100 * account.goodput:.1f} %, {slowdown:.2f} times as long as alone; {foretold}; "
          f"{'; '.join(found) or 'bit-identical'}")  # fmt: skip
    if given.json:
        rows = [asdict(row) for row in drill.rows]
        told = {"goodput": account.goodput, "account": account.as_json(), "plan": foretold.as_json()}
        write_json(given.json, {"rows": rows, "seconds": drill.seconds, **told, "problems": found})
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
