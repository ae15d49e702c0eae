"""One rank of the probe's job: `python -m jobs.doctor.inside FOLDER`, started by srun.

It looks around on its node, meets the others, and writes what it has found to FOLDER/rank<k>.json. Then it waits, deaf
to all warnings, and writes down which signals reach it and for how long it lives, until it is told to stop or killed.
"""

import fcntl
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from agl_core.files import read_json, write_json
from jobs.doctor.place import look, try_writing
from jobs.rank import GPUS, meeting

BEAT = 0.05  # seconds between two signs of life
LONGEST = 900.0  # seconds that a rank waits for its end
MEETING = 90.0  # seconds for all ranks to meet and to exchange
CATCHING_UP = 20.0  # seconds until a file that another node has made must be seen
HEARD = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP", "SIGCONT")


def listen(path: Path) -> None:
    """Write the time and the name of each signal that comes to the file `path`, and take no other notice of it."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def heard(number: int, frame: FrameType | None) -> None:
        os.write(handle, f"{time.time():.3f} {signal.Signals(number).name}\n".encode())

    for name in HEARD:
        signal.signal(getattr(signal, name), heard)


def main(folder: Path) -> None:
    """Look around, tell, and wait for the end."""
    rank = int(os.environ["SLURM_PROCID"])
    listen(folder / f"signals.{rank}")
    asked = read_json(folder / "ask.json")
    found: dict[str, Any] = {"rank": rank, "host": socket.gethostname()}
    _note(found, "place_error", lambda: _look_around(found, asked, folder))
    _note(found, "torch_error", lambda: _try_torch(found, asked, folder, rank))
    write_json(folder / f"rank{rank}.json", found)
    _wait(folder, rank)
    os._exit(1)


def _note(found: dict[str, Any], name: str, do: Callable[[], None]) -> None:
    """Do something; how it fails is a finding."""
    try:
        do()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"[:400]


def _look_around(found: dict[str, Any], asked: dict[str, Any], folder: Path) -> None:
    written = try_writing(folder)
    found |= {"write_error": written.error, "skew": written.skew, "lock": written.lock}
    with suppress(OSError):
        found["shared_memory"] = look(Path("/dev/shm")).free
    if asked["stage_in"] not in ("", "none"):
        place = os.path.expandvars(asked["stage_in"])
        found["stage_in"] = place
        if "$" in place:
            found["stage_in_error"] = f"{place} is not set there"
        else:
            known = look(Path(place))
            found["stage_in_free"] = known.free if known.exists else None
            found["stage_in_error"] = try_writing(Path(place)).error if known.exists else f"{place} is not there"
    if asked["weights"]:
        found["weights_error"] = _unreadable(Path(asked["weights"]))
    if asked["store"]:
        begun = time.monotonic()
        found["store_error"] = _try_store(Path(asked["store"]))
        found["store_seconds"] = round(time.monotonic() - begun, 3)


def _try_store(path: Path) -> str:
    from agl_core.data.store import Store
    from agl_core.errors import UserError

    try:
        store = Store(path)
        store.read_tile(len(store) // 2)
        store.close()
    except (OSError, UserError) as error:
        return str(error)
    return ""


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.read(4096)
    except OSError as error:
        return f"{path}: {error.strerror}"
    return ""


def _try_torch(found: dict[str, Any], asked: dict[str, Any], folder: Path, rank: int) -> None:
    begun = time.monotonic()
    from agl_core.training import selfcheck
    from agl_core.training.parallel import Parallel

    found["import_seconds"] = round(time.monotonic() - begun, 2)
    found |= selfcheck.installed()
    ranks = int(os.environ["SLURM_NTASKS"])
    address = meeting(dict(os.environ)) if ranks > 1 else None
    needs_gpu = int(os.environ.get(GPUS, "0")) > 0
    parallel = Parallel(rank, ranks, int(os.environ.get("SLURM_LOCALID", "0")), address, needs_gpu)
    found["precision"] = selfcheck.compute(parallel, asked["precision"])

    def meet() -> None:
        begun = time.monotonic()
        (folder / f"seen.{rank}").touch()
        with parallel, (folder / "lock").open("a") as file:
            if rank == 0:
                fcntl.flock(file, fcntl.LOCK_EX)
            found["exchange"] = selfcheck.exchange(parallel)
            found["meeting"] = round(time.monotonic() - begun, 2)
            found["unseen"] = _unseen(folder, ranks)
            if ranks > 1:
                found["shared_lock"] = "taken" if rank == 0 else _lock_of_first(folder / "lock")
            selfcheck.exchange(parallel)  # the first rank holds it until all have tried

    _within(MEETING, meet, f"the {ranks} ranks did not meet at {address} within {MEETING:g} s")


def _within(seconds: float, do: Callable[[], None], otherwise: str) -> None:
    """Do something that may hang.

    Raises:
        TimeoutError: it takes longer than that.
    """
    errors: list[Exception] = []

    def work() -> None:
        try:
            do()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < until:
        thread.join(BEAT)  # in short pieces, since signals are written down between two of them
    if thread.is_alive():
        raise TimeoutError(otherwise)
    if errors:
        raise errors[0]


def _unseen(folder: Path, ranks: int) -> list[int]:
    """The ranks whose files are not seen here."""
    until = time.monotonic() + CATCHING_UP
    while True:
        there = set(os.listdir(folder))
        missing = [rank for rank in range(ranks) if f"seen.{rank}" not in there]
        if not missing or time.monotonic() > until:
            return missing
        time.sleep(BEAT)


def _lock_of_first(path: Path) -> str:
    """Whether the lock that rank 0 holds is noticed here; as `place.Written.lock`."""
    with path.open("r+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return "taken"
        except OSError:
            return "none"
    return "free"


def _wait(folder: Path, rank: int) -> None:
    handle = os.open(folder / f"beat.{rank}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    until = time.monotonic() + LONGEST
    while time.monotonic() < until and not (folder / "stop").exists():
        os.pwrite(handle, f"{time.time():.3f}\n".encode(), 0)
        time.sleep(BEAT)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
