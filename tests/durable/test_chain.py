import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.durable.chain import (
    START,
    ChainLog,
    Entry,
    RollbackEntry,
    StateEntry,
    StepEntry,
    first_difference,
    read_chain,
    read_chains,
)
from agl_core.errors import UserError

EVERY = 4  # steps between two states


def state(step: int, bits: int = 0) -> StateEntry:
    return StateEntry(step, (("model", f"{step * 977 + bits:032x}"), ("optimizer", f"{step * 991 + bits:032x}")))


def history(steps: int, diverged: int = 0) -> list[Entry]:
    """An undisturbed run with states at every fourth step and the last; after step `diverged` it goes back once."""
    entries: list[Entry] = []
    link = START
    for step in range(1, steps + 1):
        losses = tuple(float(step / 7 + part).hex() for part in range(4))
        if step == diverged:
            losses = ("nan", "inf", "-inf", losses[3])
        entry = StepEntry(step, f"{step * 31:016x}", losses, "")
        link = entry.after(link)
        entries.append(replace(entry, link=link))
        if step == diverged:
            back = RollbackEntry(step, (step - 1) // EVERY * EVERY, "")
            link = back.after(link)
            entries.append(replace(back, link=link))
        if step % EVERY == 0 or step == steps:
            entries.append(state(step))
    return entries


@st.composite
def histories(draw: st.DrawFn) -> list[Entry]:
    steps = draw(st.integers(1, 14))
    return history(steps, draw(st.integers(0, steps)))


def moves(chain: list[Entry]) -> list[int]:
    return [place for place, entry in enumerate(chain) if not isinstance(entry, StateEntry)]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[list[Entry], list[list[Entry]]]:
    """A whole chain, and one that was interrupted anywhere: each incarnation begins with what the one before it had not
    saved, or further back."""
    whole = draw(histories())
    chains = []
    begin = 0
    while True:
        places = [place for place in moves(whole) if place >= begin]
        end = draw(st.one_of(st.just(len(whole)), st.sampled_from([*places, len(whole)])))
        chains.append(whole[begin:end])
        if end == len(whole):
            return whole, chains
        begin = draw(st.sampled_from([place for place in moves(whole) if place <= end]))


@settings(deadline=None)
@given(cuts())
def test_a_run_cut_anywhere_and_continued_equals_the_whole(cut: tuple[list[Entry], list[list[Entry]]]) -> None:
    whole, chains = cut
    assert first_difference(chains, whole) is None
    assert first_difference(chains, whole, losses=False) is None


def flips(entry: Entry) -> list[Entry]:
    """The entry with one bit changed, for each of its values."""

    def flip(text: str, place: int) -> str:
        return text[:place] + format(int(text[place], 16) ^ 1, "x") + text[place + 1 :]

    if isinstance(entry, StateEntry):
        (model, digest), optimizer = entry.state
        return [replace(entry, state=((model, flip(digest, 9)), optimizer))]
    if isinstance(entry, RollbackEntry):
        return [replace(entry, to=entry.to ^ 1), replace(entry, link=flip(entry.link, 0))]
    last = entry.losses[-1].split("p")[0]  # ends with a digit of the mantissa
    losses = (*entry.losses[:-1], flip(last, len(last) - 1) + entry.losses[-1][len(last) :])
    return [
        replace(entry, samples=flip(entry.samples, 15)),
        replace(entry, losses=losses),
        replace(entry, link=flip(entry.link, 31)),
    ]


@settings(deadline=None)
@given(cuts(), st.data())
def test_one_changed_bit_is_found_at_its_step(cut: tuple[list[Entry], list[list[Entry]]], data: st.DataObject) -> None:
    whole, chains = cut
    chain = data.draw(st.sampled_from([chain for chain in chains if chain]))
    place = data.draw(st.integers(0, len(chain) - 1))
    original = chain[place]
    for changed in flips(original):
        chain[place] = changed
        difference = first_difference(chains, whole)
        assert difference is not None
        assert difference.step == original.step
        assert str(difference.step) in str(difference)
    chain[place] = original
    assert first_difference(chains, whole) is None


@settings(deadline=None)
@given(cuts(), st.data())
def test_one_changed_bit_of_the_whole_is_found_at_its_step(
    cut: tuple[list[Entry], list[list[Entry]]], data: st.DataObject
) -> None:
    whole, chains = cut
    place = data.draw(st.sampled_from(moves(whole)))
    for changed in flips(whole[place]):
        difference = first_difference(chains, [*whole[:place], changed, *whole[place + 1 :]])
        assert difference is not None
        if isinstance(changed, StepEntry):
            assert difference.step == changed.step


@settings(deadline=None)
@given(histories(), st.data())
def test_a_dropped_entry_is_found_at_its_step(whole: list[Entry], data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(moves(whole)))
    difference = first_difference([whole[:place] + whole[place + 1 :]], whole)
    assert difference is not None
    assert difference.step == whole[place].step
    in_whole = first_difference([whole], whole[:place] + whole[place + 1 :])
    assert in_whole is not None


@settings(deadline=None)
@given(cuts(), st.data())
def test_a_step_dropped_from_the_middle_is_found_even_if_done_twice(
    cut: tuple[list[Entry], list[list[Entry]]], data: st.DataObject
) -> None:
    whole, chains = cut
    chain = data.draw(st.sampled_from(chains))
    inner = moves(chain)[1:-1]
    if inner:
        dropped = chain.pop(data.draw(st.sampled_from(inner)))
        difference = first_difference(chains, whole)
        assert difference is not None
        assert difference.step == dropped.step


@settings(deadline=None)
@given(histories(), st.data())
def test_two_swapped_entries_are_found_at_the_first(whole: list[Entry], data: st.DataObject) -> None:
    places = moves(whole)
    if len(places) > 1:
        number = data.draw(st.integers(0, len(places) - 2))
        first, second = places[number : number + 2]
        chain = list(whole)
        chain[first], chain[second] = chain[second], chain[first]
        difference = first_difference([chain], whole)
        assert difference is not None
        assert difference.step == whole[first].step


def test_a_step_that_was_different_the_second_time_is_found() -> None:
    whole = history(10)
    again = [replace(entry, losses=("0x0.0p+0",) * 4) if entry.step == 6 else entry for entry in whole[5:]]  # type: ignore[call-arg]
    difference = first_difference([whole[:8], again], whole)
    assert difference is not None
    assert (difference.step, difference.what) == (6, "losses")


def test_a_whole_that_does_not_begin_at_the_first_step_proves_nothing() -> None:
    whole = history(6)[1:]
    difference = first_difference([whole], whole)
    assert difference is not None
    assert (difference.step, difference.what) == (1, "order")


def test_the_last_state_must_be_compared() -> None:
    whole = history(10)
    found = first_difference([whole[:-1]], whole)
    assert found is not None
    assert (found.step, found.what) == (10, "missing")
    assert first_difference([whole], whole[:-1]) is not None
    assert first_difference([whole[:-1], [state(10)]], whole) is None  # the next incarnation found nothing left to do
    assert first_difference([whole[:-1], [state(10, 1)]], whole) is not None


def test_a_state_that_is_reported_some_steps_later_is_compared_with_its_own_step() -> None:
    whole = history(10)
    later = [entry for entry in whole if entry != state(4)]
    later.insert(7, state(4))
    assert isinstance(later[6], StepEntry)
    assert later[6].step == 7
    assert first_difference([later], whole) is None
    later[7] = state(4, 1)
    found = first_difference([later], whole)
    assert found is not None
    assert (found.step, found.what) == (4, "state")


def test_the_state_before_the_first_step_may_be_saved_too() -> None:
    whole = history(5)
    assert first_difference([[state(0)], whole], whole) is None
    assert first_difference([[state(0, 1)], whole], [state(0), *whole]) is not None


def test_other_samples_are_a_difference_for_any_number_of_processes() -> None:
    whole = history(10)
    others = [
        replace(e, losses=("nan",) * 4, link="1" * 32) if isinstance(e, StepEntry) else state(9, 5) for e in whole
    ]
    assert first_difference([others], whole) is not None
    assert first_difference([others], whole, losses=False) is None
    others[0] = replace(others[0], samples="f" * 16)  # type: ignore[call-arg]
    difference = first_difference([others], whole, losses=False)
    assert difference is not None
    assert (difference.step, difference.what) == (1, "samples")


def test_a_chain_that_begins_anew_is_compared_with_its_own_links() -> None:
    whole = history(10)
    tail: list[Entry] = []
    link = START
    for entry in whole[5:]:
        if isinstance(entry, StepEntry):
            link = entry.after(link)
            entry = replace(entry, link=link)
        tail.append(entry)
    assert first_difference([whole[:7], tail], whole) is None
    assert isinstance(tail[1], StepEntry)
    tail[1] = replace(tail[1], link=START)
    difference = first_difference([whole[:7], tail], whole)
    assert difference is not None
    assert (difference.step, difference.what) == (tail[1].step, "link")


def test_a_chain_may_begin_with_a_roll_back() -> None:
    whole = history(9, diverged=3)
    assert isinstance(whole[3], RollbackEntry)
    assert first_difference([whole[:4], whole[3:]], whole) is None
    difference = first_difference([whole[:4], [replace(whole[3], to=1), *whole[4:]]], whole)
    assert difference is not None
    assert (difference.step, difference.what) == (3, "order")


def test_no_chains_or_no_whole_is_a_difference() -> None:
    missing = first_difference([], history(3))
    assert missing is not None
    assert missing.step == 1
    assert first_difference([], []) is not None
    assert first_difference([history(3)], []) is not None


def test_more_steps_than_the_whole_has_are_a_difference() -> None:
    difference = first_difference([history(5)], history(5)[:4])
    assert difference is not None
    assert "the end, step 4" in str(difference)


def play(log: ChainLog, entries: list[Entry]) -> None:
    for entry in entries:
        if isinstance(entry, StepEntry):
            log.step(entry.step, int(entry.samples, 16), [float.fromhex(loss) for loss in entry.losses])
        elif isinstance(entry, RollbackEntry):
            log.rollback(entry.step, entry.to)
        else:
            log.state(entry.step, dict(entry.state))


def test_what_is_logged_is_read_back(tmp_path: Path) -> None:
    whole = history(14, diverged=7)
    link = START
    for generation, part in ((1, whole[:6]), (2, whole[6:11]), (10, whole[11:])):
        log = ChainLog(tmp_path / "chain" / f"train.{generation}.jsonl", link)
        play(log, part)
        log.close()
        link = log.link
    assert read_chains(tmp_path, "train") == [whole[:6], whole[6:11], whole[11:]]
    assert first_difference(read_chains(tmp_path, "train"), whole) is None


def test_other_stages_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("train.1", "train.x.1", "train.x", "pretrain.1"):
        log = ChainLog(tmp_path / "chain" / f"{name}.jsonl")
        log.step(1, 2, [0.5] * 4)
        log.close()
    assert len(read_chains(tmp_path, "train")) == 1
    assert read_chains(tmp_path, "fine") == []


def test_the_link_is_kept_without_a_file() -> None:
    written, whole = ChainLog(None), history(9, diverged=6)
    play(written, whole)
    written.close()
    assert written.link == [entry for entry in whole if not isinstance(entry, StateEntry)][-1].link


def test_an_entry_is_in_the_file_when_the_call_returns(tmp_path: Path) -> None:
    log = ChainLog(tmp_path / "train.1.jsonl")
    log.step(1, 3, [0.25, 0.5, float("nan"), 2.0])
    assert [entry.step for entry in read_chain(tmp_path / "train.1.jsonl")] == [1]
    log.close()


@pytest.mark.parametrize("left", range(1, 150, 7))
def test_a_last_line_cut_off_by_a_kill_is_left_out(tmp_path: Path, left: int) -> None:
    log = ChainLog(path := tmp_path / "train.1.jsonl")
    play(log, history(3)[:2])
    size = path.stat().st_size
    play(log, [history(3)[2]])
    log.close()
    os.truncate(path, min(size + left, path.stat().st_size - 1))
    assert read_chain(path) == history(3)[:2]


def test_a_damaged_line_in_the_middle_is_said(tmp_path: Path) -> None:
    log = ChainLog(path := tmp_path / "train.1.jsonl")
    play(log, history(3))
    log.close()
    for damage in (b"{", b"[]", b'{"step": 2, "state": 3}', b"\xff"):
        lines = path.read_bytes().split(b"\n")
        lines[1] = damage
        path.write_bytes(b"\n".join(lines))
        with pytest.raises(UserError, match=r"train\.1\.jsonl is damaged in line 2"):
            read_chain(path)


def test_an_incarnation_never_appends_to_the_file_of_another(tmp_path: Path) -> None:
    whole = history(6)
    first = ChainLog(tmp_path / "chain" / "train.1.jsonl")
    play(first, whole[:3])
    second = ChainLog(tmp_path / "chain" / "train.1.jsonl", first.link)
    play(second, whole[3:])
    first.close()
    second.close()
    assert read_chains(tmp_path, "train") == [whole[:3], whole[3:]]


def refusing(times: int, part: int = 0) -> Callable[[int, bytes], int]:
    """os.write on a disk that is full for so many writes, after it has taken `part` bytes of the first."""
    write, left = os.write, [times]

    def refuse(handle: int, data: bytes) -> int:
        if left[0] == times and part:
            left[0] -= 1
            return write(handle, data[:part])
        if left[0] > 0:
            left[0] -= 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data)

    return refuse


@pytest.mark.parametrize("part", [0, 11])
def test_what_the_disk_refused_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    whole = history(6)
    log = ChainLog(path := tmp_path / "train.1.jsonl")
    play(log, whole[:2])
    monkeypatch.setattr(os, "write", refusing(3, part))
    play(log, whole[2:4])
    assert log.failure is not None
    assert log.failure.errno == errno.ENOSPC
    assert read_chain(path) == whole[:2]
    play(log, whole[4:])
    log.close()
    assert log.failure is None
    assert read_chain(path) == whole


def test_a_folder_that_cannot_be_made_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "chain").write_text("in the way")
    log = ChainLog(tmp_path / "chain" / "train.1.jsonl")
    play(log, history(4))
    assert log.failure is not None
    (tmp_path / "chain").unlink()
    log.close()
    assert read_chains(tmp_path, "train") == [history(4)]
