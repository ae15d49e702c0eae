"""What was wrong with a scenario, a sentence each."""

import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from agl_core.durable.chain import StepEntry, chain_files, read_chain
from agl_core.durable.exits import INTERRUPTED, TAKEN_OVER
from agl_core.files import read_json
from jobs.attempt import read_ends
from jobs.cluster import ClusterConfig
from jobs.history import BEGIN, END, Incarnation, incarnations, read_history
from jobs.pipeline import STAGE
from jobs.sbatch import tasks
from jobs.verdict import compare_runs, read_events
from tests.slurm.engine import Story
from tests.slurm.tiny import RECIPES

UNFINISHED = "killed"  # an incarnation of whose end nobody has written


def problems(story: Story, whole: Path) -> list[str]:
    """All that is not as it should be; `whole` is the run directory of the undisturbed run."""
    return [*_states(story), *_ends(story), *_lost(story), *_order(story), *_results(story), *_same(story, whole)]


def _states(story: Story) -> Iterator[str]:
    """Slurm's view of the last submission, and what is left of the processes."""
    expected = story.scenario.expected
    for submission, ids in enumerate(story.ids, 1):
        states = ("COMPLETED",) if expected.finished and submission == len(story.ids) else expected.states
        for name, id in ids.items():
            if (state := story.facts[id]["JobState"]) not in states:
                yield f"job {name} ({id}) is {state} in the end, not {' or '.join(states)}"
    restarts = int(story.facts[story.ids[0][_struck(story)]]["Restarts"])
    if restarts != expected.restarts and (expected.exact or restarts < expected.restarts):
        yield f"Slurm took the job back {restarts} times, not {expected.restarts}"
    if story.left:
        yield f"processes were left behind: {story.left}"


def _ends(story: Story) -> Iterator[str]:
    """What the history says about every incarnation of the job that was struck."""
    expected = story.scenario.expected
    ends = tuple(spoken(each) for each in _incarnations(story, _struck(story)))
    same = len(ends) == len(expected.ends) and all(
        end in wanted.split("|") for wanted, end in zip(expected.ends, ends, strict=True)
    )
    if not expected.exact:
        same = bool(ends) and ends[0] in expected.ends[0].split("|") and expected.ends[-1] == ends[-1]
    if not same:
        yield f"the history says {list(ends)}, not {list(expected.ends)}"


def spoken(incarnation: Incarnation) -> str:
    """An incarnation's end as scenarios spell it."""
    end = incarnation.end
    return UNFINISHED if end is None else ", ".join(end[key] for key in ("end", "why", "deed") if end[key])


def _lost(story: Story) -> Iterator[str]:
    """Steps that were done again."""
    total = sum(lost_steps(story.run.path, stage) for stage in RECIPES[story.scenario.recipe])
    if total > story.scenario.expected.lost:
        yield f"{total} steps were done again, not {story.scenario.expected.lost}"


def lost_steps(run_dir: Path, stage: str) -> int:
    """How many steps of a stage an incarnation had done from which the next one did not continue, over all."""
    reached: dict[int, int] = {}  # by generation; its survivors may have files of their own, with the same steps
    for path in chain_files(run_dir, stage):
        generation = int(path.name.removeprefix(f"{stage}.").split(".")[0].split("-")[0])
        steps = [entry.step for entry in read_chain(path) if isinstance(entry, StepEntry)]
        reached[generation] = max([reached.get(generation, 0), *steps])
    starts = [event for event in read_events(run_dir) if event["kind"] == "start" and event["stage"] == stage]
    before = [max([reached.get(start["generation"], 0), start["step"]]) for start in starts]
    return sum(max(step - after["step"], 0) for step, after in zip(before, starts[1:], strict=False))


