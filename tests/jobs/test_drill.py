import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from agl_core.config import DrillConfig
from agl_core.durable.chain import ChainLog
from agl_core.errors import UserError
from agl_core.reporting.goodput.account import account as account_of
from jobs.cli import parse
from jobs.drill import MARKER, claim, command, describe, drill, intervals, write_recipe
from jobs.failure import JobError
from jobs.interruption import (
    ALL,
    EVERYTHING,
    LAUNCHER,
    ONE,
    PHASES,
    SIGNALS,
    WORKERS,
    Interruption,
    Pace,
    aim,
    draw,
    targets,
)
from jobs.processes import Family, Process, list_processes, parse_listing, send
from jobs.rehearsal import Incarnation, Rehearsal, Tail, choose
from jobs.verdict import Row, Verdict, account, compare_runs, compare_tensors, problems, read_tensors

PACE = Pace(total=60, every=10, validate_every=20, startup=4.0, step=0.1, validation=0.5, save=0.2)


def interruption(
    signal: str = "KILL",
    target: str = ONE,
    phase: str = "step",
    spread: float = 0.5,
    fraction: float = 0.5,
    rank: float = 0.0,
) -> Interruption:
    return Interruption(signal, target, phase, spread, fraction, rank)


# --- what is drawn


def test_the_interruptions_are_a_function_of_the_seed() -> None:
    assert draw(30, "mixed", 2, 7) == draw(30, "mixed", 2, 7)
    assert draw(30, "mixed", 2, 7) != draw(30, "mixed", 2, 8)
    assert draw(30, "mixed", 2, 7)[:10] == draw(10, "mixed", 2, 7)


def test_mixed_interruptions_are_of_every_kind() -> None:
    drawn = draw(300, "mixed", 2, 0)
    assert {found.signal for found in drawn} == set(SIGNALS)
    assert {found.phase for found in drawn} == set(PHASES)
    assert {found.target for found in drawn if not found.announced} == {ONE, EVERYTHING}
    assert {found.target for found in drawn if found.announced} == {ONE, ALL, WORKERS, LAUNCHER}
    assert Counter(found.phase for found in drawn).most_common(1)[0][0] == "step"


@pytest.mark.parametrize("name", ["KILL", "TERM", "USR2"])
def test_one_signal_is_used_where_one_is_asked_for(name: str) -> None:
    assert {found.signal for found in draw(50, name, 1, 3)} == {name}
    assert {found.target for found in draw(80, name, 1, 3)} == set(targets(name, 1))


def test_a_run_is_never_interrupted_so_late_that_it_could_end_first() -> None:
    for number, drawn in enumerate(draw(400, "mixed", 2, 1)):
        start = number % 59
        for left in (0, 3, 50):
            moment = aim(drawn, start, left, PACE)
            assert start <= moment.step <= max(58, start)
            assert moment.delay >= 0


def test_interruptions_are_spread_over_the_steps_that_are_left() -> None:
    middle, late = [], []
    for seed in range(40):
        start, steps = 0, []
        for number, drawn in enumerate(drawn_list := draw(20, "TERM", 2, seed)):
            start = aim(drawn, start, len(drawn_list) - 1 - number, replace(PACE, total=400)).step
            steps.append(start)
        assert steps == sorted(steps)
        middle.append(steps[9])
        late.append(steps[-1])
    assert 150 < sum(middle) / len(middle) < 250
    assert 300 < sum(late) / len(late) < 399
    assert min(late) > 100


def test_validation_and_saving_are_interrupted_where_they_are_due() -> None:
    found = aim(interruption(phase="validation", spread=0.0), 3, 1, PACE)
    assert (found.phase, found.step, found.delay) == ("validation", 20, 0.25)
    found = aim(interruption(phase="save", spread=0.0), 3, 1, PACE)
    assert (found.phase, found.step, found.delay) == ("save", 10, 0.1)
    found = aim(interruption(phase="save", spread=0.0), 12, 1, PACE)
    assert (found.phase, found.step, found.delay) == ("save", 20, 0.6)  # after the validation of that step
    found = aim(interruption(phase="validation"), 41, 0, PACE)
    assert found.phase == "step"


