"""What the probe's job has found on its nodes, and what became of the signals that it was sent."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from agl_core.errors import UserError
from agl_core.files import read_json


@dataclass(frozen=True)
class RankFacts:
    """What one rank has found; see `jobs.doctor.inside`. skew: the file server's clock minus the node's, seconds;
    capabilities: of its GPUs, times ten; meeting: seconds for all ranks to meet, None if they did not; unseen: ranks
    whose files it does not see; shared_lock: whether it notices the lock of the first rank."""

    rank: int = 0
    host: str = ""
    place_error: str = ""
    torch_error: str = ""
    write_error: str = ""
    skew: float = 0.0
    lock: str = "taken"
    shared_memory: int | None = None
    stage_in: str = ""
    stage_in_error: str = ""
    stage_in_free: int | None = None
    weights_error: str = ""
    store_error: str = ""
    store_seconds: float = 0.0
    import_seconds: float | None = None
    version: str = ""
    cuda: str | None = None
    architectures: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = ()
    nccl: str = ""
    precision: str = ""
    exchange: bool | None = None
    meeting: float | None = None
    unseen: tuple[int, ...] = ()
    shared_lock: str = ""

    @staticmethod
    def of(values: Mapping[str, Any]) -> "RankFacts":
        """What rank<k>.json holds; unknown keys are left out."""
        known = {entry.name for entry in fields(RankFacts)}
        pairs = {name: value for name, value in values.items() if name in known}
        frozen: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in pairs.items()
        }
        return RankFacts(**frozen)


@dataclass(frozen=True)
class Probed:
    """What became of the probe; times in seconds.

    refused: why it was not submitted, or did not come to its end; waited: in the queue; log: the end of the job's log;
    missing: ranks that have said nothing; heard: from USR2 to each rank that heard it; told: from the requeue to each
    rank's TERM; lived: from TERM to the end of the first rank that was killed; pending: until the job was in the queue
    again, with the same id; delay: that Slurm makes it wait before it may start; back: until it ran again, None if that
    was not waited for; given: whether it first had to give itself the right to come back; requeue_refused: why it could
    not."""

    refused: str = ""
    waited: float = 0.0
    log: str = ""
    ranks: tuple[RankFacts, ...] = ()
    missing: tuple[int, ...] = ()
    heard: Mapping[int, float] = field(default_factory=dict)
    told: Mapping[int, float] = field(default_factory=dict)
    lived: float | None = None
    pending: float | None = None
    delay: float | None = None
    back: float | None = None
    given: bool = False
    requeue_refused: str = ""


def read_ranks(folder: Path, ranks: int) -> dict[int, RankFacts]:
    """What the ranks have said so far."""
    found = {}
    for rank in range(ranks):
        try:
            found[rank] = RankFacts.of(read_json(folder / f"rank{rank}.json"))
        except (UserError, TypeError, AttributeError):
            continue
    return found


def signals(folder: Path, rank: int, name: str) -> list[float]:
    """When a rank was sent a signal, by its clock."""
    lines = re.findall(r"^(\d+\.\d+) (\w+)$", _text(folder / f"signals.{rank}"), re.MULTILINE)
    return [float(at) for at, which in lines if which == name]


def last_beat(folder: Path, rank: int) -> float | None:
    """When a rank gave its last sign of life, by its clock."""
    found = re.match(r"\d+\.\d+", _text(folder / f"beat.{rank}"))
    return float(found[0]) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
