"""Runs one scenario on a cluster, from the command that submits to the end of its last job."""

import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from agl_core.files import read_json
from jobs.runs import Run
from tests.slurm.minislurm import FINAL, MiniSlurm
from tests.slurm.scenario import Scenario, Strike
from tests.slurm.strikes import DEEDS, Blow, release_all
from tests.slurm.tiny import RECIPES, Workplace
from tests.slurm.watch import PHASES, Watch, freeze, thaw

POLL, ASK = 0.002, 0.5  # seconds between two looks at the run's files, and at what Slurm says
SETTLED = 1.0  # seconds after which a final state is believed: a job may still requeue itself
PATIENCE = 180.0  # seconds for a phase to come, and for the end


@dataclass
class Story:
    """What has become of a scenario. ids: Slurm's, by the name of the job, of all submissions; facts: what scontrol
    says of each in the end; told: the steps of the strikes; left: processes that were still there."""

    scenario: Scenario
    run: Run
    ids: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


class Engine:
    """Runs scenarios of a workplace on a cluster; several at the same time, each in a thread of its own."""

    def __init__(self, workplace: Workplace, slurm: MiniSlurm) -> None:
        self.workplace, self.slurm = workplace, slurm

    def play(self, scenario: Scenario) -> Story:
        """Run a scenario to its end.

        Raises:
            RuntimeError, TimeoutError: it did not come to its end; its jobs are cancelled.
        """
        story = Story(scenario, Run(self.workplace.run_dir(scenario)))
        with ExitStack() as after:
            try:
                # Nothing begins before somebody watches it.
                held = any(strike.phase != "submitted" for strike in scenario.strikes) and not _releases(scenario)
                self._submit(story, held)
                for strike in scenario.strikes:
                    if held and strike.phase != "submitted":
                        held = False
                        release_all(story.run, self.slurm)
                    self._strike(story, strike, after)
                self._await_end(story)
                for _ in range(scenario.expected.runs - 1):
                    self._submit(story)
                    self._await_end(story)
            finally:
                self._tidy(story)
        return story

    def _submit(self, story: Story, held: bool = False) -> None:
        self.workplace.launch(story.scenario, self.slurm, held)
        story.ids.append({name: str(id) for name, id in read_json(story.run.submitted).items()})

    def _strike(self, story: Story, strike: Strike, after: ExitStack) -> None:
        job = strike.job or next(iter(RECIPES[story.scenario.recipe]))
        watch = Watch(self.slurm, story.run, job, story.ids[-1][job])
        frozen = self._await_phase(watch, strike)
        restart = int(watch.facts()["Restarts"])
        story.told.append(f"{strike.deed} in {strike.phase} at step {watch.step}")
        blow = Blow(watch, self.workplace.checkout(story.scenario), after, frozen, restart)
        try:
            DEEDS[strike.deed](blow)
        finally:
            thaw(frozen)

    def _await_phase(self, watch: Watch, strike: Strike) -> list[int]:
        """Wait for the moment of a strike; the processes that stand still then."""
        phase = PHASES[strike.phase]
        if strike.slow:
            return self._creep_up(watch, strike)
        family: list[int] = []  # known beforehand, since looking for them takes longer than some phases
        asked = time.monotonic()
        deadline = asked + PATIENCE
        while time.monotonic() < deadline:
            if phase(watch, strike.step):
                if not strike.frozen:
                    return []
                freeze(family)
                freeze(family := watch.family())
                if family and phase(watch, strike.step):  # it was not over before they stood still
                    return family
                thaw(family)
            elif time.monotonic() - asked > ASK:
                asked, family = time.monotonic(), watch.family()
                if watch.facts()["JobState"] in FINAL:
                    raise RuntimeError(f"{watch.job} ended before {strike.phase} {strike.step}: {watch.facts()}")
            time.sleep(POLL)
        raise TimeoutError(f"{watch.job} did not come to {strike.phase} {strike.step}: {watch.facts()}")

    def _creep_up(self, watch: Watch, strike: Strike) -> list[int]:
        """The same for a phase that is over before anybody has noticed it: the ranks go on for moments at a time."""
        deadline = time.monotonic() + PATIENCE
        self.slurm.until(watch.family, lambda: f"no rank of {watch.job} is there: {watch.facts()}", PATIENCE)
        freeze(family := watch.family())
        while not PHASES[strike.phase](watch, strike.step):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{watch.job} did not come to {strike.phase}: {watch.facts()}")
            thaw(family)
            time.sleep(POLL)
            freeze(family)
        return family

    def _await_end(self, story: Story) -> None:
        """Wait until no job of the run waits, runs or may come back."""
        deadline, since = time.monotonic() + PATIENCE, time.monotonic()
        while time.monotonic() - since < SETTLED:
            story.facts = {id: self.slurm.job(id) for ids in story.ids for id in ids.values()}
            if any(facts["JobState"] not in FINAL for facts in story.facts.values()):
                since = time.monotonic()
            if time.monotonic() > deadline:
                states = {facts["JobName"]: f"{facts['JobState']} {facts['Reason']}" for facts in story.facts.values()}
                raise TimeoutError(f"not all jobs came to their end: {states}")
            time.sleep(0.2)

    def _tidy(self, story: Story) -> None:
        """Leave nothing behind that could disturb others."""
        ids = [id for submitted in story.ids for id in submitted.values()]
        story.left = [pid for id in ids for pid in self.slurm.processes(id)]
        if ids:
            self.slurm.run("scancel", "--full", "--signal=KILL", *ids, check=False)
            self.slurm.run("scancel", *ids, check=False)


def _releases(scenario: Scenario) -> bool:
    """Whether the release of its jobs is one of its strikes."""
    return any(strike.deed == "release" for strike in scenario.strikes)


def log_ends(run_dir: Path, lines: int = 30) -> str:
    """The ends of all logs of a run's jobs, for the report of a failure."""
    found = sorted([*(run_dir / "jobs").rglob("*.log"), *(run_dir / "jobs").glob("*_log.*")])
    parts = []
    for path in [*found, run_dir / "jobs" / "history.jsonl"]:
        if path.exists() and (text := path.read_text(errors="replace").strip()):
            parts.append(f"--- {path.relative_to(run_dir)}\n" + "\n".join(text.splitlines()[-lines:]))
    return "\n".join(parts)
