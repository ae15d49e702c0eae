"""Follows a run by its events, one after the other, so that a view of it costs the same however long it has run."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agl_core.config import StageConfig, TrainConfig
from agl_core.reporting.events import CANCEL, JOB_KINDS
from agl_core.reporting.goodput.account import Account, Life, account
from agl_core.reporting.live import snapshot as states
from agl_core.reporting.live.forecast import Costs, costs, ends_at, seconds_left, steps_of
from agl_core.reporting.live.seen import StageSeen, Validated, is_number, is_whole
from agl_core.reporting.live.snapshot import LastEnd, Snapshot
from agl_core.reporting.live.turns import TURNS, State, Turns
from agl_core.reporting.words import clean, moment, reason, span

Event = Mapping[str, Any]
PATIENCE = 3.0  # times the usual time between two signs of life, after which a stage is silent
LATE = 2.0  # times the usual time between two events, after which something else than steps is going on
AGE = 60.0  # seconds after which the time of a run that stands still is accounted for anew
QUIET = 20.0  # seconds without a sign of life that are worth a word only beyond this, as files may be seen late
AT_WORK = (states.TRAINS, states.VALIDATES)
GOING = (states.STARTS, states.WORKS, states.WAITS)
"""States in which time is accounted for up to the present; in others to the last event: of steps and validations only
those that are told of count, and where nobody works on a run nothing does."""


@dataclass(frozen=True)
class Books:
    """Where the time of a run has gone up to `upto` (unix time), and what follows of it."""

    account: Account
    upto: float
    spent: Costs
    reasons: Mapping[str, int]
    last_end: LastEnd | None
    goodput: float


class Tracker:
    """Takes events in the order of the file and says at any moment where the run is.

    sign: unix time of a sign of life of the stages that is no event; it may be set at any time, and so may what
    `turns` holds.
    """

    def __init__(self, run: str, config: TrainConfig | None, accounts: bool = True) -> None:
        """`config` may be None where it cannot be read: then nothing is said of stages to come. Without `accounts`
        nothing is said of where the time has gone, and no event is kept."""
        self.run, self._config, self._accounts = run, config, accounts
        self.stages: dict[str, StageSeen] = {}
        self.turns = Turns()
        self.sign: float | None = None
        self._events: list[Event] = []
        self._at: float | None = None  # the time of the newest event
        self._generation = 0
        self._cancels: list[tuple[float, list[str]]] = []  # time and ids
        self._ending: Event | None = None  # of the start that is gone, in the books
        self._signals: list[tuple[str, float, str]] = []  # stage, time and signal of every interruption
        self._books: Books | None = None
        self._stale = False
        self._trained = 0.0  # seconds of steps since the books were made

    def add(self, event: Event) -> None:
        """Take the next event."""
        kind, stage = event["kind"], event["stage"]
        self._at = event["time"]
        if self._accounts:
            self._events.append(event)
        self._stale = self._stale or kind in TURNS
        if kind in JOB_KINDS:
            self.turns.add(event)
            if kind == CANCEL:
                self._cancels.append((event["time"], str(event.get("ids", "")).split(",")))
            return
        generation = event.get("generation", self._generation)
        if not is_whole(generation) or generation < self._generation:
            return  # of an earlier start that has not noticed yet: its time counts, its steps do not
        if kind == "start":
            self._generation = generation
        self.turns.add(event)
        self.stages.setdefault(stage, StageSeen(stage)).add(event)
        if kind == "interruption":
            self._signals.append((stage, event["time"], str(event.get("signal", ""))))
        if kind == "step" and is_number(event.get("seconds")):
            waited = event.get("waited")
            self._trained += event["seconds"] - (waited if is_number(waited) else 0.0)
            self._stale = self._stale or self.stages[stage].suspended()

    def stepped(self, stage: str, step: int, at: float) -> None:
        """`stage` has done `step` at the unix time `at`, which no event tells yet."""
        seen = self.stages.get(stage)
        if seen is not None and step >= (seen.step or 0):
            seen.step, seen.at = step, at
            seen.validating = None

    def best(self, stage: str, validated: Validated) -> None:
        """The best validation of `stage` so far, which the events that come here need not tell."""
        self.stages.setdefault(stage, StageSeen(stage)).earlier = validated

    def snapshot(self, now: float, exact: bool = False, job: str | None = None) -> Snapshot:
        """Where the run is at `now` (unix time), or one job of it. With `exact` its time is accounted for anew;
        otherwise only after something has begun or ended, and carried on from there."""
        names = self.stage_names()
        job = self.turns.at(names) if job is None else job
        seen, config = self.stages.get(job, StageSeen(job)), self._stage(job)
        sign = max((sign for sign in (seen.at, self.sign if job in names else None) if sign is not None), default=None)
        state, told, since = self._quiet(seen, now, sign, self._state(job, now, sign))
        books = self._books_at(job, state, now, exact)
        goes_on = state not in (*states.ENDED, states.NOT_STARTED)
        clock = max(seen.at, now - (self._pause(seen, state) or 0.0)) if state in AT_WORK and seen.at else now
        left, each = seconds_left(seen, config) if goes_on else None, seen.step_seconds()
        spent = books.spent if books else Costs(0.0, {}, 0.0, 0.0)
        end = ends_at(self._config, job, self.stages, spent, clock) if self._config and config and goes_on else None
        waits = state == states.WAITS and seen.step is not None  # how long, nobody knows
        over = books.account if books is not None and state == states.FINISHED else None
        if over is not None:
            told = f"is finished: it ended at {moment(over.end, now)}, after {span(over.wall)}"
        return Snapshot(
            run=clean(self.run),
            now=now,
            job=clean(job),
            stage_number=names.index(job) + 1 if job in names else 0,
            stages=len(names),
            state=state,
            told=told,
            since=since,
            where=self._where(job),
            epoch=_epoch(seen, config),
            epochs=_whole(seen.start.get("epochs")),
            step=seen.step,
            steps=seen.total,
            losses={name: value for name, value in seen.newest.items() if name.endswith("loss") and is_number(value)},
            lr=_number(seen.newest.get("lr")),
            crops_per_second=config.batch / each if config and each else _number(seen.newest.get("crops_per_second")),
            data_wait=seen.data_wait(),
            checkpoint_share=seen.checkpoint_share(),
            validation=seen.validations[-1] if seen.validations else None,
            best=seen.best,
            scores={clean(name): one.best.score for name, one in self.stages.items() if one.best is not None},
            interruptions=books.account.interruptions if books else 0,
            reasons=books.reasons if books else {},
            steps_lost=books.account.steps_lost if books else 0,
            goodput=books.goodput if books else None,
            seconds=books.account.seconds if books else {},
            costs=spent.items,
            cost_share=spent.per_second,
            seconds_left=None if left is None else max(left - (now - clock), 0.0),
            ends_at=None if end is None or waits else max(end, now),
            to_end=None if end is None else max(end - now, 0.0),
            refused=self.turns.refused(job),
            ended=over.end if over else None,
            wall=over.wall if over else None,
            last_sign=max(self._at or 0.0, sign or 0.0) or None,
            last_end=books.last_end if books else None,
        )

    @property
    def account(self) -> Account | None:
        """Where the time has gone, as the newest snapshot has it."""
        return self._books.account if self._books is not None else None

    def stage_names(self) -> list[str]:
        """The stages of the run in their order, as far as they are known."""
        return list(self._config.stages) if self._config is not None else list(self.stages)

    def _stage(self, job: str) -> StageConfig | None:
        return self._config.stages.get(job) if self._config is not None else None

    def _where(self, job: str) -> str:
        host, id = self.turns.place(job)
        start = self.stages[job].start if job in self.stages else {}
        size, device = start.get("world_size"), str(start.get("device", "")).partition(":")[0]
        parts = [f"on {host}" if host else "", f"job {id}" if id.isdecimal() else id]
        return clean(", ".join(part for part in [*parts, f"{size} x {device}" if size and device else ""] if part))

    def _state(self, job: str, now: float, sign: float | None) -> State:
        state, told, since = self.turns.state(job, now, sign)
        if job in self.stages and state == states.TRAINS:
            seen = self.stages[job]
            validating = seen.validating if seen.validating is not None else self._validating_since(seen, now)
            return (state, told, since) if validating is None else (states.VALIDATES, "", validating)
        if job not in self.stage_names() and state in (states.TRAINS, states.STARTS, states.SILENT):
            return self.turns.works(job, now)  # it tells of nothing while it works
        return state, told, since

    def _validating_since(self, seen: StageSeen, now: float) -> float | None:
        """Since when it must be validating, if for longer than usual no step was told of, and a validation was due."""
        config, each, recent = self._stage(seen.name), seen.step_seconds(), seen.recent()
        tiles, step, at = seen.start.get("tiles"), seen.newest.get("step"), seen.newest.get("time")
        if config is None or not each or not recent or not is_whole(step) or not is_number(at) or not seen.total:
            return None
        every = steps_of(config.validate_every, config.batch, tiles if is_whole(tiles) else None)
        usual = recent[-1].steps
        if not every or not seen.start.get("validation_tiles", 1) or now - at < LATE * (usual * each + 1.0):
            return None
        validated = seen.validations[-1].step if seen.validations else 0
        at_a_step = -(-step // every) * every - step < 1 and validated < step  # the newest step itself ends an epoch
        due = step if at_a_step else min(-(-(step + 1) // every) * every, seen.total)
        return at + (due - step) * each if due <= step + usual else None

    def _pause(self, seen: StageSeen, state: str) -> float | None:
        """Seconds until a sign of life is due after the last one; None if that is not known."""
        return seen.validation_seconds() if state == states.VALIDATES else seen.usual_pause()

    def _quiet(self, seen: StageSeen, now: float, sign: float | None, state: State) -> State:
        """The state, or that the stage is silent for longer than its pace makes likely."""
        usual = self._pause(seen, state[0]) if state[0] in AT_WORK else None
        if usual is None or sign is None or now - sign <= max(QUIET, PATIENCE * usual):
            return state
        told = f"has given no sign of life for {span(now - sign)}, since {moment(sign, now)}"
        return states.SILENT, f"{told}: {span(max(usual, 1.0))} would be usual", sign

    def _books_at(self, job: str, state: str, now: float, exact: bool) -> Books | None:
        """The books up to the newest turn of the run and what was trained since; while it waits, up to about now; where
        nobody works on it, up to the last that was heard of it."""
        if not self._events:
            return None
        newest = self._events[-1]["time"]
        ending = self.turns.ending(job, newest)
        self._stale, self._ending = self._stale or (ending is None) != (self._ending is None), ending
        if exact:
            self._books, self._stale, self._trained = self._made(now if state in GOING else newest), False, 0.0
            return self._books
        if state not in (*AT_WORK, states.STARTS, states.WORKS, states.FINISHED):
            aged = self._books is not None and state in GOING and now - self._books.upto >= AGE
            if self._books is None or self._stale or aged:
                upto = now if state in GOING else newest
                self._books, self._stale, self._trained = self._made(upto), False, 0.0
            return self._books
        if self._books is None or self._stale:
            self._books, self._stale, self._trained = self._made(newest), False, 0.0
        books = self._books
        since = max(newest - books.upto, 0.0) if books else 0.0
        if books is None or not since:
            return books
        wanted = books.account.wall + since - books.account.seconds["stopped"]
        goodput = (books.account.seconds["training"] + self._trained) / wanted if wanted > 0 else 0.0
        return replace(books, goodput=min(goodput, 1.0), spent=replace(books.spent, kept=books.spent.kept + since))

    def _made(self, upto: float) -> Books | None:
        made = account(self._events if self._ending is None else [*self._events, self._ending], upto)
        if made is None:
            return None
        names = {*self.stage_names(), *self.stages}
        lives = [self._with_end(life) for life in made.lives if life.job in names]
        spent = costs(made, names)
        return Books(made, upto, spent, _reasons(lives), _last_end(lives, names), made.goodput)

    def _with_end(self, life: Life) -> Life:
        """A start whose reason to end nobody but its owner or its trainer has written down, with what these said."""
        if life.end not in ("", "interrupted", "killed") or life.why:
            return life
        until = life.ended if life.ended is not None else math.inf
        if any(life.launched <= at <= until + 1.0 and _meant(life.id, ids) for at, ids in self._cancels):
            return replace(life, end="interrupted", why="cancelled")
        own = [signal for job, at, signal in self._signals if job == life.job and life.launched <= at <= until + 1.0]
        return replace(life, end="interrupted", why=own[-1]) if own else life


def _meant(id: str, ids: Sequence[str]) -> bool:
    """Whether a cancellation of `ids` is one of the start `id`: of a machine, the launcher of the run was told."""
    return id in ids or (id.startswith("pid ") and any(other.startswith("pid ") for other in ids))


def _epoch(seen: StageSeen, config: StageConfig | None) -> int | None:
    """The epochs that are done after the newest step, which may be later than the newest event that tells of them."""
    tiles, told = seen.start.get("tiles"), seen.newest
    if config is None or not is_whole(tiles) or tiles <= 0 or seen.step is None or not is_whole(told.get("step")):
        return seen.epoch
    counts_so = told["step"] * config.batch // tiles == told.get("epoch")  # unless the set has changed meanwhile
    return max(seen.step * config.batch // tiles, seen.epoch or 0) if counts_so else seen.epoch


def _number(value: Any) -> float | None:
    return value if is_number(value) else None


def _whole(value: Any) -> int | None:
    return value if is_whole(value) else None


def _reasons(lives: Sequence[Life]) -> dict[str, int]:
    """Why stages were started again, most frequent first."""
    newest = {life.job: life.number for life in lives}
    ends = [reason(life.end, life.why) for life in lives if life.number != newest[life.job] and life.end != "done"]
    return dict(Counter(map(clean, ends)).most_common())


def _last_end(lives: Sequence[Life], stages: Collection[str]) -> LastEnd | None:
    """The newest start that ended before its stage was done, and how."""
    again: dict[str, Life] = {}  # the start after, by job
    for life in reversed([life for life in lives if life.job in stages]):
        later = again.get(life.job)
        again[life.job] = life
        if life.end == "done" or (later is None and (life.ended is None or not life.end)):
            continue
        at = life.ended if life.ended is not None else life.launched
        away = None if later is None else max(later.launched - at, 0.0)
        ran = max(at - life.launched, 0.0)
        key = clean(reason(life.end, life.why))
        return LastEnd(clean(life.job), key, clean(life.text), at, ran, away, life.reached, life.deed)
    return None
