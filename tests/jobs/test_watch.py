"""The verb watch, on folders of runs."""

import fcntl
import json
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import StageConfig, TrainConfig, WatchConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.reporting.live import snapshot as states
from jobs import watch as watch_module
from jobs.runs import Run
from jobs.settings import to_yaml
from jobs.snapshot import ROOT
from jobs.watch import Follower, watch
from launch import main
from tests.reporting.histories import Story
from tests.reporting.terminal import Session, Terminal


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "runs" / "first")
    run.path.mkdir(parents=True)
    stages = {"train": StageConfig(length="1000 steps"), "fine": StageConfig(length="500 steps", start="train/last")}
    run.config_file.write_text(to_yaml(TrainConfig(run="first", stages=stages, until="train")))
    return run


@pytest.fixture(autouse=True)
def _a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("PATH", "/nowhere")  # no Slurm is needed


def begun(id: str = "17", host: str = "node1") -> Story:
    story = Story(begin=watch_module.time.time() - 1000.0)
    story.submit(id)
    story.launch(id, host=host)
    story.start(30.0)
    story.train(99)
    return story


def asked(run: Run, once: bool = True) -> WatchConfig:
    return WatchConfig(run="first", runs=str(run.path.parent), once=once, every=1.0)


def contents(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in sorted(path.rglob("*")) if each.is_file()}


def test_once_shows_a_run_and_writes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    story = begun()
    story.write(run.events)
    before = contents(run.path)
    watch(asked(run))
    assert contents(run.path) == before
    shown = capsys.readouterr().out
    assert "stage    1 of 2: train" in shown
    assert "step 100 of 1000" in shown
    assert "has given no sign of life" in shown  # a node of which nothing has come for a quarter of an hour
    assert "python launch.py status first --runs" in shown


def test_only_what_is_new_is_read_and_a_stage_follows_on_another(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    story = begun()
    story.write(run.events)
    follower = Follower(run)
    assert follower.look(story.now).step == 100
    written = run.events.stat().st_size
    story.train(900)
    story.finish()
    story.leave("done", deed="done")
    story.turn_to("fine", 500)
    story.write(run.events)
    with run.events.open("r+b") as file:  # what was read once may be anything by now
        file.write(b"x" * (written - 1))
    assert (follower.look(story.now).job, follower.look(story.now).state) == ("fine", states.WAITS)
    story.launch("18")
    story.start(30.0)
    with run.events.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in story.events[-4:])
    found = follower.look(story.now)
    assert (found.job, found.stage_number, found.state) == ("fine", 2, states.TRAINS)


def test_the_lease_is_a_sign_of_life(run: Run) -> None:
    story = begun()
    story.write(run.events)
    follower = Follower(run)
    assert follower.look(story.now + 3600).state == states.SILENT
    lease = {"generation": 1, "token": "x", "holder": "", "host": "node1", "pid": 5, "step": 1, "taken": 0.0,
             "renewed": story.now + 3590, "released": None}  # fmt: skip
    write_json(run.path / "lease.json", lease)
    assert follower.look(story.now + 3600).state == states.TRAINS


def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(run: Run) -> None:
    story = begun(f"pid {2**22 + 5}", socket.gethostname())
    story.write(run.events)
    found = Follower(run).look(story.now)
    assert found.state == states.INTERRUPTED
    assert found.told.startswith("was killed without a warning")
    lives = begun(f"pid {os.getpid()}", socket.gethostname())
    lives.write(run.events)
    assert Follower(run).look(lives.now).state == states.TRAINS


