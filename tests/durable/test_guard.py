"""The warning before the kill."""

import contextlib
import copy
import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from agl_core.durable import guard as guard_module
from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard

ROOT = Path(__file__).parents[2]
ALL = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def unharmed() -> Iterator[None]:
    """Every test leaves the signal handlers as it found them."""
    before = {number: signal.getsignal(number) for number in ALL}
    yield
    after = {number: signal.getsignal(number) for number in ALL}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert after == before


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(now=100.0)
    monkeypatch.setattr(guard_module, "time", SimpleNamespace(monotonic=lambda: fake.now))
    return fake


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # the handler runs now, if not before


def test_a_guard_asks_nothing_by_itself() -> None:
    with Guard() as guard:
        assert not guard.requested
        assert guard.signal is None
        assert guard.remaining() == math.inf


@pytest.mark.parametrize(("number", "name"), [(signal.SIGUSR2, "USR2"), (signal.SIGTERM, "TERM")])
def test_a_warning_is_remembered_and_goes_no_further(number: int, name: str) -> None:
    with Guard(grace=1000.0) as guard:
        send(number)
        assert guard.requested
        assert guard.signal == name
        assert 0 < guard.remaining() <= 1000
    assert guard.requested


def test_only_the_first_warning_counts(clock: SimpleNamespace) -> None:
    with Guard(grace=30.0) as guard:
        send(signal.SIGUSR2)
        clock.now = 110.0
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert guard.signal == "USR2"
        assert guard.remaining() == 20.0
        clock.now = 500.0
        assert guard.remaining() == 0.0


def test_the_grace_runs_from_the_arrival_of_a_signal_that_python_could_not_handle_yet() -> None:
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(256)
    libc.pthread_mutex_init(mutex, None)
    libc.pthread_mutex_lock(mutex)
    noted: list[float] = []

    def warn() -> None:
        time.sleep(0.05)  # until the main thread is in C; if it is not yet, the test is weaker and still right
        os.kill(os.getpid(), signal.SIGUSR2)
        deadline = time.monotonic() + 20
        while guard._arrived == math.inf and time.monotonic() < deadline:
            time.sleep(0.001)
        noted.append(time.monotonic())
        time.sleep(0.1)
        libc.pthread_mutex_unlock(mutex)

    with Guard(grace=1000.0) as guard:
        thread = threading.Thread(target=warn)
        thread.start()
        libc.pthread_mutex_lock(mutex)  # the main thread is in C and hears nothing, as in a backward pass
        now = time.monotonic()
        end = now + guard.remaining()
        thread.join()
    assert guard.requested
    assert end <= noted[0] + 1000.0


def test_a_forked_child_does_not_ask_and_its_signals_are_not_its_parents() -> None:
    with Guard() as guard:
        child = os.fork()
        if child == 0:
            send(signal.SIGUSR2)
            send(signal.SIGTERM)
            os._exit(int(guard.requested))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert not guard.requested
    assert guard._arrived == math.inf


