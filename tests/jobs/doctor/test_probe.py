"""What is said of what the probe's job has found; the probe itself runs in tests/slurm/test_doctor.py."""

import os
import re
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agl_core.files import write_json
from jobs.doctor.asking import Answer, run
from jobs.doctor.check_probe import check_probe
from jobs.doctor.findings import GOOD
from jobs.doctor.inside import listen
from jobs.doctor.probe import probe
from jobs.doctor.probed import Probed, RankFacts, last_beat, read_ranks, signals
from jobs.snapshot import ROOT
from tests.jobs.doctor import fake_site
from tests.jobs.doctor.healthy import Change, facts, wish

RANK = RankFacts(
    version="2.9.0+cu126", cuda="12.6", architectures=("sm_70", "sm_80"), gpus=("Tesla V100",), capabilities=(70,),
    precision="float16", exchange=True, meeting=1.5, shared_lock="taken", stage_in="/tmp/7", stage_in_free=10**12,
)  # fmt: skip
RANKS = tuple(replace(RANK, rank=number, host=f"g{number // 4}") for number in range(8))
HEALTHY = Probed(
    waited=30.0, ranks=RANKS, heard=dict.fromkeys(range(8), 0.01), told=dict.fromkeys(range(8), 0.02), lived=29.8,
    pending=31.0, delay=121.0,
)  # fmt: skip


def spoilt(which: int, **values: Any) -> Probed:
    ranks = tuple(replace(rank, **values) if rank.rank == which else rank for rank in RANKS)
    return replace(HEALTHY, ranks=ranks)


CASES: list[tuple[str, str, str, Probed]] = [
    ("warning", "probe", "did not start within 15 minutes (Priority)",
     Probed(refused="the job did not start within 15 minutes (Priority)")),
    ("failure", "probe", "rank 3 has said nothing: No module named torch",
     replace(HEALTHY, missing=(3,), log="No module named torch")),
    ("failure", "torch there", "cannot be loaded on rank 1",
     spoilt(1, version="", precision="", exchange=None, torch_error="ImportError: libcudart.so")),
    ("failure", "gpus there", "rank 2 on g0 sees none", spoilt(2, gpus=(), capabilities=())),
    ("failure", "torch there", "no code for Tesla V100 (sm_70)", spoilt(0, architectures=("sm_75",))),
    ("failure", "gpus there", "rank 5 on g1 cannot compute: RuntimeError: no kernel image",
     spoilt(5, precision="", exchange=None, torch_error="RuntimeError: no kernel image")),
    ("failure", "meeting", "the 8 ranks did not meet",
     spoilt(4, exchange=None, torch_error="TimeoutError: the 8 ranks did not meet at tcp://1.2.3.4:20001 within 90 s")),
    ("failure", "files there", "rank 6 on g1 cannot write", spoilt(6, write_error="Read-only file system")),
    ("failure", "files there", "does not see what rank 0 has written", spoilt(7, unseen=(0,))),
    ("warning", "files there", "not noticed by the other ranks", spoilt(7, shared_lock="free")),
    ("failure", "store there", "cannot read it: no store at /x", spoilt(1, store_error="no store at /x")),
    ("failure", "weights there", "cannot read it: /w: No such file", spoilt(1, weights_error="/w: No such file")),
    ("warning", "stage-in", "$TMPDIR is not set there", spoilt(3, stage_in_error="$TMPDIR is not set there")),
    ("warning", "stage-in", "has 1 GB for a store of 60 GB", spoilt(3, stage_in_free=10**9)),
    ("warning", "clock there", "that of g0 differs by 40 s", spoilt(2, skew=-40.0)),
    ("failure", "signal there", "2 of 8 ranks did not hear USR2",
     replace(HEALTHY, heard=dict.fromkeys(range(6), 0.01))),
    ("warning", "signal there", "USR2 took 30 s", replace(HEALTHY, heard={**HEALTHY.heard, 3: 30.0})),
    ("failure", "requeue there", "does not take the job back (disabled)",
     replace(HEALTHY, requeue_refused="disabled", pending=None)),
    ("failure", "requeue there", "did not come back to the queue", replace(HEALTHY, pending=None)),
    ("warning", "kill there", "8 of 8 ranks were not told", replace(HEALTHY, told={})),
    ("warning", "kill there", "killed 3 s after TERM, though KillWait is 30 s", replace(HEALTHY, lived=3.0)),
    ("warning", "kill there", "lived on long after KillWait", replace(HEALTHY, lived=None)),
]  # fmt: skip