def test_a_save_is_interrupted_only_if_the_run_goes_on_beside_it() -> None:
    pace = replace(PACE, save=0.9)
    assert aim(interruption(phase="save"), 41, 0, pace).phase == "step"  # step 50 is 8 steps of 0.1 s before the end
    assert aim(interruption(phase="save"), 41, 0, replace(pace, save=0.8)).phase == "save"


def test_an_undisturbed_run_has_one_chain(tmp_path: Path) -> None:
    assert "has 0 chains" in str(compare_runs(tmp_path / "a", tmp_path / "b", "train"))
    (tmp_path / "b" / "chain").mkdir(parents=True)
    for generation in (1, 2):
        ChainLog(tmp_path / "b" / "chain" / f"train.{generation}.jsonl").step(1, 0, [0.0])
    assert "has 2 chains" in str(compare_runs(tmp_path / "a", tmp_path / "b", "train"))


@pytest.mark.parametrize("which", ["last", "best", "last-ema"])
def test_weights_that_differ_are_noticed_and_an_average_that_one_run_alone_has(tmp_path: Path, which: str) -> None:
    for run in ("a", "b"):
        log = ChainLog(tmp_path / run / "chain" / "train.1.jsonl")
        log.step(1, 0, [0.0])
        log.state(1, {"model": "0"})
        for name in ("last", "best"):
            save_file({"x": np.zeros(1)}, made(tmp_path / run / "weights" / "train") / f"{name}.safetensors")
    assert compare_runs(tmp_path / "a", tmp_path / "b", "train") is None
    save_file({"x": np.ones(1)}, tmp_path / "a" / "weights" / "train" / f"{which}.safetensors")
    problem = "is missing" if which == "last-ema" else "differs"
    assert problem in str(compare_runs(tmp_path / "a", tmp_path / "b", "train"))
    save_file({"x": np.zeros(1)}, tmp_path / "b" / "weights" / "train" / f"{which}.safetensors")
    assert "tensor x of" in str(compare_runs(tmp_path / "a", tmp_path / "b", "train"))


def made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_saves_and_validations_fall_into_every_drill() -> None:
    for steps in (1, 2, 7, 60, 400):
        for count in (1, 5, 200):
            every, validate_every = intervals(DrillConfig(steps=steps, interruptions=count))
            assert 1 <= every <= max(steps // 6, 1)
            assert validate_every == 2 * every


# --- processes


LISTING = """\
    1     0     1 Ss   /sbin/init
  100    50   100 S    python launch.py --cluster local
  101   100   101 S    python -m jobs.controller /runs/jobs/train.1
  102   101   101 Sl   python -u -m submitit.core._submit /runs/jobs
  103   101   101 Rl   python -u -m submitit.core._submit /runs/jobs
  104   102   101 S    python -u -m submitit.core._submit /runs/jobs
  105   103   101 Z    [python] <defunct>
  106     1   101 S    python -c from multiprocessing.resource_tracker import main
  107     1   107 S    python launch.py of somebody else
  108    50    50 S    ps
"""


def test_the_processes_of_a_command_are_found() -> None:
    family = Family(100)
    members = family.members(parse_listing(LISTING))
    assert [process.pid for process in members] == [100, 101, 102, 103, 104, 106]
    assert [process.pid for process in family.ranks(members)] == [102, 103]


def test_orphans_are_known_by_their_group() -> None:
    family = Family(100)
    family.members(parse_listing(LISTING))
    orphans = parse_listing("102 1 101 S rank\n107 1 107 S other\n109 1 50 S other\n")
    assert [process.pid for process in family.members(orphans)] == [102]
    assert Family(100).members(orphans) == []


def test_a_command_that_trains_itself_is_the_only_rank() -> None:
    family = Family(100)
    members = parse_listing("100 1 100 S python launch.py\n101 100 100 S python launch.py\n")
    assert [process.pid for process in family.ranks(members)] == [100]


@pytest.mark.parametrize(
    ("target", "rank", "pids", "who"),
    [
        (ONE, 0.2, [102], "rank 0"),
        (ONE, 0.7, [103], "rank 1"),
        (ALL, 0.0, [102, 103], ALL),
        (WORKERS, 0.0, [102, 103, 104], WORKERS),
        (LAUNCHER, 0.0, [100], LAUNCHER),
    ],
)
def test_a_signal_goes_to_those_it_is_meant_for(target: str, rank: float, pids: list[int], who: str) -> None:
    family = Family(100)
    members = family.members(parse_listing(LISTING))
    chosen, name = choose(interruption("TERM", target, rank=rank), family, members, 2)
    assert ([process.pid for process in chosen], name) == (pids, who)


def test_before_the_ranks_are_there_the_launcher_is_hit() -> None:
    family = Family(100)
    members = family.members([Process(100, 50, 100, "python launch.py")])
    assert choose(interruption("TERM", ALL), family, members, 2) == (members, LAUNCHER)


def test_a_whole_family_is_stopped_before_any_of_it_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[int, list[int]]] = []

    def record(pids: Iterable[int], number: int) -> None:
        sent.append((number, sorted(pids)))
        send(pids, number)

    monkeypatch.setattr("jobs.processes.send", record)
    code = "import subprocess, sys, time\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    code += "print('there', flush=True)\ntime.sleep(600)"
    root = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert root.stdout is not None
    root.stdout.readline()
    family = Family(root.pid)
    pids = {process.pid for process in family.look()}
    assert len(pids) == 2
    family.kill()
    assert root.wait() == -signal.SIGKILL
    assert sent == [(signal.SIGSTOP, sorted(pids)), (signal.SIGKILL, sorted(pids))]
    root.stdout.close()
    while pids & {process.pid for process in list_processes()}:
        time.sleep(0.01)


