"""Who may write to a run directory."""

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import pytest

from agl_core.durable import lease as lease_module
from agl_core.durable import lock as lock_module
from agl_core.durable.lease import LEASE, LOCK, Lease, LeaseLostError, read_lease
from agl_core.durable.lock import KEPT, LockTakenError, file_lock
from agl_core.errors import UserError

ROOT = Path(__file__).parents[2]


def no_locks(handle: int, operation: int) -> NoReturn:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture(params=["flock", "numbered"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both sorts of file systems: with locks and without."""
    if request.param == "numbered":
        monkeypatch.setattr(fcntl, "flock", no_locks)
    return str(request.param)


def start(script: str, *args: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# --- ownership


def test_generations_count_the_incarnations(tmp_path: Path, kind: str) -> None:
    assert read_lease(tmp_path) is None
    first = Lease.take(tmp_path, "first")
    second = Lease.take(tmp_path, "second")
    assert (first.generation, second.generation) == (1, 2)
    assert first.token != second.token
    assert first.previous is None
    assert second.previous is not None
    assert (second.previous.holder, second.previous.released) == ("first", None)
    found = read_lease(tmp_path)
    assert found is not None
    assert (found.generation, found.token, found.holder, found.pid) == (2, second.token, "second", os.getpid())


def test_only_the_last_to_take_may_write(tmp_path: Path, kind: str) -> None:
    old = Lease.take(tmp_path, "old", period=0.0)
    with old.writing():
        pass
    new = Lease.take(tmp_path, "new")
    before = (tmp_path / LEASE).read_bytes()
    sentence = r"new .* has taken this run over \(generation 2, this process has 1"
    with pytest.raises(LeaseLostError, match=sentence), old.writing():
        pytest.fail("a stale incarnation writes")
    with pytest.raises(LeaseLostError):
        old.renew(7)
    old.release(7)
    assert (tmp_path / LEASE).read_bytes() == before
    with new.writing():
        pass


def test_the_other_processes_of_an_incarnation_join_it(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, "rank 0")
    rank1 = Lease.join(tmp_path, first.generation, first.token)
    with rank1.writing():
        pass
    with first.writing():
        pass
    Lease.take(tmp_path, "another")
    for lease in (first, rank1):
        with pytest.raises(LeaseLostError), lease.writing():
            pytest.fail("a stale incarnation writes")


def test_the_same_generation_with_another_token_is_another_incarnation(tmp_path: Path) -> None:
    lost = Lease.take(tmp_path, "lost")
    (tmp_path / LEASE).unlink()
    other = Lease.take(tmp_path, "other")
    assert other.generation == lost.generation
    with pytest.raises(LeaseLostError), lost.writing():
        pytest.fail("a stale incarnation writes")


def test_a_generation_is_above_all_that_were_seen_elsewhere(tmp_path: Path) -> None:
    assert Lease.take(tmp_path, "a", above=4).generation == 5
    assert Lease.take(tmp_path, "b", above=2).generation == 6


@pytest.mark.parametrize(
    "content",
    [None, b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"generation": 3}', b'{"generation": "3", "token": 1}'],
)
def test_a_missing_or_damaged_lease_is_nobodys_and_can_be_taken(tmp_path: Path, content: bytes | None) -> None:
    old = Lease.take(tmp_path, "old")
    if content is None:
        (tmp_path / LEASE).unlink()
    else:
        (tmp_path / LEASE).write_bytes(content)
    assert read_lease(tmp_path) is None
    with pytest.raises(LeaseLostError, match="missing or damaged"), old.writing():
        pytest.fail("writes without a lease")
    new = Lease.take(tmp_path, "new", above=old.generation)
    assert new.generation == 2
    with new.writing():
        pass


def test_a_lease_with_the_right_names_and_wrong_values_is_damaged(tmp_path: Path) -> None:
    Lease.take(tmp_path, "old")
    values = json.loads((tmp_path / LEASE).read_text())
    for generation in ("1", None, 0, [1]):
        (tmp_path / LEASE).write_text(json.dumps({**values, "generation": generation}))
        assert read_lease(tmp_path) is None


# --- exclusion


def test_a_take_over_waits_for_a_write_to_end(tmp_path: Path, kind: str) -> None:
    lease = Lease.take(tmp_path, "old")
    order: list[str] = []

    def take() -> None:
        Lease.take(tmp_path, "new")
        order.append("taken")

    thread = threading.Thread(target=take)
    with lease.writing():
        thread.start()
        thread.join(0.2)
        order.append("written")
    thread.join()
    assert order == ["written", "taken"]


def test_two_threads_of_a_process_do_not_write_at_once(tmp_path: Path, kind: str) -> None:
    lease = Lease.take(tmp_path, "run")
    for other in (lease, Lease.join(tmp_path, lease.generation, lease.token)):
        with lease.writing():
            error: list[Exception] = []

            def write(other: Lease = other, error: list[Exception] = error) -> None:
                try:
                    with other.writing(patience=0.0):
                        pass
                except LockTakenError as taken:
                    error.append(taken)

            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            assert len(error) == 1


def test_writing_may_be_nested(tmp_path: Path, kind: str) -> None:
    lease = Lease.take(tmp_path, "run", period=0.0)
    with lease.writing(), lease.writing():
        lease.renew(3)
        with pytest.raises(LockTakenError), file_lock(tmp_path / LOCK, patience=0.0):
            pytest.fail("the lock was free")
    with file_lock(tmp_path / LOCK, patience=0.0):
        pass


def test_an_error_within_lets_the_lock_go_and_comes_out(tmp_path: Path, kind: str) -> None:
    lease = Lease.take(tmp_path, "run")
    with pytest.raises(OSError, match="No locks") as info, lease.writing():
        raise OSError(errno.ENOLCK, "No locks")
    assert info.value.__context__ is None
    with lease.writing(patience=0.0):
        pass


def test_a_lock_file_that_was_replaced_meanwhile_is_not_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / LOCK
    real = fcntl.flock
    handles: list[int] = []

    def flock(handle: int, operation: int) -> None:
        if not handles:
            path.unlink()
            handles.append(os.open(path, os.O_CREAT | os.O_RDWR))
        real(handle, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with file_lock(path), pytest.raises(BlockingIOError):
        real(handles[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(handles[0])


HAMMER = """
import contextlib, errno, fcntl, os, sys, time
from pathlib import Path
from agl_core.durable import lease as module
from agl_core.durable.lease import Lease, LeaseLostError, read_lease

folder, name, kind, broken = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
if kind == "numbered":
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "no locks")
    fcntl.flock = flock
if broken == "no check":
    Lease._check = lambda self: self._record
if broken == "no lock":
    module.file_lock = lambda path, patience=0.0: contextlib.nullcontext()

log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
def say(*words):
    os.write(log, (" ".join(map(str, words)) + chr(10)).encode())
def newest():
    lines = (folder / "log").read_text().splitlines()
    return max((int(line.split()[1]) for line in lines if line.startswith("taken")), default=0)
def write(lease):
    with lease.writing():
        say("in", lease.generation, name)
        time.sleep(0.001)
        say("out", lease.generation, name)

print("ready", flush=True)
sys.stdin.readline()
for turn in range(4):
    found = read_lease(folder)
    if turn % 3 == 2 and found is not None:
        lease = Lease.join(folder, found.generation, found.token)
    else:
        lease = Lease.take(folder, name)
        say("taken", lease.generation, name)
    with contextlib.suppress(LeaseLostError):
        for _ in range(8):
            write(lease)
        # Once more when somebody else has taken over, which happens unless all others are through.
        for _ in range(500):
            if newest() > lease.generation:
                break
            time.sleep(0.001)
        write(lease)
"""


def hammer(folder: Path, kind: str, broken: str = "") -> list[str]:
    """Let four incarnations take the run from each other and write; return the log of what they did."""
    processes = [start(HAMMER, folder, name, kind, broken) for name in "abcd"]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    return (folder / "log").read_text().splitlines()


def violations(log: list[str]) -> list[str]:
    """Where two are inside at once, or one of an older generation than the last that was taken is."""
    wrong, inside, newest = [], "", 0
    for number, line in enumerate(log):
        what, generation, name = line.split()
        if what == "taken":
            newest = max(newest, int(generation))
            continue
        who = f"{generation} {name}"
        if what == "in":
            if inside:
                wrong.append(f"line {number}: {who} comes in while {inside} is inside")
            if int(generation) < newest:
                wrong.append(f"line {number}: {who} comes in after {newest} has taken over")
            inside = who
        else:
            if inside != who:
                wrong.append(f"line {number}: {who} goes out while {inside or 'nobody'} is inside")
            inside = ""
    return wrong


@pytest.mark.parametrize("variant", ["flock", "numbered"])
def test_live_incarnations_that_take_the_run_from_each_other_never_write_at_once(tmp_path: Path, variant: str) -> None:
    log = hammer(tmp_path, variant)
    assert violations(log) == []
    # Every take-over made one generation, and every incarnation wrote.
    assert sorted(int(line.split()[1]) for line in log if line.startswith("taken")) == list(range(1, 13))
    assert {line.split()[2] for line in log if line.startswith("in")} == set("abcd")


@pytest.mark.parametrize("broken", ["no check", "no lock"])
def test_without_the_check_or_without_the_lock_they_would(tmp_path: Path, broken: str) -> None:
    assert violations(hammer(tmp_path, "flock", broken))


STALE = """
import sys
from pathlib import Path
from agl_core.durable.lease import Lease, LeaseLostError
folder = Path(sys.argv[1])
lease = Lease.take(folder, "stale")
print("taken", flush=True)
sys.stdin.readline()
try:
    with lease.writing():
        (folder / "weights").write_text("stale")
except LeaseLostError:
    print("lost")
"""


def test_an_incarnation_that_was_stopped_does_not_write_when_it_goes_on(tmp_path: Path) -> None:
    process = start(STALE, tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "taken\n"
    process.send_signal(signal.SIGSTOP)
    with Lease.take(tmp_path, "new").writing():
        pass
    process.send_signal(signal.SIGCONT)
    assert process.communicate("\n")[0] == "lost\n"
    assert not (tmp_path / "weights").exists()


INSIDE = """
import errno, fcntl, os, sys, time
from pathlib import Path
from agl_core.durable.lease import Lease
if sys.argv[2] == "numbered":
    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "no locks")
    fcntl.flock = flock
