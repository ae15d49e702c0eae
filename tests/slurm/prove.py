"""Runs scenarios side by side on two small clusters and writes what was wrong with each.

    python -m tests.slurm.prove FOLDER [NAME ...]      without names: all

One site warns of preemptions with TERM, the other with the signal that a job has asked for. Each result is a file,
FOLDER/results/<name>.json: name, problems, seconds, strikes; FOLDER/results/ended says that there will be no more.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import FrameType

from agl_core.files import write_json
from tests.slurm.engine import Engine, log_ends
from tests.slurm.judge import problems
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.scenario import Scenario
from tests.slurm.table import SCENARIOS
from tests.slurm.tiny import Workplace, folder_name
from tests.slurm.why_rows import ROWS, ask

TOGETHER = 5
"""Scenarios at the same time: more than cores, since each waits for Slurm most of its time."""
NODES, NODES_SIGNAL = 12, 4
ENDED = "ended"

Outcome = tuple[list[str], list[str]]
"""What was wrong, and what was done."""


def result_file(folder: Path, name: str) -> Path:
    """Where the result of a scenario, or of a row of the decision table, is written."""
    return folder / "results" / f"{folder_name(name)}.json"


def ended_file(folder: Path) -> Path:
    """What is there when no more results will come."""
    return folder / "results" / ENDED


class Proof:
    """Everything that is run, and the folder with its results."""

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """`names`: of scenarios and rows; the undisturbed runs that those are compared with are added."""
        self.folder = folder
        names = list(names)
        chosen = [SCENARIOS[name] for name in names if name in SCENARIOS]
        compared = [SCENARIOS[scenario.whole] for scenario in chosen]
        self.scenarios = list({scenario.name: scenario for scenario in (*compared, *chosen)}.values())
        self.rows = {name: ROWS[name] for name in names if name in ROWS}
        self._whole: dict[str, Future[None]] = {}

    def run(self) -> None:
        """Run all; what goes wrong with one of them is in its result.

        Raises:
            RuntimeError: there is no cluster.
        """
        workplace = Workplace(self.folder)
        if self.scenarios:
            workplace.build()
        term = MiniSlurm(self.folder / "slurm", MiniSettings(nodes=NODES))
        user_signal = MiniSlurm(self.folder / "slurm-signal", MiniSettings(nodes=NODES_SIGNAL, send_user_signal=True))
        with term, user_signal, ThreadPoolExecutor(TOGETHER) as pool, ThreadPoolExecutor(TOGETHER) as sleepers:
            for name, row in self.rows.items():
                slurm = user_signal if row.user_signal else term
                sleepers.submit(self._record, name, partial(ask, row, slurm, self.folder))
            for scenario in self.scenarios:
                engine = Engine(workplace, user_signal if scenario.user_signal else term)
                played = pool.submit(self._record, scenario.name, partial(self._play, scenario, engine))
                self._whole[scenario.name] = played

    def _play(self, scenario: Scenario, engine: Engine) -> Outcome:
        story = engine.play(scenario)
        if scenario.name != scenario.whole:
            self._whole[scenario.whole].result()
        return problems(story, engine.workplace.run_dir(SCENARIOS[scenario.whole])), story.told

    def _record(self, name: str, work: Callable[[], Outcome]) -> None:
        began = time.monotonic()
        try:
            found, told = work()
        except Exception:  # one that fails must not hide the others
            found, told = [traceback.format_exc()], []
        seconds = round(time.monotonic() - began, 1)
        logs = log_ends(self.folder / "runs" / folder_name(name)) if found else ""
        write_json(
            result_file(self.folder, name),
            {"name": name, "problems": found, "strikes": told, "seconds": seconds, "logs": logs},
        )
        print(f"{seconds:6.1f} s  {name}: {'; '.join(found) or 'as it should be'}", flush=True)


def main(folder: Path, names: list[str]) -> None:
    """Run what is asked for, and say at the end, whatever it is, that it is there."""

    def stop(number: int, frame: FrameType | None) -> None:
        os._exit(128 + number)  # the clusters end with this process

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    (folder / "results").mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    try:
        Proof(folder, names or [*ROWS, *SCENARIOS]).run()
    finally:
        ended_file(folder).touch()
    print(f"{time.monotonic() - began:6.1f} s in all")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), sys.argv[2:])