# --- accounts


def ran(start: int | None, reached: int | None, hit: str = "rank 0", name: str = "KILL", **more: Any) -> Incarnation:
    found = Incarnation(interruption(name) if hit else None, 0.0, start=start, reached=reached, hit=hit, **more)
    return replace(found, code=75 if found.code is None else found.code, when=found.when or "after step 1")


def test_steps_that_are_done_again_are_lost() -> None:
    rows = account([ran(0, 17), ran(10, 25, name="TERM"), ran(25, 30), ran(30, 60, hit="")])
    assert [row.lost for row in rows] == [7, 0, 0]


def test_an_interruption_of_the_start_up_has_not_lost_what_was_lost_before_it() -> None:
    rows = account([ran(0, 17), ran(None, None, name="TERM"), ran(10, 25), ran(25, 60, hit="")])
    assert [row.lost for row in rows] == [7, 0, 0]


def test_survivors_may_have_saved_a_step_that_the_killed_rank_has_not_written() -> None:
    rows = account([ran(0, 17), ran(18, 25), ran(20, 60, hit="")])
    assert [row.lost for row in rows] == [0, 5]


def test_the_time_to_resume_is_that_of_the_next_command() -> None:
    rows = account([ran(0, 17, resumed=9.0), ran(None, None), ran(10, 60, hit="", resumed=3.0)])
    assert [row.resumed for row in rows] == [None, 3.0]


def test_broken_promises_are_said() -> None:
    good = [ran(0, 17), ran(17, 25, name="TERM"), ran(25, 60, hit="", code=0)]
    assert problems(good, account(good), 2) == []
    assert "only 2 of 3 interruptions" in problems(good, account(good), 3)[0]
    lost = [ran(0, 17, name="TERM"), ran(15, 60, hit="", code=0)]
    assert "lost 2 steps although it was announced by TERM" in problems(lost, account(lost), 1)[0]
    crashed = [ran(0, 17, name="USR2", code=1), ran(17, 60, hit="", code=0)]
    assert "exit code 1, not 75" in problems(crashed, account(crashed), 1)[0]
    early = [ran(None, None, name="USR2", code=-12, when="start-up"), ran(0, 60, hit="", code=0)]
    assert problems(early, account(early), 1) == []
    left = [ran(0, 17, left_behind=["python rank"]), ran(17, 60, hit="", code=0)]
    assert "killed: python rank" in problems(left, account(left), 1)[0]


def verdict(**values: Any) -> Verdict:
    row = Row("KILL", "rank 1", "after step 17", 75, False, 7, 3.25)
    warned = replace(row, signal="TERM", announced=True, lost=2, resumed=None, hit=ALL)
    given: dict[str, Any] = {"difference": None, "problems": [], **values}
    return Verdict(rows=[row, warned], saves=6, stall=0.004, save=0.05, goodput=0.5, **given)


