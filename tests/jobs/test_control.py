"""The verbs cancel and resume: what they end, what they start again and as what, and when they refuse."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import CancelConfig, ResumeConfig, StageConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.files import write_json
from jobs import control
from jobs.cluster import ClusterConfig, load_cluster
from jobs.control import cancel, resume
from jobs.history import History
from jobs.many import EnsembleFile
from jobs.runs import Run
from jobs.settings import to_yaml
from tests.jobs import fake_slurm

ROOT = Path(__file__).parent.parent.parent


def make_run(folder: Path, name: str, **values: object) -> Run:
    run = Run(folder / name)
    run.jobs.mkdir(parents=True)
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    config = TrainConfig(run=name, runs="/elsewhere", recipe="demo", stages=stages, until="train")
    run.config_file.write_text(to_yaml(replace(config, **values)))  # type: ignore[arg-type]
    return run


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_slurm.install(tmp_path / "slurm", monkeypatch)


@pytest.fixture
def run(tmp_path: Path, slurm: Path) -> Run:
    """A run with two stages on a cluster whose queue is empty."""
    return make_run(tmp_path / "runs", "first")


@pytest.fixture
def ensemble(run: Run) -> Run:
    """An ensemble of the run and another one, beside them."""
    make_run(run.path.parent, "second", cluster="slurm")
    run.config_file.write_text(to_yaml(replace(run.config(), cluster="slurm")))
    both = Run(run.path.parent / "both")
    both.jobs.mkdir(parents=True)
    both.ensemble_file.write_text(to_yaml(EnsembleFile(runs=["first", "second"])))
    return both


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[TrainConfig], str, ClusterConfig]]:
    """What would be launched."""
    calls: list[tuple[list[TrainConfig], str, ClusterConfig]] = []
    monkeypatch.setattr(control, "_continue", lambda *call: calls.append(call))
    return calls


def end(run: Run) -> None:
    cancel(CancelConfig(run=run.name, runs=str(run.path.parent)))


def again(run: Run, cluster: str = "", **keys: str) -> None:
    resume(ResumeConfig(run=run.name, runs=str(run.path.parent), cluster=cluster), keys)


def submit(run: Run, **ids: str) -> None:
    write_json(run.submitted, ids)


def queue(slurm: Path, *ids: str) -> None:
    (slurm / "queue").write_text("".join(f"{id}|RUNNING|None|1:00:00|N/A||x\n" for id in ids))


def orders(slurm: Path) -> list[str]:
    return [line for line in fake_slurm.asked(slurm) if line.startswith("scancel")]


def test_the_whole_chain_is_cancelled_at_once_and_noted(run: Run, slurm: Path, capsys) -> None:
    submit(run, prepare="16", a="17", b="18")
    queue(slurm, "17", "18")
    end(run)
    assert orders(slurm) == ["scancel --state=PENDING 17 18", "scancel 17 18"]
    (entry,) = History(run.history).entries()
    assert (entry["kind"], entry["id"]) == ("cancel", "17,18")
    told = capsys.readouterr().out
    assert told.startswith("cancelled: a (job 17), b (job 18); to continue: python launch.py resume first")


def test_an_ensemble_is_cancelled_with_its_members(run: Run, ensemble: Run, slurm: Path, capsys) -> None:
    submit(run, a="17")
    submit(ensemble, ensemble="19")
    queue(slurm, "17", "19")
    end(ensemble)
    assert orders(slurm)[1] == "scancel 17 19"
    assert [each["id"] for each in History(run.history).entries()] == ["17"]
    assert [each["id"] for each in History(ensemble.history).entries()] == ["19"]
    assert "first/a (job 17), both/ensemble (job 19)" in capsys.readouterr().out


def test_a_run_that_is_not_active_is_not_cancelled(run: Run, slurm: Path) -> None:
    submit(run, a="17")
    History(run.history).begin("a", "17")
    History(run.history).end("a", "17", end="crashed", deed="give up")
    with pytest.raises(UserError) as refusal:
        end(run)
    assert "run first is not active (gave up)" in str(refusal.value)
    assert "python launch.py resume first" in str(refusal.value)
    assert orders(slurm) == []


def test_a_finished_run_needs_no_resume(run: Run, slurm: Path) -> None:
    (run.path / "stages").mkdir()
    for stage in "ab":
        write_json(run.stage_record(stage), {"finished": True})
    with pytest.raises(UserError) as refusal:
        end(run)
    assert str(refusal.value) == "run first is not active (done), so that nothing is to be cancelled"


def test_nothing_is_said_to_be_cancelled_if_slurm_does_not_do_it(run: Run, slurm: Path) -> None:
    submit(run, a="17")
    queue(slurm, "17")
    (slurm / "refusal").write_text("Access denied\n")
    with pytest.raises(UserError, match="Access denied"):
        end(run)
    assert History(run.history).entries() == []
    fake_slurm.remove(slurm)
    with pytest.raises(UserError, match="Slurm does not answer"):
        end(run)


LAUNCHER = """
import signal, sys, time
from pathlib import Path
from jobs.lock import hold
from jobs.runs import Run
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
with hold(Run(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def launcher(run: Run) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds the run as one that trains it does."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_process_that_trains_the_run_here_is_asked_to_leave(run: Run, launcher, capsys) -> None:
    end(run)
    assert launcher.wait(60) == 75
    assert f"process {launcher.pid} was asked to save and leave" in capsys.readouterr().out
    assert History(run.history).entries()[0]["id"] == f"pid {launcher.pid}"
    with pytest.raises(UserError, match="not active"):
        end(run)


def test_a_process_that_does_not_hold_the_lock_is_left_alone(run: Run, launcher, monkeypatch) -> None:
    sent: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr(control.os, "kill", lambda pid, number: sent.append(number) if number else None)
        run.lock.write_text(f"pid {os.getpid()} on host {socket.gethostname()}\n")  # of an earlier holder
        with pytest.raises(UserError, match="just being started"):
            end(run)
        run.lock.write_text("pid 1 on host elsewhere\n")
        with pytest.raises(UserError, match="process 1 on elsewhere: give the command there"):
            end(run)
    assert sent == []


def test_an_active_run_is_not_resumed(run: Run, slurm: Path, launcher, launched) -> None:
    with pytest.raises(UserError, match=r"run first is active \(waiting\)"):
        again(run)
    submit(run, a="17")
    queue(slurm, "17")
    with pytest.raises(UserError, match=r"run first is active \(running\)"):
        again(run)
    assert launched == []


def test_a_run_of_a_cluster_that_does_not_answer_can_continue_elsewhere(run: Run, slurm: Path, launched) -> None:
    submit(run, a="17")
    fake_slurm.remove(slurm)
    again(run, cluster="debug")
    assert len(launched) == 1


def test_a_run_continues_where_it_is_now_with_its_own_settings(run: Run, launched) -> None:
    run.config_file.write_text(to_yaml(replace(run.config(), seed=7, threads=3, workers=5)))
    again(run)
    ((config,), ensemble, cluster) = launched[0]
    assert config == replace(run.config(), runs=str(run.path.parent))
    assert (config.seed, config.threads, config.workers) == (7, 3, 5)
    assert ensemble == ""
    assert cluster == load_cluster("debug")


def test_a_run_of_slurm_continues_with_the_cluster_of_its_last_submission(run: Run, launched) -> None:
    run.config_file.write_text(to_yaml(replace(run.config(), cluster="slurm")))
    run.cluster_file.write_text(to_yaml(replace(load_cluster("slurm"), partition="night", account="x")))
    again(run, account="y")
    _, _, cluster = launched[0]
    assert (cluster.executor, cluster.partition, cluster.account) == ("slurm", "night", "y")


def test_a_run_that_moved_from_slurm_to_this_machine_stays_here(run: Run, launched) -> None:
    run.config_file.write_text(to_yaml(replace(run.config(), cluster="local")))
    run.cluster_file.write_text(to_yaml(load_cluster("slurm")))
    again(run, processes="1")
    assert launched[0][2] == replace(load_cluster("local"), processes=1)


def test_the_submission_is_known_even_if_the_file_of_the_cluster_is_gone(run: Run, launched) -> None:
    run.config_file.write_text(to_yaml(replace(run.config(), cluster="gone.yaml")))
    run.cluster_file.write_text(to_yaml(replace(load_cluster("slurm"), partition="night")))
    again(run)
    assert launched[0][2].partition == "night"
    run.cluster_file.unlink()
    with pytest.raises(UserError, match=r"cluster gone.yaml does not exist"):
        again(run)


def test_on_another_cluster_its_own_number_of_workers_holds_unless_one_was_chosen(run: Run, launched) -> None:
    slurm = load_cluster("slurm")
    run.cluster_file.write_text(to_yaml(slurm))
    for workers, expected in ((slurm.workers, None), (slurm.workers + 3, slurm.workers + 3)):
        run.config_file.write_text(to_yaml(replace(run.config(), cluster="slurm", workers=workers, threads=2)))
        again(run, cluster="debug")
        ((config,), _, cluster) = launched.pop()
        assert cluster.executor == "debug"
        assert (config.cluster, config.workers, config.threads) == ("debug", expected, 2)


def test_on_another_cluster_its_own_folder_for_a_copy_of_the_store_holds_unless_one_was_chosen(
    run: Run, launched
) -> None:
    slurm = replace(load_cluster("slurm"), stage_in="$TMPDIR")
    run.cluster_file.write_text(to_yaml(slurm))
    for stage_in, expected in (("$TMPDIR", ""), ("/chosen", "/chosen"), ("none", "none")):
        run.config_file.write_text(to_yaml(replace(run.config(), cluster="slurm", stage_in=stage_in)))
        again(run, cluster="debug")
        ((config,), _, _) = launched.pop()
        assert config.stage_in == expected


REFUSED = [
    ({"cluster": "slrm"}, "unknown cluster 'slrm'"),
    ({"gpus": "2"}, "unknown key 'gpus'"),
    ({"processes": "2"}, "processes is 2, but executor debug"),
    ({"cluster": "local", "processes": "50"}, "has 50 processes, but a step of stage 'a'"),
]


@pytest.mark.parametrize(("words", "answer"), REFUSED)
def test_a_cluster_that_does_not_fit_is_refused(run: Run, launched, words: dict[str, str], answer: str) -> None:
    with pytest.raises(UserError) as refusal:
        again(run, **words)
    assert answer in str(refusal.value)
    assert launched == []


def test_an_ensemble_continues_with_its_members(run: Run, ensemble: Run, launched) -> None:
    run.cluster_file.write_text(to_yaml(replace(load_cluster("slurm"), partition="night")))
    again(ensemble)
    configs, name, cluster = launched[0]
    assert [config.run for config in configs] == ["first", "second"]
    assert name == "both"
    assert cluster.partition == "night"


def test_an_ensemble_without_its_members_is_refused(run: Run, launched) -> None:
    both = Run(run.path.parent / "both")
    both.path.mkdir()
    both.ensemble_file.write_text(to_yaml(EnsembleFile(runs=["gone"])))
    with pytest.raises(UserError, match="none of its runs"):
        again(both)


def test_resume_waits_for_jobs_that_are_about_to_end(run: Run, slurm: Path, monkeypatch, capsys) -> None:
    submit(run, a="17", b="18")
    (slurm / "queue").write_text("17|COMPLETING|None|1:00|2026-11-22T18:12:00|n0|x\n")
    continued: list[list[str]] = []
    monkeypatch.setattr(control, "_continue", lambda configs, *_: continued.append([each.run for each in configs]))
    monkeypatch.setattr(control.time, "sleep", lambda _: (slurm / "queue").write_text(""))
    resume(ResumeConfig(run=run.name, runs=str(run.path.parent)), {})
    assert continued == [["first"]]
    assert capsys.readouterr().out.count("waiting until the jobs of run first have ended") == 1
    (slurm / "queue").write_text("17|COMPLETING|None|1:00|2026-11-22T18:12:00|n0|x\n")
    monkeypatch.setattr(control, "ENDING_PATIENCE", -1.0)
    with pytest.raises(UserError, match=r"run first is active \(ending\)"):
        resume(ResumeConfig(run=run.name, runs=str(run.path.parent)), {})
