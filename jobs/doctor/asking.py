"""Questions to commands and file systems that may never answer, asked side by side."""

import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PATIENCE = 15.0  # seconds for a command


@dataclass(frozen=True)
class Answer:
    """What a command has said. code: its exit code."""

    out: str = ""
    error: str = ""
    code: int = 0


def side_by_side(questions: Mapping[str, Callable[[], Any]], patience: float) -> dict[str, Any]:
    """The answers of all that answer within `patience` seconds, by name.

    Each is asked in a thread of its own, which is left behind where it hangs: a file server that is away holds a
    process in a call that no signal ends. What a system refuses counts as no answer.
    """
    answers: dict[str, Any] = {}
    defects: list[BaseException] = []

    def ask(name: str, question: Callable[[], Any]) -> None:
        try:
            answers[name] = question()
        except OSError:
            pass
        except BaseException as error:
            defects.append(error)

    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in questions.items()]
    for thread in threads:
        thread.start()
    until = time.monotonic() + patience
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if defects:
        raise defects[0]
    return dict(answers)


def run(
    command: list[str], patience: float = PATIENCE, environment: Mapping[str, str] | None = None, stdin: str = ""
) -> Answer | None:
    """What a command says; None if there is no such command or it does not answer in time."""
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="replace", timeout=patience, check=False,
            start_new_session=True, env={**(os.environ if environment is None else environment), "LC_ALL": "C"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Answer(done.stdout, done.stderr, done.returncode)