def printed(found: Verdict) -> str:
    console = Console(width=120, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(found.as_table())
    return console.export_text()


def test_the_table_shows_every_interruption_and_the_totals() -> None:
    text = printed(verdict())
    for part in ("rank 1", "after step 17", "3.2", "9, of them 2 after a warning", "4.0 ms", "50.0%"):
        assert part in text
    assert "bit-identical     yes" in text
    assert "by its events" not in text
    spent = account_of([{"time": 0, "kind": "start", "stage": "a", "step": 0},
                        {"time": 4, "kind": "step", "stage": "a", "step": 1},
                        {"time": 10, "kind": "step", "stage": "a", "step": 3}])  # fmt: skip
    text = printed(verdict(account=spent))
    for part in ("by its events     60.0%", "10.0 s", "training 6.0 s (60.0%); start-up 4.0 s (40.0%)"):
        assert part in text
    assert "bit-identical     NO: step 3" in printed(verdict(difference="step 3, samples"))
    assert "problem" in printed(verdict(problems=["a process was left"]))


def test_the_json_has_the_same_figures() -> None:
    found = verdict(difference="step 3").as_json()
    assert found["identical"] is False
    assert (found["interruptions"], found["steps_lost"], found["announced_steps_lost"]) == (2, 9, 2)
    assert (found["seconds_to_resume"], found["stall_seconds"], found["goodput"]) == (3.25, 0.004, 0.5)
    assert found["difference"] == "step 3"
    assert found["account"] is None
    json.dumps(found, allow_nan=False)


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    tensors = {"a": np.arange(4, dtype=np.float32), "b": np.array([0.0, np.nan])}
    save_file(tensors, here, metadata={"run": "here"})
    save_file(tensors, there, metadata={"run": "elsewhere, with another length"})
    assert compare_tensors(here, there) is None
    assert read_tensors(here)["a"] == ("F32", [4], tensors["a"].tobytes())
    save_file({**tensors, "b": np.array([-0.0, np.nan])}, there)
    assert "tensor b of" in str(compare_tensors(here, there))
    save_file({**tensors, "a": tensors["a"].reshape(2, 2)}, there)
    assert "tensor a of" in str(compare_tensors(here, there))
    save_file({"a": tensors["a"]}, there)
    assert "tensor b of" in str(compare_tensors(here, there))
    there.unlink()
    assert "there.safetensors is missing" in str(compare_tensors(here, there))


def test_a_tail_reads_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"kind": "old"}\n')
    tail = Tail(path)
    assert tail.read() == []
    with path.open("a") as file:
        file.write('{"kind": "a"}\n{"kin')
        file.flush()
        assert tail.read() == [{"kind": "a"}]
        file.write('d": "b"}\ntorn{\n')
        file.flush()
        assert tail.read() == [{"kind": "b"}]


# --- the folder and the command


def test_the_folder_of_an_earlier_drill_is_replaced(tmp_path: Path) -> None:
    config = DrillConfig(out=str(tmp_path / "drill"))
    folder = claim(config)
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "recipe.yaml").write_text("old")
    assert [path.name for path in claim(config).iterdir()] == [MARKER]


def test_any_other_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not that of an earlier drill"):
        claim(DrillConfig(out=str(tmp_path)))
    with pytest.raises(UserError, match="is not that of an earlier drill"):
        claim(DrillConfig(out=str(tmp_path / "thesis.tex")))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_nothing_that_is_not_of_a_drill_is_ever_deleted(tmp_path: Path) -> None:
    folder = claim(DrillConfig(out=str(tmp_path / "drill")))
    (folder / "result.json").write_text("{}")
    claim(DrillConfig(out=str(folder), json=str(folder / "result.json")))
    assert (folder / "result.json").exists()
    (folder / "runs").mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which is not of a drill"):
        claim(DrillConfig(out=str(folder), json=str(folder / "result.json")))
    assert (folder / "runs").exists()
    (folder / "thesis.tex").unlink()
    (folder / MARKER).write_text("{}")
    with pytest.raises(UserError, match="is not that of an earlier drill"):
        claim(DrillConfig(out=str(folder), json=str(folder / "result.json")))


