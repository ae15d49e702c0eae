"""What each life of a stage has done when, and what of it counts. Part of `goodput`; times are whole milliseconds."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from agl_core.reporting.goodput.lives import STEPPED, Life, Mark
from agl_core.reporting.goodput.spans import usual_step

Interval = tuple[int, int]


@dataclass
class Course:
    """A life of a stage that its trainer has told of. until: when it was over at the latest; started: end of its first
    step (None: it came to none); trained: end of its last; from_step, reached: see `goodput.Life`; kept: the steps that
    count, as intervals (after, to]; anchors: steps, and when they were done, both increasing; usual: milliseconds of
    a step of the stage, the median of what its events tell, None if they do not."""

    life: Life
    until: int
    started: int | None = None
    trained: int = 0
    from_step: int = 0
    reached: int = 0
    kept: list[Interval] = field(default_factory=list)
    anchors: list[Interval] = field(default_factory=list)
    usual: float | None = None

    @property
    def steps_kept(self) -> int:
        """How many steps count."""
        return sum(to - after for after, to in self.kept)

    @property
    def kept_until(self) -> int:
        """The last step that counts, or the one from which it went on."""
        return max([self.from_step, *(to for _, to in self.kept)])

    def times_kept(self) -> list[Interval]:
        """When the steps that count were done, and all that belongs to them."""
        assert self.started is not None
        if self.reached <= self.from_step:  # nothing was left to be done but the end
            return [(self.started, self.trained)]
        found: list[Interval] = []
        for after, to in self.kept:
            begin = self.started if after <= self.from_step else self._rolled_back(after)
            end = self.trained if to >= self.reached else self._secured(to)
            begin = max([begin, *(end for _, end in found[-1:])])
            if begin < end:
                found.append((begin, end))
        return found

    def _rolled_back(self, step: int) -> int:
        """When the run went back at `step`."""
        times = [mark.time for mark in self.life.marks if mark.kind == "rollback" and mark.step == step]
        return max(times, default=self._reached_at(step))

    def _secured(self, step: int) -> int:
        """When all that belongs to the state of `step` was done, and the state was copied to be saved."""
        marks = [mark for mark in self.life.marks if mark.step == step]
        saves = [saved_at(mark) + mark.stall for mark in marks if mark.kind == "checkpoint"]
        scored = [mark.time for mark in marks if mark.kind == "validation"]
        return self._inside(max([self._reached_at(step), *(saves[-1:] or scored)]))

    def saves(self) -> list[tuple[int, int]]:
        """Of each checkpoint that training went on beside: when its state was taken, and how long training waited."""
        marks = [mark for mark in self.life.marks if mark.kind == "checkpoint" and mark.stall]
        found = [(saved_at(mark), mark.stall) for mark in marks]
        return [(at, stall) for at, stall in found if self.life.last_word is None or at < self.trained]

    def _reached_at(self, step: int) -> int:
        """When a step was done, between two of which it is known in proportion."""
        steps = [known for known, _ in self.anchors]
        place = bisect_left(steps, step)
        if place == len(steps):
            return self.trained
        right_step, right = self.anchors[place]
        if right_step == step or place == 0:
            return self._inside(right)
        left_step, left = self.anchors[place - 1]
        return self._inside(left + (right - left) * (step - left_step) // (right_step - left_step))

    def _inside(self, time: int) -> int:
        assert self.started is not None
        return min(max(time, self.started), self.trained)


def saved_at(mark: Mark) -> int:
    """When the state of a checkpoint was taken."""
    return mark.at if mark.at is not None else mark.time - (mark.seconds or 0) - mark.stall


def chart(lives: Sequence[Life], untils: Sequence[int], running: Life | None) -> list[Course]:
    """The courses of the lives of one stage that their trainer has told of, in their order.

    untils: when each was over at the latest; running: the one of them that goes on with what it does.
    """
    told = [pair for pair in zip(lives, untils, strict=True) if pair[0].start is not None or pair[0].marks]
    courses = [Course(life, until) for life, until in told]
    _set_steps(courses, lives)
    _set_kept(courses)
    usual = usual_step(time / steps for course in courses for _, steps, time in told_steps(course) if steps)
    for course in courses:
        course.usual = usual
        _set_times(course, course.life is running)
    return courses


def _set_steps(courses: Sequence[Course], lives: Sequence[Life]) -> None:
    for course in courses:
        life = course.life
        steps = [mark.step for mark in life.marks if mark.step is not None]
        course.from_step = life.begun if life.begun is not None else max(min(steps, default=1) - 1, 0)
        course.reached = max([course.from_step, *steps])
        if life.stepped and life.leave_step is not None:  # else it is what an earlier one had done
            course.reached = max(course.reached, life.leave_step)
    for later in lives:
        earlier = [course for course in courses if course.life.number < later.number and course.life.stepped]
        if not earlier:
            continue
        earlier[-1].reached = max(earlier[-1].reached, later.before or 0)
        if later.begun is not None and later.begun > max(course.reached for course in earlier):
            earlier[-1].reached = later.begun  # survivors of a rank have saved what nobody could write down


def _set_kept(courses: Sequence[Course]) -> None:
    """A start takes back the later steps of all lives before, a rollback those between, unless a start from before it
    has taken the rollback itself back."""
    for number, course in enumerate(courses):
        later = [other.life.begun for other in courses[number + 1 :] if other.life.begun is not None]
        limit = min([course.reached, *later])
        course.kept = [(course.from_step, limit)] if limit > course.from_step else []
    for number, course in enumerate(courses):
        later = [other.life.begun for other in courses[number + 1 :] if other.life.begun is not None]
        for mark in course.life.marks:
            if mark.kind != "rollback" or mark.step is None or mark.to is None:
                continue
            if min(later, default=mark.step) < mark.step:
                continue
            for earlier in courses[: number + 1]:
                earlier.kept = [part for kept in earlier.kept for part in _without(kept, mark.to, mark.step)]


def _without(kept: Interval, after: int, to: int) -> list[Interval]:
    parts = [(kept[0], min(kept[1], after)), (max(kept[0], to), kept[1])] if after < to else [kept]
    return [(begin, end) for begin, end in parts if begin < end]


def _set_times(course: Course, running: bool) -> None:
    """When its first and its last step were done."""
    life, until = course.life, course.until
    stepped = [mark for mark in life.marks if mark.kind in STEPPED]
    scored = [mark for mark in life.marks if mark.kind == "validation"]
    if stepped:
        course.started = min(stepped[0].time, until)
    elif scored:
        course.started = min(max(scored[0].time - (scored[0].seconds or 0), life.first), until)
    elif life.last_word is not None and life.last_word.kind == "finish" and life.start is not None:
        course.started = min(life.start, until)
    else:
        return
    course.trained = until
    if not running or life.last_word is not None:
        course.trained = min(max(_last_step(course, stepped), course.started), until)
    course.anchors = _anchors(course, stepped, scored)


def told_steps(course: Course) -> Iterator[tuple[int, int, int]]:
    """Of each event of steps that tells their time: its place among the marks, how many they were, and milliseconds in
    which data was not waited for."""
    before = course.from_step
    for place, mark in enumerate(course.life.marks):
        if mark.kind == "step" and mark.step is not None and mark.seconds is not None:
            yield place, max(mark.step - before, 0), max(mark.seconds - (mark.waited or 0), 0)
        if mark.kind in STEPPED and mark.step is not None:
            before = mark.step


def _last_step(course: Course, stepped: Sequence[Mark]) -> int:
    """When the last step was done: as the trainer says, or where it says no more, at the pace of its newest steps."""
    life, word = course.life, course.life.last_word
    marks = [mark for mark in life.marks if mark.kind in ("validation", "rollback", *STEPPED)]
    settled = max(mark.time for mark in marks) if marks else course.started or 0
    if word is None:  # with one, the last save is part of the ending
        saves = [saved_at(mark) + mark.stall for mark in life.marks if mark.kind == "checkpoint"]
        settled = max([settled, *saves])
    if word is not None and word.at is not None:
        return max(settled, min(word.at, word.time))
    told = ("validation", "checkpoint", *STEPPED)
    known = max((mark.step or 0 for mark in life.marks if mark.kind in told), default=course.reached)
    latest = min(word.time, course.until) if word is not None else course.until
    return min(settled + max(course.reached - known, 0) * _pace(course, stepped), max(latest, settled))


def _pace(course: Course, stepped: Sequence[Mark]) -> int:
    """Milliseconds of a step, by the last event that tells."""
    told = [mark for mark in stepped if mark.kind == "step" and mark.step is not None]
    if not told:
        return 0
    before = told[-2] if len(told) > 1 else None
    count = max((told[-1].step or 0) - ((before.step or 0) if before else course.from_step), 1)
    if told[-1].seconds is not None:
        return told[-1].seconds // count
    return (told[-1].time - before.time) // count if before else 0


def _anchors(course: Course, stepped: Sequence[Mark], scored: Sequence[Mark]) -> list[Interval]:
    """Steps and when they were done, both increasing."""
    known = [(mark.step, mark.time) for mark in stepped if mark.step is not None]
    known += [(mark.step, mark.time - (mark.seconds or 0)) for mark in scored if mark.step is not None]
    known += [(m.step, m.at) for m in course.life.marks if m.kind == "checkpoint" and m.step is not None and m.at]
    found: list[Interval] = []
    for step, time in sorted([*known, (course.reached, course.trained)]):
        if not found or step > found[-1][0]:
            found.append((step, max([time, *(before for _, before in found[-1:])])))
    return found
