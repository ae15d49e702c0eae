"""Several processes on this machine: started together, ended together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.failure import JobError, JobInterruptedError
from jobs.local import FollowedLog, check_gpus, environment, fresh_folder, last_lines, run_ranks, visible_gpus
from jobs.snapshot import ROOT
from tests.jobs.ranks import Apart, Consequence, Fail, Report

TWO = ClusterConfig(executor="local", processes=2, environment={"SITE": "here"})


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead; only its parent has not noticed.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in sorted(folder.glob("rank*.pid")) if path.read_text()]


def wait_until(holds, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(holds())


def test_every_rank_knows_its_place_and_rank_0_is_heard(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "jobs" / "a.1"
    run_ranks(Report(tmp_path), folder, TWO)
    first = (tmp_path / "rank0").read_text().split()
    assert first[:3] == ["0", "2", "0"]
    assert first[4:] == ["lo", "here"]
    assert (tmp_path / "rank1").read_text() == f"1 2 1 {first[3]} lo here"
    meeting = Path(first[3].removeprefix("file://"))
    assert not meeting.is_relative_to(folder)  # on a full disk it would end the ranks
    assert not meeting.parent.exists()
    heard = capfd.readouterr()
    assert heard.out == "rank 0 was here\n"
    assert heard.err == "rank 0 whispers\n"
    assert "rank 1 was here" in next(folder.glob("*_1_log.out")).read_text()


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("defect", JobError, ["rank 1 ended with exit code 1", "the other ranks were ended", "the sky is falling"]),
        ("killed", JobError, ["rank 1 was killed by SIGKILL", "the other ranks were ended"]),
        ("mistake", UserError, ["tile x: no"]),
    ],
)
def test_one_rank_that_fails_ends_the_others_and_says_why(
    tmp_path: Path, how: str, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as failure:
        run_ranks(Fail(tmp_path, how), tmp_path / "jobs", TWO, grace=1)
    for word in words:
        assert word in str(failure.value)
    assert wait_until(lambda: not any(alive(pid) for pid in pids(tmp_path)))


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("defect", JobError, ["rank 1 ended with exit code 1", "the other ranks were ended", "the sky is falling"]),
        ("killed", JobError, ["rank 1 was killed by SIGKILL", "the other ranks were ended"]),
        ("mistake", UserError, ["tile x: no"]),
        ("mistake of both", UserError, []),
        ("warned", JobInterruptedError, ["interrupted by TERM; 3 of 9 images are predicted"]),
    ],
)
def test_where_no_rank_waits_for_another_all_are_asked_to_leave_when_one_fails(
    tmp_path: Path, how: str, kind: type[Exception], words: list[str]
) -> None:
    with pytest.raises(kind) as failure:  # long before the grace is over
        run_ranks(Apart(tmp_path, how), tmp_path / "jobs", TWO, grace=3000, apart=True)
    for word in words:
        assert word in str(failure.value)
    assert not any(alive(pid) for pid in pids(tmp_path))
    assert how != "mistake of both" or str(failure.value) == ""  # the first rank's words are shown


def test_a_mistake_is_said_even_if_a_rank_that_suffers_from_it_ends_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tile x: no"):
        run_ranks(Consequence(tmp_path), tmp_path / "jobs", TWO, grace=3)


LAUNCHER = """
import sys
from pathlib import Path
from jobs.cluster import ClusterConfig
from jobs.local import run_ranks
from tests.jobs.ranks import Sleep
folder = Path(sys.argv[1])
run_ranks(Sleep(folder), folder / "jobs", ClusterConfig(executor="local", processes=2), grace=1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_ranks_do_not_outlive_the_launcher(tmp_path: Path, number: signal.Signals) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert wait_until(lambda: len(pids(tmp_path)) == 2)
        ranks = pids(tmp_path)
        assert all(alive(pid) for pid in ranks)
        launcher.send_signal(number)
        launcher.communicate(timeout=60)
        assert launcher.returncode != 0
        assert wait_until(lambda: not any(alive(pid) for pid in ranks))
    finally:
        launcher.kill()


VISIBLE = [
    # gpus_per_node, CUDA_VISIBLE_DEVICES outside, inside
    (None, None, None),
    (None, "3,5", None),
    (0, None, ""),
    (0, "3,5", ""),
    (2, None, "0,1"),
    (1, "3,5", "3"),
]


@pytest.mark.parametrize(("gpus", "outside", "inside"), VISIBLE)
def test_gpus_that_are_visible_stay_visible_as_far_as_they_are_wanted(
    gpus: int | None, outside: str | None, inside: str | None
) -> None:
    around = {} if outside is None else {"CUDA_VISIBLE_DEVICES": outside}
    assert visible_gpus(ClusterConfig(executor="local", gpus_per_node=gpus), around) == inside
    left = environment(ClusterConfig(executor="local", gpus_per_node=gpus), around, "file:///x")
    assert left.get("CUDA_VISIBLE_DEVICES") == (outside if inside is None else inside)


def install_gpus(folder: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose driver shows so many GPUs."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + "".join(f"echo 'GPU {n}: Tesla V100 (UUID: GPU-{n})'\n" for n in range(count)))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


GPUS = [
    # installed, gpus_per_node, CUDA_VISIBLE_DEVICES outside, processes, how many there are said to be if too few
    (1, None, None, 2, "1 GPU for 2 processes: set cluster.processes=1, or cluster.gpus_per_node=0"),
    (2, None, None, 3, "2 GPUs for 3 processes: set cluster.processes=2"),
    (4, None, "3", 2, "1 GPU for 2"),
    (4, None, "0,-1,2", 2, "1 GPU for 2"),
    (1, 2, None, 2, "1 GPU for 2"),
    (2, None, None, 2, None),
    (4, 2, None, 2, None),
    (0, None, None, 2, None),
    (1, 0, None, 2, None),
    (1, None, "", 2, None),
    (1, None, "-1", 2, None),
]


@pytest.mark.parametrize(("installed", "wanted", "outside", "processes", "words"), GPUS)
def test_more_processes_than_gpus_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed, wanted, outside, processes, words
) -> None:
    install_gpus(tmp_path, installed, monkeypatch)
    around = {} if outside is None else {"CUDA_VISIBLE_DEVICES": outside}
    cluster = ClusterConfig(executor="local", processes=processes, gpus_per_node=wanted)
    if words is None:
        check_gpus(cluster, around)
        return
    with pytest.raises(UserError) as refusal:
        check_gpus(cluster, around)
    assert words in str(refusal.value)


def test_a_machine_without_the_driver_has_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    check_gpus(TWO, {"CUDA_VISIBLE_DEVICES": "0"})


def test_the_project_comes_first_on_the_python_path_of_the_ranks() -> None:
    assert environment(TWO, {}, "x")["PYTHONPATH"] == str(ROOT)
    assert environment(TWO, {"PYTHONPATH": "/a:/b"}, "x")["PYTHONPATH"] == f"{ROOT}:/a:/b"


def test_a_network_interface_chosen_by_the_user_is_kept() -> None:
    assert environment(TWO, {"GLOO_SOCKET_IFNAME": "eth7"}, "x")["GLOO_SOCKET_IFNAME"] == "eth7"


def test_each_attempt_at_a_stage_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert fresh_folder(tmp_path, "a").name == "a.1"
    (tmp_path / "a.1").mkdir()
    (tmp_path / "b.2").mkdir()
    assert fresh_folder(tmp_path, "a").name == "a.2"


def test_a_followed_log_shows_whole_lines_once_and_not_those_of_submitit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    log = FollowedLog(path, sys.stdout)
    log.show()
    path.write_text("submitit INFO (now) - Starting\none\ntw")
    log.show()
    assert capsys.readouterr().out == "one\n"
    with path.open("a") as file:
        file.write("o\ninterrupted by TERM; step 3 is saved\n")
    log.show()
    log.show()
    assert capsys.readouterr().out == "two\n"
    assert last_lines(path) == ["one", "two", "interrupted by TERM; step 3 is saved"]
