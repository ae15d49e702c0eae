"""Several workers, one folder: nothing is done twice, and what a killed one had is free at once."""

import multiprocessing
import os
import signal

import pytest

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
    other = context.Process(target=hold, args=(tmp_path, "a", held))
    other.start()
    assert held.wait(60)
    with joined(tmp_path, lambda alone: alone) as (claims, alone):
        assert not alone
        assert not claims.take("a")
        other.kill()
        other.join()
        assert claims.take("a")
    assert os.listdir(tmp_path) == []
