"""Things for ranks to do in tests; importable by name, as the pickles of submitit need it."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from agl_core.durable.exits import InterruptedRunError
from agl_core.durable.guard import Guard
from agl_core.errors import UserError
from jobs.stages import find_place, quiet_ends


@dataclass(frozen=True)
class Report:
    """Every rank writes what it finds around itself; rank 0 also says so."""

    folder: Path

    def __call__(self) -> None:
        place = find_place()
        found = {"GLOO": os.environ.get("GLOO_SOCKET_IFNAME"), "SITE": os.environ.get("SITE")}
        text = f"{place.rank} {place.world_size} {place.local_rank} {place.init_method} {found['GLOO']} {found['SITE']}"
        (self.folder / f"rank{place.rank}").write_text(text)
        print(f"rank {place.rank} was here")
        print(f"rank {place.rank} whispers", file=sys.stderr)


@dataclass(frozen=True)
class Fail:
    """Rank 1 ends in the way `how`; rank 0 waits for it for ever."""

    folder: Path
    how: str

    def __call__(self) -> None:
        rank = find_place().rank
        (self.folder / f"rank{rank}.pid").write_text(str(os.getpid()))
        if rank == 0:
            time.sleep(600)
        with quiet_ends():
            if self.how == "defect":
                raise RuntimeError("the sky is falling")
            if self.how == "mistake":
                raise UserError("tile x: no")
            os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Apart:
    """Rank 1 ends in the way `how` as soon as rank 0 listens; rank 0 waits for nobody, and leaves when asked to."""

    folder: Path
    how: str

    def __call__(self) -> None:
        rank = find_place().rank
        with quiet_ends(), Guard() as guard:
            (self.folder / f"rank{rank}.pid").write_text(str(os.getpid()))
            _text(self.folder / f"rank{1 - rank}.pid")
            if rank == 1 and self.how == "defect":
                raise RuntimeError("the sky is falling")
            if rank == 1 and self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if rank == 1 and self.how == "mistake":
                raise UserError("tile x: no")
            if self.how == "mistake of both":
                if rank == 0:  # it has said so, and is asked to leave before it could
                    print("error: tile x: no", file=sys.stderr, flush=True)
                    while not guard.requested:
                        time.sleep(0.02)
                    raise SystemExit(-signal.SIGTERM)
                time.sleep(0.3)
                raise UserError("tile x: no")
            if rank == 1 and self.how == "warned":
                os.kill(os.getpid(), signal.SIGUSR2)
            while not guard.requested:
                time.sleep(0.02)
            raise InterruptedRunError(str(guard.signal), None, "3 of 9 images are predicted")


@dataclass(frozen=True)
class Consequence:
    """Rank 0 fails since rank 1 is about to end with a user's mistake, and is the first to be through."""

    folder: Path

    def __call__(self) -> None:
        rank = find_place().rank
        (self.folder / f"rank{rank}.pid").write_text(str(os.getpid()))
        if rank == 0:
            raise RuntimeError("connection closed by peer")
        while not _ended(int(_text(self.folder / "rank0.pid"))):
            time.sleep(0.02)
        time.sleep(0.3)
        with quiet_ends():
            raise UserError("tile x: no")


def _text(path: Path) -> str:
    while not path.exists() or not path.read_text():
        time.sleep(0.02)
    return path.read_text()


def _ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie of which only its parent has not taken notice."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z"


@dataclass(frozen=True)
class Sleep:
    """Every rank says that it is there, and waits for ever."""

    folder: Path

    def __call__(self) -> None:
        (self.folder / f"rank{find_place().rank}.pid").write_text(str(os.getpid()))
        with quiet_ends():
            time.sleep(600)