def test_a_store_inside_the_folder_is_not_deleted(tmp_path: Path) -> None:
    folder = claim(DrillConfig(out=str(tmp_path / "drill")))
    (folder / "store").mkdir()
    with pytest.raises(UserError, match="give another --out"):
        claim(DrillConfig(out=str(folder), store=str(folder / "store")))
    assert (folder / "store").exists()


@pytest.mark.parametrize(("processes", "executor"), [(1, "debug"), (3, "local")])
def test_the_command_is_one_that_the_command_line_understands(tmp_path: Path, processes: int, executor: str) -> None:
    config = DrillConfig(processes=processes, workers=3, steps=60, seed=7, batch=12, micro_batch=4)
    write_recipe(recipe := tmp_path / "recipe.yaml", config, 15)
    request = parse(command("x", tmp_path, recipe, tmp_path / "store", config))
    assert (request.cluster.executor, request.cluster.processes) == (executor, processes)
    assert (request.config.run, request.config.workers, request.config.seed) == ("x", 3, 7)
    assert (request.config.checkpoint.every, request.config.checkpoint.interval) == ("10 steps", "never")
    stage = request.config.stages["train"]
    assert (stage.length, stage.batch, stage.micro_batch) == ("60 steps", 12, 4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"processes": 3, "batch": 4, "micro_batch": 2}, "processes"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
        ({"store": "absent"}, "no store at .*absent"),
        ({"json": "/dev/null/result.json"}, "choose another folder with --json"),
    ],
)
def test_values_that_make_no_run_are_refused_before_anything_is_written(
    tmp_path: Path, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        drill(DrillConfig(**given, out=str(tmp_path / "drill")))
    assert not (tmp_path / "drill").exists()


def test_an_end_is_described_in_a_line() -> None:
    assert describe(ran(20, 27, code=75)) == "continued from step 20, KILL to rank 0 after step 1: exit code 75"
    assert describe(ran(27, 60, hit="", code=0)) == "continued from step 27, came to its end at step 60"
    early = ran(None, None, hit=LAUNCHER, name="USR2", when="start-up", code=-12)
    assert describe(early) == "USR2 to the launcher in start-up: exit code -12"


# --- drills of a fake that adds numbers up

FAKE = """
import json, os, signal, sys, time
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from agl_core.durable.chain import START, ChainLog
from agl_core.files import write_json
from jobs.history import History
from jobs.progress import reached
from jobs.runs import Run

how, words = sys.argv[1], sys.argv[2:]
value = dict(zip(words, words[1:]))
run = Path(value["--runs"]) / value["--run"]
asked = []
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, lambda *_: asked.append(True))
if how == "mistake":
    print("error: there is no such thing", file=sys.stderr)
    sys.exit(2)
state = {"step": 0, "link": START, "sum": 0.0, "generation": 0}
if (run / "state.json").exists():
    state = json.loads((run / "state.json").read_text())
    if how == "forgets":
        state["sum"] += 0.125
    if how == "crashes":
        raise RuntimeError("cannot continue")
run.mkdir(parents=True, exist_ok=True)
generation = int((run / "generation").read_text()) + 1 if (run / "generation").exists() else 1
(run / "generation").write_text(str(generation))
before = reached(Run(run), "train", "stage")
history = History(run / "jobs" / "history.jsonl", run / "events.jsonl")
history.begin("train", f"pid {os.getpid()}", step=state["step"], reached=before)
log = ChainLog(run / "chain" / f"train.{generation}.jsonl", state["link"])

def event(kind, **values):
    with open(run / "events.jsonl", "a") as file:
        file.write(json.dumps({"time": time.time(), "kind": kind, "stage": "train",
                               "generation": generation, **values}) + "\\n")

def save():
    state["link"] = log.link
    write_json(run / "state.json", state)
    log.state(state["step"], {"model": str(state["sum"]), "optimizer": "0"})
    event("checkpoint", step=state["step"], stall=0.001, seconds=0.002)

event("start", step=state["step"])
while state["step"] < 30:
    if asked and how != "deaf":
        save()
        event("interruption", step=state["step"], signal="TERM", saved=state["step"])
        sys.exit(75)
    time.sleep(0.01)
    state["step"] += 1
    state["sum"] += 1 / state["step"]
    log.step(state["step"], state["step"] * 7, [state["sum"]] * 4)
    if state["step"] % 3 == 0:
        event("step", step=state["step"])
    if state["step"] % 5 == 0:
        save()
    if state["step"] % 10 == 0:
        event("validation", step=state["step"], seconds=0.001)
log.state(30, {"model": str(state["sum"]), "optimizer": "0"})
if how == "weights" and generation > 1:
    state["sum"] += 1e-12
for which in ("last", "best"):
    (run / "weights" / "train").mkdir(parents=True, exist_ok=True)
    save_file({"sum": np.array([state["sum"]])}, run / "weights" / "train" / f"{which}.safetensors")
event("finish", step=30)
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "fake.py"
    path.write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    return path


def rehearse(fake: Path, store: Path, how: str, **values: Any) -> dict[str, Any]:
    given = {"processes": 1, "steps": 30, "interruptions": 3, "workers": 0, "seed": 2, **values}
    out = fake.parent / "drill"
    config = DrillConfig(store=str(store), out=str(out), json=str(fake.parent / "result.json"), **given)
    (fake.parent / "result.json").unlink(missing_ok=True)
    drill(config, (sys.executable, str(fake), how))
    found: dict[str, Any] = json.loads((fake.parent / "result.json").read_text())
    return found


@pytest.mark.parametrize("name", ["mixed", "KILL", "USR2"])
def test_a_drill_of_a_run_that_resumes_exactly_succeeds(
    fake: Path, tiny_store: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = rehearse(fake, tiny_store, "good", signal=name)
    assert found["identical"] is True
    assert found["interruptions"] == 3
    assert found["problems"] == []
    assert found["announced_steps_lost"] == 0
    assert found["seconds_to_resume"] > 0
    assert 0 < found["goodput"] < 1
    assert found["stall_seconds"] == 0.001
    account = found["account"]
    assert round(1000 * sum(account["seconds"].values())) == round(1000 * account["wall"])
    assert (account["steps"], account["steps_lost"]) == (30, found["steps_lost"])
    out = capsys.readouterr()
    assert "bit-identical     yes" in out.out
    assert out.err.count("exit code") == 3
    chains = list((fake.parent / "drill" / "runs" / "interrupted" / "chain").iterdir())
    assert len(chains) > 1


@pytest.mark.parametrize(
    ("how", "what"),
    [("forgets", "losses: expected"), ("weights", "tensor sum of")],
)
def test_a_difference_fails_the_drill(fake: Path, tiny_store: Path, how: str, what: str) -> None:
    with pytest.raises(JobError, match=what):
        rehearse(fake, tiny_store, how, signal="TERM")
    found = json.loads((fake.parent / "result.json").read_text())
    assert found["identical"] is False
    assert what in found["difference"]


def test_a_run_that_cannot_continue_ends_the_drill_with_its_last_lines(fake: Path, tiny_store: Path) -> None:
    with pytest.raises(JobError, match=r"exit code 1 though(.|\n)*RuntimeError: cannot continue"):
        rehearse(fake, tiny_store, "crashes", signal="TERM")


def test_a_mistake_that_the_run_reports_is_the_users(fake: Path, tiny_store: Path) -> None:
    with pytest.raises(UserError, match=r"^there is no such thing$"):
        rehearse(fake, tiny_store, "mistake")


def test_a_run_that_is_finished_before_its_interruptions_is_said(fake: Path, tiny_store: Path) -> None:
    with pytest.raises(JobError, match="only 1 of 3 interruptions happened"):
        rehearse(fake, tiny_store, "deaf", signal="USR2")
    assert json.loads((fake.parent / "result.json").read_text())["identical"] is True


def test_an_interrupted_drill_leaves_no_process_behind(
    fake: Path, tiny_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.rehearsal.strike", interrupt)
    with pytest.raises(KeyboardInterrupt):
        rehearse(fake, tiny_store, "good", signal="KILL")
    assert not [process for process in list_processes() if str(fake) in process.command]


def test_what_is_left_after_an_end_is_killed_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.rehearsal.PATIENCE", 0.2)
    code = "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)  # left'])"
    (tmp_path / "run").mkdir()
    found = Rehearsal([sys.executable, "-c", code], tmp_path / "run", "train", 1, tmp_path / "log").run()
    assert found.code == 0
    assert len(found.left_behind) == 1
    assert "# left" in found.left_behind[0]
