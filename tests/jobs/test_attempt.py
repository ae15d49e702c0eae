"""How a rank's end is written down, and what the ends of all ranks say together."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agl_core.durable.exits import HUNG, INTERRUPTED, PEER_LOST, TAKEN_OVER, InterruptedRunError, PeerLostError
from agl_core.durable.lease import LeaseLostError
from agl_core.errors import UserError
from jobs.attempt import (
    CRASHED,
    ENDED_WELL,
    LEFT,
    MOST_TRACEBACK,
    OVERTAKEN,
    REFUSED,
    RankEnd,
    end_file,
    end_of,
    judge,
    read_ends,
    recorded,
)
from jobs.failure import MISTAKE

WELL, KILLED = RankEnd(0), None
USR2 = RankEnd(INTERRUPTED, "interrupted by USR2; step 7 is saved", signal="USR2")
TERM = RankEnd(INTERRUPTED, "interrupted by TERM; step 7 is saved", signal="TERM")
LOST = RankEnd(PEER_LOST, "rank 1 is gone")
TAKEN = RankEnd(TAKEN_OVER, "another process has taken this run over")
WRONG = RankEnd(MISTAKE, "the store is not there")
DEFECT = RankEnd(1, "RuntimeError: out of memory", traceback="Traceback: out of memory")
KEYBOARD = RankEnd(130, "interrupted by the keyboard")

# What happened; the ends; srun's exit code; kind, words of the text, whether Slurm has warned for sure.
Row = tuple[str, list[RankEnd | None], int, str, str, bool]
JUDGED: list[Row] = [
    ("one rank, done", [WELL], 0, ENDED_WELL, "", False),
    ("all done", [WELL, WELL], 0, ENDED_WELL, "", False),
    ("all done, but srun says otherwise", [WELL, WELL], 1, ENDED_WELL, "", False),
    ("all warned by USR2", [USR2, USR2], 75, LEFT, "USR2; step 7", True),
    ("all warned by TERM", [TERM, TERM], 75, LEFT, "TERM; step 7", False),
    ("one by TERM, one by USR2", [TERM, USR2], 75, LEFT, "TERM; step 7", True),
    ("warned when one was done", [WELL, USR2], 75, LEFT, "USR2", True),
    ("one killed, the other told by srun", [TERM, KILLED], 137, CRASHED, "rank 1 was killed by signal 9", False),
    ("one killed before the other was done", [WELL, KILLED], 137, CRASHED, "rank 1 was killed by signal 9", False),
    ("one killed, the other has noticed", [KILLED, LOST], 137, CRASHED, "rank 0 was killed by signal 9", False),
    ("one killed after a warning", [USR2, KILLED], 137, CRASHED, "rank 1 was killed", True),
    ("all killed", [KILLED, KILLED], 137, CRASHED, "all ranks were killed by signal 9", False),
    ("the only one killed", [KILLED], 139, CRASHED, "all ranks were killed by signal 11", False),
    ("two of three killed", [KILLED, TERM, KILLED], 137, CRASHED, "rank 0, 2 was killed", False),
    ("srun itself failed", [KILLED, KILLED], 1, CRASHED, "(srun's exit code 1)", False),
    ("one hung, the other was killed too", [TERM, KILLED], HUNG, CRASHED, "rank 1 made no progress", False),
    ("they have lost each other", [LOST, LOST], 76, CRASHED, "the ranks lost each other", False),
    ("one noticed, one was told by srun", [LOST, TERM], 76, CRASHED, "the ranks lost each other", False),
    ("the same after a warning", [LOST, USR2], 76, CRASHED, "the ranks lost each other", True),
    ("a defect", [DEFECT], 1, CRASHED, "rank 0 failed: RuntimeError: out of memory", False),
    ("a defect of the second", [LOST, DEFECT], 76, CRASHED, "rank 1 failed: RuntimeError: out", False),
    ("a defect, the others told by srun", [TERM, DEFECT], 75, CRASHED, "rank 1 failed", False),
    ("a defect after a warning", [USR2, DEFECT], 75, CRASHED, "rank 1 failed", True),
    ("a defect, the other was killed", [KILLED, DEFECT], 137, CRASHED, "rank 1 failed", False),
    ("defects of all", [DEFECT, DEFECT], 1, CRASHED, "rank 0 failed", False),
    ("ended by a keyboard", [KEYBOARD], 130, CRASHED, "rank 0 failed: interrupted by the keyboard", False),
    ("a mistake of the user", [WRONG], 2, REFUSED, "the store is not there", False),
    ("a mistake that one has found", [LOST, WRONG], 76, REFUSED, "the store is not there", False),
    ("a mistake, the other was killed", [WRONG, KILLED], 137, REFUSED, "the store is not there", False),
    ("a mistake, the other was warned", [USR2, WRONG], 75, REFUSED, "the store is not there", False),
    ("taken over", [TAKEN, TAKEN], 78, OVERTAKEN, "taken this run over", False),
    ("taken over, the others have noticed", [TAKEN, LOST, KILLED], 137, OVERTAKEN, "taken this run over", False),
]


@pytest.mark.parametrize(
    ("ends", "code", "kind", "words", "warned"), [r[1:] for r in JUDGED], ids=[r[0] for r in JUDGED]
)
def test_the_ends_of_all_ranks_say_how_the_attempt_ended(
    ends: list[RankEnd | None], code: int, kind: str, words: str, warned: bool
) -> None:
    end = judge(ends, code)
    assert (end.kind, end.by_warning) == (kind, warned)
    assert words in end.text
    assert bool(end.traceback) == (kind == CRASHED and DEFECT in ends)


ENDS: list[tuple[BaseException, RankEnd]] = [
    (UserError("give --data"), RankEnd(MISTAKE, "give --data")),
    (InterruptedRunError("USR2", 7), USR2),
    (InterruptedRunError("TERM", None), RankEnd(INTERRUPTED, "interrupted by TERM; nothing is saved yet", "TERM")),
    (LeaseLostError("gone"), RankEnd(TAKEN_OVER, "gone")),
    (PeerLostError("rank 1 is gone"), LOST),
    (KeyboardInterrupt(), KEYBOARD),
]


@pytest.mark.parametrize(("error", "end"), ENDS, ids=[type(error).__name__ for error, _ in ENDS])
def test_every_kind_of_error_has_its_code_and_its_sentence(error: BaseException, end: RankEnd) -> None:
    assert end_of(error) == end


def deep(levels: int) -> None:
    if levels == 0:
        raise RuntimeError("the\nreal\ncause")
    # Each level on a line of its own in the traceback: equal frames are counted, not shown.
    exec(compile("\n" * levels + f"deep({levels - 1})", f"a{'b' * 100}{levels}.py", "exec"), {"deep": deep})


def test_of_a_defect_the_end_of_the_traceback_is_kept_and_the_sentence_is_one_line() -> None:
    try:
        deep(60)
    except RuntimeError as error:
        end = end_of(error)
    assert (end.code, end.text) == (1, "RuntimeError: the real cause")
    assert len(end.traceback) == MOST_TRACEBACK
    assert end.traceback.endswith("RuntimeError: the\nreal\ncause\n")


def test_a_sentence_has_an_end() -> None:
    assert len(end_of(ValueError("x" * 5000)).text) == 500


class Left(BaseException):
    """In the place of the end of the process."""


def leave(code: int) -> None:
    raise Left(code)


def write_end(folder: Path, rank: int, error: BaseException | None) -> int:
    """The code with which the rank leaves."""
    try:
        with recorded(folder, rank, leave):
            if error is not None:
                raise error
    except Left as left:
        return int(left.args[0])
    raise AssertionError("it stays")


def test_what_is_written_down_is_what_is_read_and_the_code_with_which_the_rank_leaves(tmp_path: Path) -> None:
    assert write_end(tmp_path, 0, None) == 0
    for rank, (error, end) in enumerate(ENDS, 1):
        assert write_end(tmp_path, rank, error) == end.code
    assert read_ends(tmp_path, len(ENDS) + 1) == [WELL, *(end for _, end in ENDS)]


def test_the_log_has_the_traceback_of_a_defect_and_one_sentence_of_everything_else(tmp_path: Path, capsys) -> None:
    write_end(tmp_path, 0, ZeroDivisionError("never divide"))
    assert "Traceback (most recent call last)" in capsys.readouterr().out
    write_end(tmp_path, 0, UserError("give --data"))
    assert capsys.readouterr().out == "error: give --data\n"
    write_end(tmp_path, 0, InterruptedRunError("USR2", 7))
    assert capsys.readouterr().out == "interrupted by USR2; step 7 is saved\n"
    write_end(tmp_path, 0, None)
    assert capsys.readouterr().out == ""


def test_a_rank_whose_end_cannot_be_written_leaves_with_its_code_all_the_same(tmp_path: Path) -> None:
    assert write_end(tmp_path / "away", 0, InterruptedRunError("USR2", 7)) == INTERRUPTED
    assert read_ends(tmp_path / "away", 1) == [None]


def test_a_full_disk_under_the_log_takes_neither_the_code_nor_the_record(tmp_path: Path, monkeypatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert write_end(tmp_path, 0, InterruptedRunError("USR2", 7)) == INTERRUPTED
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())  # what it could not write must go somewhere
    assert read_ends(tmp_path, 1) == [USR2]


@pytest.mark.parametrize("text", ["", "{", '{"code": 75, "text"', "[]", "{}", '{"colour": 3}', "\xff"])
def test_an_end_that_is_torn_or_none_counts_as_killed(tmp_path: Path, text: str) -> None:
    end_file(tmp_path, 0).write_bytes(text.encode("latin-1"))
    assert read_ends(tmp_path, 2) == [None, None]


def test_a_rank_ends_without_the_interpreter_s_tidying_up(tmp_path: Path) -> None:
    code = f"""
import atexit, pathlib
from jobs.attempt import recorded
atexit.register(print, "tidied up")
with recorded(pathlib.Path({str(tmp_path)!r}), 3):
    raise ValueError("broken")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: broken" in done.stdout
    assert "tidied up" not in done.stdout
    (end,) = [end for end in read_ends(tmp_path, 4) if end is not None]
    assert end.text == "ValueError: broken"
