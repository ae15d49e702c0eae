"""One simulated run: from its submission, or from where it stands, to its end, through all that hits it. Nothing here
looks at a clock. Times are whole nanoseconds; the items of the result add up to its end exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from agl_core.reporting.goodput.account import ITEMS
from jobs.planning.strikes import BY_OWNER, CRASH, INSIDE, LONGEST, NODE, RANK, WARNED, Strike, Strikes
from jobs.planning.timeline import SECOND, STALL, VALIDATION, Moment, Position, Tally, Timeline

MOST_LIVES = 5000
"""Starts after which a simulated run counts as one that does not end."""
FINISHED, GAVE_UP, ENDLESS = "finished", "gave up", "endless"


@dataclass(frozen=True)
class Site:
    """How jobs live there, in nanoseconds. limit: time limit of a job, None for none; warning: how long before it the
    job is warned; grace: between a warning and the kill; leave: from the last save, or from a death, until a job's
    processes have ended; fruitless: starts in a row without a new checkpoint after which a run is given up, None for
    never; queued: whether every job waits in the queue, so that stages do too."""

    limit: int | None = None
    warning: int = 0
    grace: int = 30 * SECOND
    leave: int = 0
    fruitless: int | None = None
    queued: bool = True


@dataclass(frozen=True)
class Begin:
    """Where a run stands when the simulation begins. stage: number of the one that is next; position: in it; allocated:
    nanoseconds that its job has had its nodes already, None if it is not running."""

    stage: int = 0
    position: Position = Position(0)
    allocated: int | None = None


@dataclass(frozen=True)
class RunPlan:
    """What is simulated. stages: their undisturbed courses, in order; startup: nanoseconds from the launch of a job to
    the end of its first step; waits: share of the time of a step, by stage, in which data is waited for; before, after:
    nanoseconds of the jobs before and after training; first_startup: that of the first start of all, None for the same.
    """

    stages: Sequence[Timeline]
    startup: int
    site: Site
    waits: Sequence[float] = ()
    begin: Begin = Begin()
    before: Sequence[int] = ()
    after: Sequence[int] = ()
    first_startup: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of it. end: nanoseconds; items: those of every item, whose sum is `end`; steps, lost: steps that
    count, and those done again; interruptions: starts of stages that ended early; how: finished, gave up or endless."""

    end: int
    items: Mapping[str, int]
    steps: int
    lost: int
    interruptions: int
    how: str

    @property
    def goodput(self) -> float:
        """As `agl_core.reporting.goodput.account` has it."""
        wanted = self.end - self.items["stopped"]
        return self.items["training"] / wanted if wanted else 0.0


class _GivenUpError(Exception):
    """The run does not come to its end."""


def simulate(plan: RunPlan, strikes: Strikes) -> Outcome:
    """Run it once."""
    return _Simulation(plan, strikes).run()


