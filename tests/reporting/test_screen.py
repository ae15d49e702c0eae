"""Lines of a terminal that change in place, on a terminal of paper."""

import io
import os
from pathlib import Path

import pytest
from rich.console import RenderableType
from rich.text import Text

from agl_core.reporting.live.screen import Aside, Screen, can_draw
from tests.reporting.terminal import Terminal


class Paper(io.StringIO):
    """Looks like a terminal of `columns` columns and `height` lines."""

    columns, height = 40, 10

    def isatty(self) -> bool:
        return True


@pytest.fixture
def paper(monkeypatch: pytest.MonkeyPatch) -> Paper:
    paper = Paper()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(Screen, "size", lambda screen: (paper.columns, paper.height))
    return paper


def lines(*texts: str) -> "Lines":
    return Lines(texts)


class Lines:
    def __init__(self, texts: tuple[str, ...]) -> None:
        self.texts = texts

    def __call__(self, width: int) -> RenderableType:
        return Text("\n".join(self.texts), "green")


def test_a_frame_takes_the_place_of_the_one_before(paper: Paper) -> None:
    screen = Screen(paper)
    screen.draw(lines("one", "two", "three"))
    screen.draw(lines("four", "five"), ["a note"])
    screen.draw(lines("six"), ["another"])
    assert Terminal(40).feed(paper.getvalue()).text == "a note\nanother\nsix"
    screen.draw(None)
    assert Terminal(40).feed(paper.getvalue()).text == "a note\nanother"


def test_nothing_is_written_when_nothing_has_changed(paper: Paper) -> None:
    screen = Screen(paper)
    screen.draw(lines("one"))
    before = paper.getvalue()
    screen.draw(lines("one"))
    assert paper.getvalue() == before


def test_a_terminal_that_became_narrower_keeps_nothing_of_the_frame(paper: Paper) -> None:
    screen = Screen(paper)
    screen.draw(lines("x" * 30, "short"), ["a note"])
    narrow = Terminal(16).feed("a note\n" + "x" * 30 + "\nshort\n")  # as terminals break lines anew
    assert narrow.text.count("\n") == 3
    paper.columns = 16
    paper.truncate(0)
    paper.seek(0)
    screen.draw(lines("y"))
    assert narrow.feed(paper.getvalue()).text == "a note\ny"


def test_a_view_that_is_higher_than_the_terminal_is_cut(paper: Paper) -> None:
    paper.height = 4
    screen = Screen(paper)
    for _ in range(2):
        screen.draw(lines(*"abcdef"), ["n"])
    assert Terminal(40).feed(paper.getvalue()).text == "n\nn\na\nb\nc"


def test_colours_are_used_where_they_are_wanted(paper: Paper, monkeypatch: pytest.MonkeyPatch) -> None:
    Screen(paper).draw(lines("one"))
    assert "\x1b[32m" in paper.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    Screen(plain := Paper()).draw(lines("one"))
    assert "\x1b[32m" not in plain.getvalue()


def test_only_a_terminal_that_can_move_its_cursor_is_drawn_on(
    paper: Paper, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert can_draw(paper)
    monkeypatch.setenv("TERM", "dumb")
    assert not can_draw(paper)
    monkeypatch.delenv("TERM")
    assert not can_draw(paper)
    with (tmp_path / "log").open("w") as file:
        assert not can_draw(file)
    assert not can_draw(file)  # it is closed


def test_what_is_printed_meanwhile_comes_in_whole_lines() -> None:
    said: list[str] = []
    stream = io.StringIO()
    aside = Aside(stream, said.append, lambda: None)
    print("one\ntwo", "three", file=aside, flush=True)
    aside.write("fo")
    aside.write("ur\nrest")
    assert said == ["one", "two three", "four"]
    assert stream.getvalue() == ""
    assert aside.rest() == "rest"
    assert aside.rest() == ""


def test_a_question_goes_straight_to_the_terminal_until_the_view_goes_on() -> None:
    said: list[str] = []
    paused: list[bool] = []
    stream = io.StringIO()
    aside = Aside(stream, said.append, lambda: paused.append(True))
    aside.write("(Pdb) ")
    aside.flush()
    print("answer", file=aside)
    assert (stream.getvalue(), said, paused) == ("(Pdb) answer\n", [], [True])
    aside.paused = False
    print("later", file=aside, flush=True)
    assert said == ["later"]


def test_a_child_prints_by_itself(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as stream:
        aside = Aside(stream, lambda text: None, lambda: None)
        aside.write("of the parent")
        child = os.fork()
        if child == 0:
            print("of the child", file=aside, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    assert (tmp_path / "out").read_text() == "of the child\n"
