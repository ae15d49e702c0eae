"""What a scenario is: data. `table` has them all, `engine` runs one, `judge` says what was wrong with it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Strike:
    """Something that happens to a job of the run, once.

    deed: a key of `strikes.DEEDS`. job: whose job it is; "" for the first stage. phase, step: when; see
    `watch.PHASES`. frozen: whether the ranks stand still from that moment until a signal of Slurm wakes them, so that
    they are hit there and nowhere else; otherwise they go on meanwhile. slow: whether they are slowed down before,
    since the phase is short.
    """

    deed: str
    phase: str = "step"
    step: int = 6
    job: str = ""
    frozen: bool = True
    slow: bool = False


@dataclass(frozen=True)
class Expected:
    """How it must end.

    ends: what the history says about every incarnation of the job that is struck, "<end>, <why>, <deed>", without empty
    words, alternatives with "|"; the first and the last are compared where `exact` is false, since Slurm may warn more
    than once.
    lost: steps that may have been done again. restarts: how often Slurm has taken the job back. states: how Slurm may
    see the jobs of the first submission in the end, if not as COMPLETED. runs: how often the command must be given.
    overlap: whether two incarnations live at once.
    """

    ends: tuple[str, ...] = ("done, done",)
    exact: bool = True
    lost: int = 0
    restarts: int = 0
    states: tuple[str, ...] = ()
    runs: int = 1
    overlap: bool = False

    @property
    def finished(self) -> bool:
        """Whether the run comes to its end."""
        return not self.states or self.runs > 1


@dataclass(frozen=True)
class Scenario:
    """One run from its submission to its end.

    cluster: over the tiny cluster's values (see `tiny.CLUSTER`). recipe: one of `tiny.RECIPES`. user_signal: whether
    the site warns of preemptions with the job's own signal. data: the run is given a data set, and its store is built
    by a job. copied: it is launched from a copy of the checkout.
    """

    name: str
    strikes: tuple[Strike, ...] = ()
    expected: Expected = field(default_factory=Expected)
    cluster: dict[str, Any] = field(default_factory=dict)
    recipe: str = "one"
    nodes: int = 1
    processes: int = 1
    user_signal: bool = False
    data: bool = False
    copied: bool = False

    @property
    def whole(self) -> str:
        """The name of the scenario in which nothing happens and which must have the same result."""
        return undisturbed(self.recipe, self.nodes, self.processes)

    @property
    def struck(self) -> str:
        """The job that the history is read for; "" for the first stage."""
        return self.strikes[-1].job if self.strikes else ""


def undisturbed(recipe: str, nodes: int, processes: int) -> str:
    """The name of a scenario in which nothing happens."""
    return f"left alone, {recipe}, {nodes} x {processes}"