def _order(story: Story) -> Iterator[str]:
    """Nothing runs twice, at the same time or one after the other, and nothing before what it waits for."""
    entries = read_history(story.run.history)
    finished = 0.0
    for name in story.ids[0]:
        found = _incarnations(story, name)
        if not found and story.scenario.expected.finished:
            yield f"{name} was never begun"
        if found and found[0].begin["time"] < finished:
            yield f"{name} was begun before what it waits for had ended"
        if name != _struck(story) and len(found) > 1:
            yield f"{name} was started {len(found)} times"
        for before, after in pairwise(found):
            twice = before.end is not None and after.begin["time"] < before.end["time"]
            if twice and not story.scenario.expected.overlap:
                yield f"{name} ran twice at the same time: {before.begin} {after.begin}"
        done = [entry for entry in entries if entry["kind"] == END and entry["job"] == name and entry["end"] == "done"]
        if len(done) > 1:
            yield f"{name} was done {len(done)} times"
        finished = max([finished, *(entry["time"] for entry in done)])
    unknown = {entry["job"] for entry in entries if entry["kind"] == BEGIN} - set(story.ids[0])
    if unknown:
        yield f"jobs that nobody submitted were begun: {sorted(unknown)}"


def _results(story: Story) -> Iterator[str]:
    """The files of submitit and the records of the stages."""
    for ids in story.ids:
        for name, id in ids.items():
            well = story.facts[id]["JobState"] == "COMPLETED"
            result = story.run.jobs / f"{id}_0_result.pkl"
            outcome = pickle.loads(result.read_bytes())[0] if result.exists() else "nothing"
            if (outcome == "success") != well:
                yield f"{result.name} of {name} says {outcome}, but Slurm {story.facts[id]['JobState']}"
            errors = story.run.jobs / f"{id}_0_log.err"
            if well and errors.exists() and "Traceback" in errors.read_text():
                yield f"{errors.name} of {name} has a traceback, though it went well"
    yield from _rank_ends(story)
    for stage in RECIPES[story.scenario.recipe]:
        record = story.run.stage_record(stage)
        if story.run.finished(stage) != story.scenario.expected.finished:
            yield f"{record} says {read_json(record) if record.exists() else 'nothing'}"


def _rank_ends(story: Story) -> Iterator[str]:
    """Each rank of an attempt that ended in order has said so, and so has one that learned that it is not wanted."""
    name = _struck(story)
    ranks = _ranks(story, name)
    codes = {"done": 0, "interrupted": INTERRUPTED, "taken over": TAKEN_OVER}
    for number, found in enumerate(_incarnations(story, name)):
        old = story.scenario.expected.overlap and number == 0
        code = TAKEN_OVER if old else codes.get(found.end["end"] if found.end else "")
        folder = story.run.jobs / f"{name}.{found.begin['id']}" / f"{found.begin['restart']}.{found.begin['attempt']}"
        told = [end and end.code for end in read_ends(folder, ranks)]
        # Who is preempted before it can listen dies of the warning, with nothing lost, and can say nothing.
        unborn = bool(found.end) and "killed by signal 15" in found.end["text"] and found.end["why"] != ""
        if code == INTERRUPTED and unborn and set(told) == {None}:
            continue
        if code is not None and set(told) != {code}:
            yield f"the ranks of {folder.name} ended with {told}, not {code}"


def _ranks(story: Story, name: str) -> int:
    """How many ranks a job has."""
    kind = STAGE if name in RECIPES[story.scenario.recipe] else name
    return tasks(ClusterConfig(nodes=story.scenario.nodes, processes=story.scenario.processes), kind)


def _same(story: Story, whole: Path) -> Iterator[str]:
    """The same bits as without any interruption."""
    if story.run.path == whole or not story.scenario.expected.finished:
        return
    for stage in RECIPES[story.scenario.recipe]:
        if (difference := compare_runs(story.run.path, whole, stage)) is not None:
            yield f"stage {stage} differs from that of the run that was left alone: {difference}"


def _struck(story: Story) -> str:
    return story.scenario.struck or next(iter(RECIPES[story.scenario.recipe]))


def _incarnations(story: Story, name: str) -> list[Incarnation]:
    return incarnations(read_history(story.run.history), name)