def test_a_healthy_probe_is_all_good() -> None:
    found = check_probe(wish(Change()), facts(Change()), HEALTHY)
    assert {each.level for each in found} == {GOOD}
    assert len(found) == 8


@pytest.mark.parametrize(("level", "about", "text", "probed"), CASES, ids=[case[2] for case in CASES])
def test_what_the_probe_has_found_is_told_and_nothing_else(level: str, about: str, text: str, probed: Probed) -> None:
    found = [each for each in check_probe(wish(Change()), facts(Change()), probed) if each.level != GOOD]
    assert [(each.level, each.about) for each in found] == [(level, about)], found
    assert text in found[0].text
    assert found[0].remedy


def test_the_right_to_come_back_that_a_job_gave_itself_is_told() -> None:
    found = check_probe(wish(Change()), facts(Change()), replace(HEALTHY, given=True, back=130.0))
    (told,) = (each for each in found if each.about == "requeue there")
    assert "after it had given itself the right" in told.text
    assert "ran again after 2.17 min" in told.text


def test_what_ranks_have_said_is_read_back_as_far_as_it_is_there(tmp_path: Path) -> None:
    write_json(tmp_path / "rank0.json", {"rank": 0, "host": "a", "gpus": ["x"], "from a later version": 1})
    (tmp_path / "rank1.json").write_text("{")
    assert read_ranks(tmp_path, 3) == {0: RankFacts(rank=0, host="a", gpus=("x",))}


def test_signals_are_written_down_and_do_nothing_else(tmp_path: Path) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGCONT)}
    others = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)}
    try:
        listen(tmp_path / "signals.4")
        begun = time.time()
        os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in {**before, **others}.items():
            signal.signal(number, handler)
    assert len(signals(tmp_path, 4, "SIGUSR2")) == len(signals(tmp_path, 4, "SIGTERM")) == 1
    assert signals(tmp_path, 4, "SIGUSR2")[0] >= begun - 0.01
    assert signals(tmp_path, 4, "SIGCONT") == signals(tmp_path, 5, "SIGTERM") == []
    assert last_beat(tmp_path, 4) is None
    (tmp_path / "beat.4").write_text("12.500\n")
    assert last_beat(tmp_path, 4) == 12.5


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("jobs.doctor.probe.take_snapshot", lambda folder: ROOT)
    return fake_site.install(tmp_path / "site", monkeypatch)


def answer(site: Path, name: str, body: str) -> None:
    (site / name).write_text(f"#!/bin/bash\ncd {site}\n{body}\n")