def test_a_child_that_another_thread_forked_does_not_ask_either(capfd: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            send(signal.SIGUSR2)
            os._exit(int(guard.requested))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    with Guard() as guard:
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        assert not guard.requested
    assert codes == [0]
    assert guard._arrived == math.inf
    assert capfd.readouterr().err == ""


def test_a_living_child_does_not_keep_the_guard_from_ending() -> None:
    read, write = os.pipe()
    with Guard():
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
        os.close(read)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_handlers_from_before_come_back_and_are_not_called_meanwhile() -> None:
    called = []
    before: dict[int, Callable[[int, object], None] | signal.Handlers] = {
        signal.SIGUSR2: lambda number, frame: called.append(number),
        signal.SIGTERM: signal.SIG_IGN,
    }
    kept = {number: signal.signal(number, handler) for number, handler in before.items()}
    read, write = os.pipe()
    os.set_blocking(write, False)
    wakeup = signal.set_wakeup_fd(write)
    try:
        with contextlib.suppress(ZeroDivisionError), Guard():
            send(signal.SIGUSR2)
            raise ZeroDivisionError
        assert called == []
        assert {number: signal.getsignal(number) for number in before} == before
        assert signal.set_wakeup_fd(wakeup) == write
        send(signal.SIGUSR2)
        assert called == [signal.SIGUSR2]
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
        os.close(read)
        os.close(write)


def test_guards_nest_and_the_inner_one_hears() -> None:
    with Guard() as outer:
        with Guard() as inner:
            send(signal.SIGTERM)
        assert inner.requested
        assert not outer.requested
        send(signal.SIGTERM)
        assert outer.requested


def test_usr1_asks_only_where_it_is_wanted() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with Guard():
        assert signal.getsignal(signal.SIGUSR1) == before
    with Guard(usr1=True) as guard:
        send(signal.SIGUSR1)
        assert guard.signal == "USR1"


def test_the_first_press_of_control_c_asks_and_the_second_ends() -> None:
    with Guard(keyboard=True) as guard:
        send(signal.SIGINT)
        assert guard.signal == "INT"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_term_is_not_a_press_of_control_c() -> None:
    with Guard(keyboard=True) as guard:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        send(signal.SIGINT)
        assert guard.signal == "TERM"
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_control_c_is_left_alone_where_nobody_sits_at_the_keyboard() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Guard():
        assert signal.getsignal(signal.SIGINT) == before


def test_nobody_kills_after_control_c_but_after_a_later_warning(clock: SimpleNamespace) -> None:
    with Guard(grace=30.0, keyboard=True) as guard:
        send(signal.SIGINT)
        assert guard.remaining() == math.inf
        clock.now = 200.0
        send(signal.SIGTERM)
        clock.now = 205.0
        assert guard.remaining() == 25.0
        assert guard.signal == "INT"


def test_a_guard_that_is_off_touches_no_signal() -> None:
    before = {number: signal.getsignal(number) for number in ALL}
    with Guard.off() as guard:
        assert {number: signal.getsignal(number) for number in ALL} == before
        assert not guard.requested
        assert guard.remaining() == math.inf


def test_only_the_main_thread_may_enter() -> None:
    errors: list[ValueError | None] = []

    def enter() -> None:
        try:
            with Guard():
                errors.append(None)
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert isinstance(errors[0], ValueError)


def test_an_interruption_says_what_is_saved_also_in_another_process() -> None:
    error = InterruptedRunError("TERM", 12)
    assert str(error) == "interrupted by TERM; step 12 is saved"
    assert str(InterruptedRunError("USR2", None)) == "interrupted by USR2; nothing is saved yet"
    again = copy.copy(error)  # goes the way of pickle
    assert (again.signal, again.saved_step) == ("TERM", 12)


LOOP = """
import sys, time
from agl_core.durable.exits import INTERRUPTED
from agl_core.durable.guard import Guard
with Guard(keyboard=True) as guard:
    print("ready", flush=True)
    while not guard.requested:
        time.sleep(0.001)
    print("saved after", guard.signal, flush=True)
    if len(sys.argv) > 1:
        sys.stdin.readline()
sys.exit(INTERRUPTED)
"""


def start(*args: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LOOP, *args],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("numbers", [[12], [15], [2], [15, 15, 15, 12, 12, 15]])
def test_a_process_that_is_warned_leaves_with_the_code_of_an_interruption(numbers: list[int]) -> None:
    process = start("wait")
    assert process.stdout is not None
    process.send_signal(numbers[0])
    assert process.stdout.readline() == f"saved after {signal.Signals(numbers[0]).name[3:]}\n"
    for number in numbers[1:]:
        process.send_signal(number)
    out, error = process.communicate("\n")
    heard = "\nsaving at the end of this step; Ctrl-C once more ends at once\n" if numbers == [signal.SIGINT] else ""
    assert (out, error) == ("", heard)
    assert process.returncode == 75


def test_the_second_press_ends_a_process_that_is_still_saving() -> None:
    process = start("wait")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "saved after INT\n"
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()  # it is still waiting for its line
    assert error.endswith("KeyboardInterrupt\n")
    assert process.returncode == -signal.SIGINT


def test_usr1_ends_a_process_that_did_not_ask_for_it() -> None:
    process = start()
    process.send_signal(signal.SIGUSR1)
    process.communicate()
    assert process.returncode == -signal.SIGUSR1
