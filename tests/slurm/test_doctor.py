"""The doctor at a real Slurm: silent where all is well, right about faults that are planted, and its probe."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.jobs.doctor.world import tables
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.tiny import BASE, CLUSTER, RECIPES, write_yaml

GRACE = 30  # seconds of a run's own, which the site gives too
HEALTHY = MiniSettings(gpus=2, kill_wait=5, grace=GRACE)
SITE = {**CLUSTER, "processes": 2, "sbatch": {}}
Finding = dict[str, Any]
PATIENT = """
import sys
sys.path.insert(0, sys.argv[1])
from jobs.doctor import facts, place
facts.QUICK = place.LOCK_PATIENCE = 60.0
facts.SLURM = facts.TRIAL = {True: 60.0, False: 60.0}
import launch
sys.exit(launch.main(sys.argv[2:]))
"""
"""The command line, but what is slow on a busy machine is waited for: it would be a finding."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe and a data set that has no store yet."""
    folder = tmp_path_factory.mktemp("doctor")
    write_yaml(folder / "one.yaml", {**BASE, "checkpoint": {"grace": GRACE}, "stages": RECIPES["one"]})
    tables(folder / "data", 24)
    return folder


@pytest.fixture(scope="module")
def slurm(place: Path) -> Iterator[MiniSlurm]:
    """A healthy cluster with GPUs, which are nothing."""
    with MiniSlurm(place / "slurm", HEALTHY) as slurm:
        yield slurm


