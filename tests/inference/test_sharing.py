"""Several workers, one folder: nothing is done twice, and what a killed one had is free at once."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path

import pytest

from agl_core.durable import lock
from agl_core.inference import sharing
from agl_core.inference.sharing import CLAIMS, joined


def hold(folder, name, held):
    with joined(folder, lambda alone: alone) as (claims, _):
        assert claims.take(name)
        held.set()
        signal.pause()


def test_a_claim_is_one_workers_until_it_is_given_back(tmp_path):
    with joined(tmp_path, bool) as (first, _), joined(tmp_path, bool) as (second, _):
        assert first.take("a")
        assert not second.take("a")
        assert second.take("b")
        first.give_back("a")
        assert second.take("a")
        second.give_all_back()
        assert first.take("b")


def test_only_the_first_is_alone_and_the_last_puts_the_lights_out(tmp_path):
    (tmp_path / ".x_AGL.0123abcd.part.tif").write_text("torn")
    (tmp_path / ".hidden").write_text("somebody's")
    (tmp_path / "a_AGL.tif").write_text("")
    with joined(tmp_path, lambda alone: alone) as (_, alone):
        assert alone
        with joined(tmp_path, lambda alone: alone) as (_, alone):
            assert not alone
        assert (tmp_path / CLAIMS).is_dir()
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a_AGL.tif"]
    with joined(tmp_path, lambda alone: alone) as (_, alone):
        assert alone


def test_who_may_not_begin_leaves_no_trace(tmp_path):
    def refuse(alone):
        raise ConnectionRefusedError

    with pytest.raises(ConnectionRefusedError), joined(tmp_path, refuse):
        pass
    assert os.listdir(tmp_path) == []
    with joined(tmp_path, bool) as (claims, _):
        with pytest.raises(ConnectionRefusedError), joined(tmp_path, refuse):
            pass
        assert claims.take("a")


def test_what_a_killed_worker_had_is_free_at_once(tmp_path):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, "a", held), daemon=True)
    other.start()
    assert held.wait(60)
    with joined(tmp_path, lambda alone: alone) as (claims, alone):
        assert not alone
        assert not claims.take("a")
        other.kill()
        other.join()
        assert claims.take("a")
    assert os.listdir(tmp_path) == []


def test_who_comes_while_the_last_one_takes_the_locks_away_is_inside_with_a_lock(tmp_path, monkeypatch):
    came, go, alone, unlink = threading.Event(), threading.Event(), [], Path.unlink

    def stay():
        with joined(tmp_path, alone.append):
            came.set()
            assert go.wait(60)

    other = threading.Thread(target=stay)

    def unlink_slowly(path, **options):
        unlink(path, **options)
        if path.name == "door":  # the other comes between the removal of the door and that of the folder
            monkeypatch.undo()
            other.start()
            assert came.wait(60)

    with joined(tmp_path, bool):
        monkeypatch.setattr(Path, "unlink", unlink_slowly)
    with joined(tmp_path, alone.append):
        go.set()
        other.join()
    assert alone == [True, False]
    assert os.listdir(tmp_path) == []


def test_the_door_goes_last(tmp_path, monkeypatch):
    gone, unlink = [], Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **options: gone.append(path.name) or unlink(path, **options))
    with joined(tmp_path, bool) as (claims, _):
        claims.take("a")
    assert len(gone) == 3
    assert gone[-1] == "door"


def test_locks_that_are_taken_away_again_and_again_are_only_tried_so_often(tmp_path, monkeypatch):
    tries, left = [], 3
    file_lock = sharing.file_lock

    def taken_away(path, **options):
        if path.name == "door":
            tries.append(path)
            if len(tries) <= left:
                shutil.rmtree(path.parent)
        return file_lock(path, **options)

    monkeypatch.setattr(sharing, "file_lock", taken_away)
    with joined(tmp_path, bool):
        assert len(tries) == left + 1
    left, tries[:] = 1000, []
    with pytest.raises(FileNotFoundError), joined(tmp_path, bool):
        pass
    assert len(tries) == sharing._ATTEMPTS


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that knows no locks, and strangers, as on another machine, of whom only signs of life are seen."""

    def flock(handle, operation):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(lock, "_dead", lambda holder: False)
    monkeypatch.setattr(lock, "BEAT", 0.05)


def test_without_locks_the_living_are_seen_too(tmp_path, without_locks):
    with joined(tmp_path, lambda alone: alone) as (first, alone):
        assert alone
        with joined(tmp_path, lambda alone: alone) as (second, alone):
            assert not alone
            assert first.take("a")
            assert not second.take("a")
    assert {name.partition(".")[0] for name in os.listdir(tmp_path / CLAIMS)} == {"door"}
    with joined(tmp_path, lambda alone: alone) as (_, alone):
        assert alone


def test_without_locks_a_killed_stranger_blocks_nobody_for_ever(tmp_path, without_locks, monkeypatch):
    monkeypatch.setattr(lock, "ABANDONED", 1.0)
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=hold, args=(tmp_path, "a", held), daemon=True)
    other.start()
    assert held.wait(60)
    with joined(tmp_path, lambda alone: alone) as (claims, alone):
        assert not alone
        other.kill()
        other.join()
        while not claims.take("a"):  # without patience: the time counts from call to call
            pass
    other = context.Process(target=hold, args=(tmp_path, "b", held), daemon=True)
    held.clear()
    other.start()
    assert held.wait(60)
    other.kill()
    other.join()
    with joined(tmp_path, lambda alone: alone) as (_, alone):
        assert alone