class _Simulation:
    """The clock, where the time has gone, and the run's state."""

    def __init__(self, plan: RunPlan, strikes: Strikes) -> None:
        self.plan, self.site, self.strikes = plan, plan.site, strikes
        self.clock = self.ran = 0
        self.items = dict.fromkeys(ITEMS, 0)
        self.steps = self.lost = self.interruptions = self.lives = 0
        self.fruitless = 0
        self.fresh = True  # whether this start of a stage is simulated from its launch on

    def run(self) -> Outcome:
        how, begin = FINISHED, self.plan.begin
        try:
            for seconds in self.plan.before:
                self._other(seconds)
            for number in range(begin.stage, len(self.plan.stages)):
                first = number == begin.stage
                self._stage(number, begin.position if first else Position(0), begin.allocated if first else None)
            for seconds in self.plan.after:
                self._other(seconds)
        except _GivenUpError as error:
            how = str(error)
        return Outcome(self.clock, self.items, self.steps, self.lost, self.interruptions, how)

    def _other(self, seconds: int) -> None:
        self._queue(again=False)
        self._spend("other jobs", seconds)

    def _queue(self, again: bool) -> None:
        if self.site.queued:
            self._spend("queue", self.strikes.wait(again))

    def _spend(self, item: str, time: int) -> None:
        self.items[item] += time
        self.clock += time

    def _stage(self, number: int, position: Position, allocated: int | None) -> None:
        """From its first start to its end."""
        timeline, self.fruitless = self.plan.stages[number], 0
        if allocated is None and (self.site.queued or number == self.plan.begin.stage):
            self._queue(again=False)
        since = self.clock - (allocated or 0)  # when its job was given its nodes
        self.fresh = allocated is None
        while True:
            finished, position, strike = self._life(number, timeline, position, since)
            if finished:
                return
            self.fresh = True
            if strike is None or strike.kind not in INSIDE:
                since = self.clock

    def _life(
        self, number: int, timeline: Timeline, position: Position, since: int
    ) -> tuple[bool, Position, Strike | None]:
        """One start, and what comes until the next: whether the stage is finished, where the next one goes on, and what
        has hit this one (None for the time limit)."""
        self.lives += 1
        launched, work = self.clock, timeline.work
        startup = self.plan.startup
        if self.lives == 1 and self.plan.first_startup is not None:
            startup = self.plan.first_startup
        before = max(startup - work.step, 0) if self.fresh else 0  # until it begins to train
        warned = None if self.site.limit is None else max(since + self.site.limit - self.site.warning, launched)
        strike = self.strikes.next(launched, self.ran)
        end = timeline.finish(position)
        at = min([time for time in (warned, strike.at if strike else None) if time is not None], default=None)
        if at is None or at >= launched + before + end.clock:
            self._train(number, timeline, end, before)
            self._spend("ending", timeline.saving.write + self.site.leave)
            self.ran += self.clock - launched
            self.steps += end.steps
            return True, position, None
        by_limit = warned is not None and at == warned
        hit = None if by_limit else strike
        if hit is not None:
            self.strikes.struck(hit)
        self.interruptions += 1
        kept, until = self._end(number, timeline, position, before, at, hit)
        self.ran += until - launched
        self._come_back(hit, at)
        self._consider(kept.step > position.step)
        return False, kept, hit

    def _end(
        self, number: int, timeline: Timeline, position: Position, before: int, at: int, strike: Strike | None
    ) -> tuple[Position, int]:
        """A start that was hit at `at`: account for it; the state from which the next one goes on, and when it has done
        its last step, until which it has run: a second warning changes nothing then."""
        launched = self.clock
        if at < launched + before:
            self._spend("start-up", at - launched)
            self._spend("ending", self.site.leave if strike is None or strike.kind in WARNED else 0)
            return position, at
        moment = timeline.moment(position, at - launched - before)
        warned = strike is None or strike.kind in WARNED
        if warned or (strike is not None and strike.kind == RANK):
            done, step, last = _left(timeline, moment, warned)
            trained = launched + before + done.clock  # when the last step was done
            saving = max(trained, at) + timeline.saving.write
            if step and saving - at <= self.site.grace:
                self._train(number, timeline, done, before)
                self._spend("ending", saving + (self.site.leave if warned else 0) - self.clock)
                self.steps += done.steps
                return Position(step, last), max(trained, at)
        self._train(number, timeline, moment.kept_at, before)
        self._spend("lost", max(at - self.clock, 0))
        if warned:  # it has tried
            self._spend("ending", self.site.leave)
        self.steps += moment.kept_at.steps
        self.lost += moment.done.steps - moment.kept_at.steps
        return moment.kept, at

    def _train(self, number: int, timeline: Timeline, done: Tally, before: int) -> None:
        """Account for the start-up and for what was done. The first step is part of the start-up."""
        work, saving = timeline.work, timeline.saving
        first = min(done.steps, 1) if self.fresh else 0
        training = (done.steps - first) * work.step
        waits = self.plan.waits[number] if number < len(self.plan.waits) else 0.0
        waited = min(round(training * waits), training)
        self._spend("start-up", before + first * work.step)
        self._spend("training", training - waited)
        self._spend("data wait", waited)
        self._spend("validation", done.validations * work.validation)
        self._spend("checkpoint", done.stalls * saving.stall)

    def _come_back(self, strike: Strike | None, at: int) -> None:
        """The time from the end of a start to the next."""
        kind = strike.kind if strike is not None else None
        if strike is not None and strike.back is not None:
            item = "down" if kind in INSIDE else "stopped" if kind in BY_OWNER else "queue"
            self._spend(item, max(at + strike.back - self.clock, 0))
            return
        if kind in (CRASH, RANK, NODE):
            self._spend("down", self.site.leave)
        if kind not in INSIDE:
            self._spend("queue", self.strikes.wait(kind not in BY_OWNER, strike.draw if strike is not None else None))

    def _consider(self, fruitful: bool) -> None:
        """Raise `_GivenUpError` if it makes no sense to go on."""
        self.fruitless = 0 if fruitful else self.fruitless + 1
        if self.site.fruitless is not None and self.fruitless >= self.site.fruitless:
            raise _GivenUpError(GAVE_UP)
        if self.lives >= MOST_LIVES or self.clock >= LONGEST * SECOND:
            raise _GivenUpError(ENDLESS)


def _left(timeline: Timeline, moment: Moment, warned: bool) -> tuple[Tally, int, bool]:
    """What has been done when the ranks have agreed to leave, or could not agree any more, the step then, and whether
    it is validated. Warned in a step or while they copy the state, they leave after the step; in a validation, at once.
    """
    done, step = moment.done, moment.step
    if moment.kind == VALIDATION or not warned:
        return done, step, moment.kind != VALIDATION
    if moment.kind == STALL:
        done = Tally(done.clock + timeline.saving.stall, done.steps, done.validations, done.stalls + 1)
    work = timeline.work
    return Tally(done.clock + work.step, done.steps + 1, done.validations, done.stalls), step + 1, False