def give(
    place: Path, slurm: MiniSlurm, *words: str, code: int | None = None, patient: bool = True, **values: object
) -> "subprocess.CompletedProcess[str]":
    write_yaml(place / "site.yaml", {**SITE, **values})
    start = ["-c", PATIENT, str(ROOT)] if patient else [str(ROOT / "launch.py")]
    done = subprocess.run(
        [sys.executable, *start, *words, "--cluster", "site.yaml", "--recipe", "one.yaml"], cwd=place,
        env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done


def findings(place: Path, slurm: MiniSlurm, *words: str, **values: Any) -> list[Finding]:
    """What the quick form finds that is not good."""
    done = give(place, slurm, "doctor", "--data", "data", "--json", *(words or ("--quick",)), **values)
    found: list[Finding] = json.loads(done.stdout)["findings"]
    bad = [each for each in found if each["level"] != "good"]
    assert done.returncode == any(each["level"] == "failure" for each in bad), done.stderr
    return bad


def told(found: list[Finding]) -> list[tuple[str, str]]:
    return [(each["level"], each["about"]) for each in found]


def test_a_healthy_site_is_silent(place: Path, slurm: MiniSlurm) -> None:
    done = give(place, slurm, "doctor", "--data", "data", code=0)
    lines = [line.split()[:3] for line in done.stdout.splitlines()]
    assert {words[1] for words in lines[:-1]} == {"good"}, done.stdout
    assert len(lines) > 15
    assert lines[-1][1] == "good,"
    assert not (place / "runs").exists()


FAULTS: list[tuple[str, dict[str, object]]] = [
    ("failure partition", {"partition": "preemptable"}),
    ("warning preemption", {"partition": "cancelling"}),
    ("failure constraint", {"constraint": "h100"}),
    ("failure cores", {"cpus_per_process": 3}),
    ("failure memory", {"memory_gb": 9}),
    ("failure nodes", {"nodes": 3}),
    ("failure gpus", {"gpus_per_node": 3, "processes": 3}),
    ("failure gpu type", {"gpus_per_node": 2, "sbatch": {"gres": "gpu:a100:2"}}),
    ("failure sbatch", {"sbatch": {"reservation": "none-such"}}),
    ("warning offline", {"environment": {"HF_HUB_OFFLINE": "0"}}),
]
# Of the nodes with too little of something sbatch says that they are not available, which is one more line; there is
# no torch for GPUs where these tests run.
FURTHER = {("failure", "sbatch"), ("failure", "torch"), ("warning", "warning time")}


@pytest.mark.parametrize(("fault", "values"), FAULTS, ids=[fault for fault, _ in FAULTS])
def test_a_fault_of_the_configuration_is_found(
    fault: str, values: dict[str, object], place: Path, slurm: MiniSlurm
) -> None:
    found = told(findings(place, slurm, **values))
    level, _, about = fault.partition(" ")
    assert (level, about) == found[0], found
    assert set(found[1:]) <= FURTHER


def test_faults_of_the_site_are_found_and_gone_when_they_are_mended(place: Path, slurm: MiniSlurm) -> None:
    def update(what: str, **values: object) -> None:
        slurm.run("scontrol", "update", what, *(f"{name}={value}" for name, value in values.items()))

    update("PartitionName=preemptible", MaxTime=5)
    assert told(findings(place, slurm)) == [("failure", "time limit")]  # sbatch takes it here, and it waits for ever
    update("PartitionName=preemptible", MaxTime="INFINITE", State="INACTIVE")
    assert told(findings(place, slurm))[0] == ("failure", "partition")
    update("PartitionName=preemptible", State="UP", AllowGroups="nobody-here")
    assert told(findings(place, slurm))[0] in (("failure", "partition"), ("warning", "partition"))  # root may
    update("PartitionName=preemptible", AllowGroups="ALL", MaxNodes=1)
    assert ("failure", "limits") in told(findings(place, slurm, nodes=2))
    update("PartitionName=preemptible", MaxNodes="INFINITE")
    update("NodeName=n1", State="DRAIN", Reason="fan")
    found = findings(place, slurm, nodes=2)
    assert told(found) == [("warning", "nodes")]
    assert "n1 (idle+drain)" in found[0]["text"]
    assert "fan" in found[0]["text"]
    assert findings(place, slurm) == []  # one node is enough for it
    update("NodeName=n1", State="RESUME")
    _wait_for_nodes(slurm)
    assert findings(place, slurm, nodes=2) == []


def _wait_for_nodes(slurm: MiniSlurm) -> None:
    """A node that is resumed is taken to be silent until slurmctld has asked it."""
    until = time.monotonic() + 60
    while "NOT_RESPONDING" in slurm.run("scontrol", "show", "node", "-o") and time.monotonic() < until:
        time.sleep(0.2)


@contextmanager
def _stopped(slurm: MiniSlurm) -> Iterator[None]:
    pid = int((slurm.folder / "slurmctld.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_controller_that_hangs_is_one_warning(place: Path, slurm: MiniSlurm) -> None:
    with _stopped(slurm):
        assert told(findings(place, slurm, patient=False))[0] == ("warning", "slurm")


def test_what_would_fail_is_not_submitted_but_with_doctor_none(place: Path, slurm: MiniSlurm) -> None:
    _make_store(place / "store")
    words = ["--store", "store", "--run", "refused", "--until", "train", "--folds", "2"]
    done = give(place, slurm, *words, code=2, partition="grace0", cpus_per_process=3)
    assert "error: cores: 6 cores on each of 1 node are asked for" in done.stderr
    assert "--doctor none" in done.stderr
    assert not (place / "runs").exists()
    given = {"partition": "grace0", "sbatch": {"hold": True}}
    done = give(place, slurm, *words, "--doctor", "none", code=0, **given)
    assert "refused/train: job" in done.stdout
    slurm.run("scancel", "--user", str(os.getuid()), check=False)


def _make_store(path: Path) -> None:
    import numpy as np

    from agl_core.data.store import StoreEntry, StoreWriter

    with StoreWriter(path) as writer:
        for name in "tuvwxyz":
            for city in ("A", "B"):
                entry = StoreEntry(f"{city}_{name}", city, 0.5, 64, 64, 1.0, 0.0, None)
                writer.write(entry, np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64), np.uint16))
        writer.seal()


def test_a_short_wait_before_the_kill_and_no_way_back_are_found(place: Path) -> None:
    settings = MiniSettings(nodes=1, kill_wait=2, grace=0, job_requeue=False, cred_expire=1000)
    with MiniSlurm(place / "harsh", settings) as harsh:
        found = findings(place, harsh)
        assert told(found) == [("warning", "warning time"), ("warning", "requeue"), ("warning", "requeue delay")]
        assert told(findings(place, harsh, gpus_per_node=1, processes=1))[0] == ("failure", "gpus")


def test_the_probe_looks_from_inside_and_is_sent_the_site_s_signals(place: Path, slurm: MiniSlurm) -> None:
    before = sorted(path for path in place.iterdir() if path.name != "site.yaml")
    done = give(place, slurm, "doctor", "--data", "data", "--probe", "--json", code=0, nodes=2, processes=1)
    found = {each["about"]: each for each in json.loads(done.stdout)["findings"]}
    assert [each for each in found.values() if each["level"] != "good"] == [], done.stdout
    assert "computes (CPU, float32)" in found["torch there"]["text"]
    assert "2 ranks met" in found["meeting"]["text"]
    assert "all ranks heard USR2" in found["signal there"]["text"]
    assert "back in the queue with the same id" in found["requeue there"]["text"]
    assert "ran again after" in found["requeue there"]["text"]
    assert "TERM came after" in found["kill there"]["text"]
    assert "is requeued, as by a preemption" in done.stderr
    assert "agl-doctor" not in slurm.run("squeue", "--noheader", "--format=%j")
    assert sorted(path for path in place.iterdir() if path.name != "site.yaml") == before


def test_a_probe_that_is_not_waited_for_any_longer_is_taken_back(place: Path, slurm: MiniSlurm) -> None:
    words = ["doctor", "--data", "data", "--probe", "--probe-minutes", "0.02", "--json"]
    done = give(place, slurm, *words, code=0, sbatch={"hold": True})
    (found,) = (each for each in json.loads(done.stdout)["findings"] if each["level"] != "good")
    assert found["about"] == "probe"
    assert "did not start within 0.02 minutes (JobHeldUser)" in found["text"]
    assert "agl-doctor" not in slurm.run("squeue", "--noheader", "--format=%j")
    assert list(place.glob("runs/.doctor*")) == []