def test_a_finished_run_is_shown_and_left(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    story = begun()
    story.train(900)
    story.finish()
    story.turn_to("fine", 500)
    story.launch("18")
    story.start(30.0)
    story.train(499)
    story.finish()
    story.write(run.events)
    write_json(run.score_file, {"score": 0.625})
    assert main(["watch", "first", "--runs", str(run.path.parent)]) == 0
    shown = capsys.readouterr().out
    assert "first is finished" in shown
    assert "result   score of the predictions 0.6250" in shown


def test_a_failed_run_is_told_of_with_exit_code_1(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    story = begun()
    story.leave("crashed", "", "give up", "rank 1 was killed; 4 crashes at the same step")
    story.write(run.events)
    assert main(["watch", "first", "--runs", str(run.path.parent)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: run first failed at ")
    assert output.err.endswith("rank 1 was killed; 4 crashes at the same step\n")
    assert "python launch.py resume first" in output.out


def test_ctrl_c_ends_the_view_quietly(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun().write(run.events)

    def press(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watch_module.time, "sleep", press)
    assert main(["watch", "first", "--runs", str(run.path.parent)]) == 0
    out = capsys.readouterr().out
    assert out.endswith(
        f"this ends the view, not the run; to look again: python launch.py watch first --runs {run.path.parent}\n"
    )


def test_into_a_pipe_a_line_comes_when_something_has_changed(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    story = begun()
    story.write(run.events)
    looks = iter(["same", "left", "stop"])

    def sleep(seconds: float) -> None:
        match next(looks):
            case "left":
                story.leave("interrupted", "preempted", "requeue")
                story.write(run.events)
            case "stop":
                raise KeyboardInterrupt

    monkeypatch.setattr(watch_module.time, "sleep", sleep)
    watch(asked(run, once=False))
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("first waits in the queue")]
    assert len(told) == 1
    assert "it was preempted: another job needed its place" in told[0]
    assert not any("\x1b" in line for line in lines)


def test_a_folder_that_is_away_for_a_moment_is_borne(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun().write(run.events)
    outcomes: list[Any] = [OSError(116, "Stale file handle"), None]

    def read(path: Path) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    monkeypatch.setattr(watch_module, "read_lease", read)
    monkeypatch.setattr(watch_module.time, "sleep", lambda seconds: None)
    watch(asked(run))
    output = capsys.readouterr()
    assert "cannot be read just now (Stale file handle)" in output.err
    assert "step 100 of 1000" in output.out


def test_a_run_that_is_gone_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def remove(seconds: float) -> None:
        run.config_file.unlink()

    monkeypatch.setattr(watch_module.time, "sleep", remove)
    with pytest.raises(UserError, match="is not there any more"):
        watch(asked(run, once=False))


def test_a_run_of_before_events_told_of_jobs_is_followed_by_its_history(run: Run) -> None:
    story = begun()
    story.leave("interrupted", "preempted", "requeue")
    events = [event for event in story.events if "generation" in event]
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    run.jobs.mkdir()
    entry = {"job": "train", "id": "17", "restart": 0, "attempt": 0, "step": 0}
    begin = {"time": events[0]["time"] - 29, "kind": "begin", **entry, "host": "node1", "pid": 1}
    end = {"time": story.now, "kind": "end", **entry, "end": "interrupted", "why": "preempted", "deed": "requeue"}
    run.history.write_text(json.dumps(begin) + "\n" + json.dumps(end) + "\n")
    found = Follower(run).look(story.now + 60)
    assert (found.state, found.step) == (states.WAITS, 100)


def test_a_damaged_configuration_hides_only_what_it_says(run: Run) -> None:
    story = begun()
    story.write(run.events)
    run.config_file.write_text("stages: [")
    found = Follower(run).look(story.now)
    assert (found.job, found.step, found.steps) == ("train", 100, 1000)


def test_an_ensemble_and_a_prediction_show_what_is_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, file, job in (("both", "ensemble.yaml", "ensemble"), ("late", "predict.yaml", "predict")):
        run = Run(tmp_path / "runs" / name)
        run.path.mkdir(parents=True)
        (run.path / file).write_text("{}\n")
        watch(WatchConfig(run=name, runs=str(tmp_path / "runs"), once=True))
        assert f"{name} nothing was started yet" in capsys.readouterr().out
        story = Story(job)
        story.launch()
        story.write(run.events)
        watch(WatchConfig(run=name, runs=str(tmp_path / "runs"), once=True))
        shown = capsys.readouterr().out
        assert f"{name} is at work since" in shown
        assert f"job  {job}, on node1, job 17" in shown


def test_an_unknown_run_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="no run 'frist'"):
        watch(WatchConfig(run="frist", runs=str(run.path.parent)))


def test_on_a_terminal_the_view_changes_in_place_and_ctrl_c_leaves_it_sane(run: Run) -> None:
    story = begun()
    story.write(run.events)
    session = Session(ROOT / "launch.py", "watch", run.path, "--every", "0.1", columns=60)
    session.until(b"step 100 of 1000")
    story.leave("interrupted", "preempted", "requeue")
    story.write(run.events)
    session.until(b"waits in the queue")
    os.write(session.master, b"\x03")
    assert session.finish() == 0
    screen = Terminal(60).feed(session.output.decode())
    assert screen.odd == []  # the cursor was never hidden
    assert screen.text.count("learning rate") == 1
    assert "first waits in the queue since" in screen.text
    assert "to look again: python" in screen.text


def finished_stages(run: Run, ago: float) -> Story:
    """Both stages are done; the `evaluate` that is to come has left nothing."""
    values = run.config_file.read_text().replace("until: train", "until: report")
    run.config_file.write_text(values)
    story = Story(begin=watch_module.time.time() - ago)
    for job in ("train", "fine"):
        story.turn_to(job, 20)
        story.launch(f"pid {2**22 + 5}", host=socket.gethostname())
        story.start(5.0)
        story.train(19)
        story.finish()
        story.leave("done", deed="done")
    story.write(run.events)
    return story


def test_what_nobody_works_on_is_not_said_to_wait(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    finished_stages(run, 5 * 86_400.0)
    watch(asked(run))
    shown = capsys.readouterr().out
    assert "first is not being worked on since" in shown
    assert "was not started" in shown
    assert "waits" not in shown
    assert "go on  python launch.py resume first --runs" in " ".join(shown.split()).replace("go on ", "go on  ")


@pytest.mark.parametrize("sign", ["just ended", "lock", "lease", "submitted"])
def test_what_somebody_works_on_waits_for_its_turn(run: Run, sign: str) -> None:
    story = finished_stages(run, 70.0 if sign == "just ended" else 86_400.0)
    now = watch_module.time.time()
    if sign == "lease":
        lease = {"generation": 1, "token": "x", "holder": "", "host": "node1", "pid": 5, "step": 1, "taken": 0.0,
                 "renewed": now - 9, "released": None}  # fmt: skip
        write_json(run.path / "lease.json", lease)
    if sign == "submitted":
        run.submitted.parent.mkdir(exist_ok=True)
        write_json(run.submitted, dict.fromkeys(("predict", "evaluate", "report"), "18"))
    with ExitStack() as stack:
        if sign == "lock":
            holder = stack.enter_context(run.lock.open("w"))
            holder.write(f"pid {os.getpid()} on host {socket.gethostname()}\n")
            holder.flush()
            fcntl.flock(holder, fcntl.LOCK_EX)
        assert Follower(run).look(max(now, story.now)).state == states.WAITS