@pytest.mark.parametrize("ending", ["refused", "waits for ever", "gone", "Ctrl-C"])
def test_a_probe_that_comes_to_nothing_is_cancelled_and_leaves_nothing(
    ending: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    import sys

    answer(site, "sbatch", "echo away >&2; exit 1" if ending == "refused" else "cat $2 > script; echo 17")
    line = {"waits for ever": "17|PENDING|Priority|1:00|N/A||agl-doctor"}.get(ending, "")
    answer(site, "squeue", f"echo asked; test -e cancelled || echo '{line}'")
    answer(site, "scancel", 'echo "$*" >> cancelled')
    asked = replace(wish(Change()), runs=tmp_path / "a" / "runs", outside=dict(os.environ))
    if ending == "Ctrl-C":

        def interrupt(ids: list[str]) -> None:
            monkeypatch.undo()
            fake_path = f"{site}{os.pathsep}{os.environ['PATH']}"
            monkeypatch.setenv("PATH", fake_path)
            raise KeyboardInterrupt

        monkeypatch.setattr("jobs.scontrol.queue", interrupt)
        with pytest.raises(KeyboardInterrupt):
            probe(asked, facts(Change()), 0.0, sys.stderr)
    else:
        (found,) = probe(asked, facts(Change()), 0.0, sys.stderr)
        assert (found.level, found.about) == ("warning", "probe")
        said = {"refused": "sbatch refuses it: away", "waits for ever": "did not start within 0 minutes (Priority)",
                "gone": "ended before it could look around"}  # fmt: skip
        assert said[ending] in found.text
    assert not (tmp_path / "a").exists()
    cancelled = (site / "cancelled").read_text().split("\n") if (site / "cancelled").exists() else []
    assert ("17" in cancelled) == (ending != "refused")
    if ending != "refused":
        script = (site / "script").read_text()
        assert "#SBATCH --time=10" in script
        assert "#SBATCH --gpus-per-node=4" in script
        assert "#SBATCH --signal=USR2@60" in script
        assert "-m jobs.doctor.warden" in script


FOUND = "test -e cancelled || echo 4711"


@pytest.mark.parametrize("said", ["a greeting", "nothing", "too late", "an error of the network", "Ctrl-C"])
def test_a_job_whose_id_sbatch_does_not_say_is_found_by_its_name(
    said: str, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    says = {"a greeting": "echo '*** Welcome 1 ***'; echo '4711;mini'; echo bye", "nothing": "echo Welcome",
            "too late": "sleep 60", "an error of the network": "echo Socket timed out >&2; exit 1",
            "Ctrl-C": "sleep 60"}  # fmt: skip
    answer(site, "sbatch", f"cat $2 > script; {says[said]}")
    listed = "" if said == "a greeting" else FOUND
    answer(site, "squeue", f'echo "$*" >> listed; case "$*" in *--name=*) {listed or "true"};; esac')
    answer(site, "scancel", 'echo "$*" >> cancelled')
    monkeypatch.setattr("jobs.doctor.probe.LATER", 0.0)
    if said == "too late":
        monkeypatch.setattr("jobs.doctor.probe.SUBMITTING", 1.0)
    asked = replace(wish(Change()), runs=tmp_path / "runs", outside=dict(os.environ))
    if said == "Ctrl-C":
        monkeypatch.setattr("jobs.doctor.probe.run", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            probe(asked, facts(Change()), 0.0, sys.stderr)
    else:
        probe(asked, facts(Change()), 0.0, sys.stderr)
    assert "4711" in (site / "cancelled").read_text().split("\n")
    assert not (tmp_path / "runs").exists()
    if said in ("too late", "Ctrl-C", "an error of the network", "nothing"):
        (first, *_) = (site / "listed").read_text().splitlines()
        assert re.search(r"--name=agl-doctor-[0-9a-f]{8}( |$)", first)


class Interrupted:
    """Runs commands, but is interrupted in sbatch."""

    def __call__(self, command: list[str], *rest: Any) -> Answer | None:
        if command[0] == "sbatch":
            raise KeyboardInterrupt
        return run(command, *rest)


def test_a_probe_s_job_has_the_name_by_which_it_is_looked_for(site: Path, tmp_path: Path) -> None:
    import sys

    answer(site, "sbatch", "cat $2 > script; echo Welcome")
    answer(site, "squeue", 'echo "$*" >> listed; case "$*" in *--name=*) echo 4711;; esac')
    asked = replace(wish(Change()), runs=tmp_path / "runs", outside=dict(os.environ))
    probe(asked, facts(Change()), 0.0, sys.stderr)
    found = re.search(r"--name=(\S+)", (site / "listed").read_text())
    assert found is not None
    assert f"#SBATCH --job-name={found[1]}\n" in (site / "script").read_text()