with Lease.take(Path(sys.argv[1]), "killed").writing():
    print("inside", flush=True)
    time.sleep(600)
"""


def test_a_process_that_is_killed_while_it_writes_leaves_no_lock(tmp_path: Path, kind: str) -> None:
    process = start(INSIDE, tmp_path, kind)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    with pytest.raises(LockTakenError), file_lock(tmp_path / LOCK, patience=0.0):
        pytest.fail("the lock was free")
    process.kill()
    process.communicate()
    with file_lock(tmp_path / LOCK, patience=0.0):
        pass


# --- file systems without locks


@pytest.fixture
def numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fcntl, "flock", no_locks)
    return tmp_path / LOCK


def test_a_lock_of_another_machine_is_waited_for(numbered: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()  # a process id that nobody has here says nothing about another machine
    numbered.with_name(f"{LOCK}.7").write_text(f"token\n{ended.pid}\nanother machine")
    with pytest.raises(LockTakenError), file_lock(numbered, patience=0.0):
        pytest.fail("the lock was free")


def test_a_lock_that_does_not_yet_say_whose_it_is_is_waited_for(numbered: Path) -> None:
    numbered.with_name(f"{LOCK}.7").touch()
    with pytest.raises(LockTakenError), file_lock(numbered, patience=0.0):
        pytest.fail("the lock was free")


def test_a_lock_that_is_held_for_very_long_is_abandoned(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered.with_name(f"{LOCK}.7").write_text("token\n1\nanother machine")
    monkeypatch.setattr(lock_module, "ABANDONED", -1.0)
    with file_lock(numbered, patience=0.0):
        assert numbered.with_name(f"{LOCK}.8").exists()


def test_a_lock_is_watched_from_call_to_call(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, now = numbered.with_name(f"{LOCK}.7"), 0.0
    file.write_text("token\n1\nanother machine")
    monkeypatch.setattr(lock_module.time, "monotonic", lambda: now)

    def taken() -> bool:
        try:
            with file_lock(numbered, patience=0.0):
                return False
        except LockTakenError:
            return True

    assert taken()
    now += lock_module.ABANDONED - 1
    assert taken()
    file.write_text("token\n1\nanother machine\n2")  # a sign of life
    now += lock_module.ABANDONED - 1
    assert taken()
    now += lock_module.ABANDONED - 1
    assert taken()
    now += 2
    assert not taken()


def test_a_holder_gives_signs_of_life_until_it_is_done(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "BEAT", 0.001)
    with file_lock(numbered):
        (file,) = numbered.parent.glob(f"{LOCK}.*")
        begun = file.read_text()
        while (said := file.read_text()) == begun:
            pass
        assert said.startswith(f"{begun}\n")
    assert file.read_text() == lock_module.FREE


def test_only_one_breaks_an_abandoned_lock(numbered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered.with_name(f"{LOCK}.7").write_text("token\n1\nanother machine")
    monkeypatch.setattr(lock_module, "ABANDONED", -1.0)
    with file_lock(numbered, patience=0.0):
        monkeypatch.undo()
        monkeypatch.setattr(fcntl, "flock", no_locks)
        # Another that has looked at 7 as well comes too late: 8 is there.
        real = lock_module._numbers
        monkeypatch.setattr(lock_module, "_numbers", lambda path: [n for n in real(path) if n <= 7])
        with pytest.raises(LockTakenError), file_lock(numbered, patience=0.0):
            pytest.fail("the lock was free")


def test_a_look_that_is_long_out_of_date_does_not_give_the_lock(
    numbered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2 * KEPT):
        with file_lock(numbered):
            pass
    real = lock_module._numbers
    looks = []

    def numbers(path: Path) -> list[int]:
        looks.append(real(path))
        return [1] if len(looks) == 1 else looks[-1]

    with file_lock(numbered):
        monkeypatch.setattr(lock_module, "_numbers", numbers)
        with pytest.raises(LockTakenError), file_lock(numbered, patience=0.0):
            pytest.fail("the lock was free")
    assert len(looks) > 1


def test_old_numbers_are_cleared_away(numbered: Path) -> None:
    for _ in range(3 * KEPT):
        with file_lock(numbered):
            pass
    assert len(list(numbered.parent.glob(f"{LOCK}.*"))) <= KEPT


# --- progress, and disks that fail


def test_progress_is_reported_at_most_every_period(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "run", period=1e9)
    lease.renew(5)
    found = read_lease(tmp_path)
    assert found is not None
    assert found.step == 0
    lease = Lease.take(tmp_path, "run", period=0.0)
    lease.renew(6)
    found = read_lease(tmp_path)
    assert found is not None
    assert (found.step, found.generation, found.token) == (6, 2, lease.token)
    assert found.renewed >= found.taken
    lease.release()
    found = read_lease(tmp_path)
    assert found is not None
    assert found.step == 6
    assert found.released is not None
    assert Lease.take(tmp_path, "next").generation == 3


def test_who_reports_progress_does_not_wait_for_who_writes(tmp_path: Path, kind: str) -> None:
    lease = Lease.take(tmp_path, "run", period=0.0)
    rank1 = Lease.join(tmp_path, lease.generation, lease.token)
    with rank1.writing():
        lease.renew(5)
    found = read_lease(tmp_path)
    assert found is not None
    assert found.step == 0
    lease.renew(6)
    found = read_lease(tmp_path)
    assert found is not None
    assert found.step == 6


@pytest.mark.parametrize("call", ["write_text", "replace"])
def test_a_full_disk_comes_out_as_it_is_and_the_lease_stays_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    lease = Lease.take(tmp_path, "run", period=0.0)
    before = (tmp_path / LEASE).read_bytes()

    def full(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path if call == "write_text" else os, call, full)
    with pytest.raises(OSError, match="No space left"):
        lease.renew(5)
    with pytest.raises(OSError, match="No space left"):
        lease.release(5)
    monkeypatch.undo()
    assert (tmp_path / LEASE).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [LEASE, LOCK]
    with lease.writing():
        pass
    lease.renew(6)


def test_after_a_failed_report_the_next_is_a_period_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = Lease.take(tmp_path, "run", period=1e6)
    lease._renewed -= 2e6
    shutil.rmtree(tmp_path)
    with pytest.raises(FileNotFoundError):
        lease.renew(5)
    lease.renew(6)


def test_a_run_directory_that_is_gone_is_a_failing_disk_and_is_not_made_anew(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    lease = Lease.take(folder, "run", period=0.0)
    folder.rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError), lease.writing():
        pytest.fail("writes into nothing")
    with pytest.raises(FileNotFoundError):
        lease.renew(5)
    with pytest.raises(UserError, match=r"the run cannot be taken over \(No such file"):
        Lease.take(folder, "run")
    assert not folder.exists()
    (tmp_path / "away").rename(folder)
    with lease.writing():
        pass


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_run_that_cannot_be_taken_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError) as info:
        Lease.take(tmp_path, "run")
    monkeypatch.undo()
    assert str(tmp_path) in str(info.value)
    assert os.strerror(number) in str(info.value)
    assert "\n" not in str(info.value)


def test_a_lock_that_is_never_let_go_is_one_sentence_that_names_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease.take(tmp_path, "job 17")

    def impatient(path: Path) -> Any:
        return file_lock(path, patience=0.0)

    with lease.writing():
        monkeypatch.setattr(lease_module, "file_lock", impatient)
        with pytest.raises(UserError, match=r"job 17 \(process .* has held this lock"):
            Lease.take(tmp_path, "next")


def test_a_process_forked_while_the_lock_is_held_does_not_keep_it(tmp_path: Path) -> None:
    lease = Lease.take(tmp_path, "trainer")
    with lease.writing():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with lease.writing(patience=0.5):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_start_that_wakes_up_late_does_not_take_the_run_from_a_later_one(tmp_path: Path) -> None:
    first = Lease.take(tmp_path, "first", job="17", turn=3)
    second = Lease.take(tmp_path, "second", job="17", turn=4)
    with pytest.raises(LeaseLostError, match="a later start of the same job"):
        Lease.take(tmp_path, "first", job="17", turn=3)
    with second.writing():
        pass
    with pytest.raises(LeaseLostError), first.writing():
        pass
    for job, turn in (("17", 4), ("17", 5), ("18", 0), ("", 0), ("17", 1)):  # the same one again, and who resumes
        Lease.take(tmp_path, "next", job=job, turn=turn)


def test_a_lease_of_the_first_versions_is_read(tmp_path: Path) -> None:
    Lease.take(tmp_path, "old", job="17", turn=3)
    record = json.loads((tmp_path / "lease.json").read_text())
    del record["job"], record["turn"]
    (tmp_path / "lease.json").write_text(json.dumps(record))
    found = read_lease(tmp_path)
    assert found is not None
    assert (found.generation, found.job, found.turn) == (1, "", 0)
