"""The log files of a run, put in order: which start of which job wrote them, and how that ended."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from agl_core.reporting.words import zone
from jobs.history import Entry, Incarnation, incarnations
from jobs.local import SUBMITIT_LINE
from jobs.runs import Run
from jobs.survey import submitted

CONDUCTOR_LOG = re.compile(r"(\d+)_0_log\.(?:out|err)")
LOCAL_LOG = re.compile(r"\d+_(\d+)_log\.(?:out|err)")
ATTEMPT = re.compile(r"(\d+)\.(\d+)")
RANK_LOG = re.compile(r"rank(\d+)\.log")


@dataclass(frozen=True)
class LogPart:
    """What one start of a job has printed. files: none if it went to the terminal; time: when it began, unix; known:
    what the history says of it, None if nothing; conductor: not of a rank, but of the process that starts them."""

    job: str
    files: tuple[Path, ...]
    time: float
    known: Incarnation | None = None
    conductor: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same start, whatever became of it since."""
        return self.job, self.files or (self.known.key if self.known else ()), self.conductor

    @property
    def id(self) -> str:
        """Slurm's id of the job, "pid N" of one on a machine, empty if nothing is known."""
        return str(self.known.begin["id"]) if self.known else ""

    def header(self) -> str:
        """One line about it."""
        begin, end, id = self.known.begin if self.known else {}, self.known.end if self.known else None, self.id
        words = [self.job, f"job {id}" if id.isdecimal() else id, "the process that starts the ranks" * self.conductor]
        if id.isdecimal() and not self.conductor:
            words += [f"restart {begin.get('restart', 0)}", f"attempt {begin.get('attempt', 0)}"]
        if not id and self.files:
            words.append(self.files[0].parent.name)
        words += [f"on {begin['host']}" if begin.get("host") else "", f"from {_clock(self.time)}"]
        if end is not None and not self.conductor:
            words.append(f"to {_clock(end['time'])}")
        return f"==> {', '.join(word for word in words if word)}{_ending(self)} <=="


def _ending(part: LogPart) -> str:
    if part.known is None or part.conductor:
        return ""
    end = part.known.end
    if end is None:
        return ": no end yet"
    told = [str(end.get("why") or ""), f"then: {end['deed']}" if end.get("deed") not in ("", "done", None) else ""]
    inside = ", ".join(word for word in told if word)
    return f": {end.get('end')}" + (f" ({inside})" if inside else "")


def _clock(time: float) -> str:
    return f"{datetime.fromtimestamp(time):%Y-%m-%d %H:%M:%S} {zone(time)}"


def find_parts(run: Run, entries: Sequence[Entry], rank: int, stage: str = "") -> list[LogPart]:
    """What `rank` has printed, of all jobs or of one, in the order in which they began."""
    known = [incarnation for incarnation in incarnations(entries) if stage in ("", incarnation.begin["job"])]
    by_key = {incarnation.key: incarnation for incarnation in known}
    parts, told = [], set()
    for folder in sorted(path for path in _listed(run.jobs) if path.is_dir() and "." in path.name):
        job, _, number = folder.name.rpartition(".")
        if stage not in ("", job):
            continue
        for part in [*_attempts(folder, job, number, rank, by_key), *_local(folder, job, rank, known)]:
            parts.append(part)
            told.add(part.known.key if part.known else None)
    ids = {str(key[1]) for key in told if key}
    parts += _conductors(run, known, ids, stage)
    parts += [
        LogPart(incarnation.begin["job"], (), incarnation.begin["time"], incarnation)
        for incarnation in known
        if incarnation.key not in told and (not incarnation.begin["id"].isdecimal() or incarnation.begin["id"] in ids)
    ]
    order = {id(incarnation): number for number, incarnation in enumerate(known)}
    return sorted(parts, key=lambda part: (part.time, order.get(id(part.known), -1)))


def ranks(run: Run, stage: str = "") -> list[int]:
    """The ranks that have logs."""
    found = set()
    for path in _listed(run.jobs):
        if path.is_dir() and stage in ("", path.name.rpartition(".")[0]):
            names = [
                file.name for file in [*_listed(path), *(file for each in _listed(path) for file in _listed(each))]
            ]
            matches = [RANK_LOG.fullmatch(name) or LOCAL_LOG.fullmatch(name) for name in names]
            found |= {int(match[1]) for match in matches if match}
    return sorted(found)


def _attempts(
    folder: Path, job: str, id: str, rank: int, by_key: dict[tuple[object, ...], Incarnation]
) -> Iterator[LogPart]:
    """The attempts at a job on Slurm: <job>.<id>/<restart>.<attempt>/rank<k>.log."""
    for path in _listed(folder):
        match, log = ATTEMPT.fullmatch(path.name), path / f"rank{rank}.log"
        if match and log.is_file():
            known = by_key.get((job, id, int(match[1]), int(match[2])))
            yield LogPart(job, (log,), known.begin["time"] if known else log.stat().st_mtime, known)


def _local(folder: Path, job: str, rank: int, known: Sequence[Incarnation]) -> Iterator[LogPart]:
    """One start of a job's processes on this machine: <job>.<k>/<pid>_<rank>_log.out and .err."""
    files = [path for path in _listed(folder) if (match := LOCAL_LOG.fullmatch(path.name)) and int(match[1]) == rank]
    if not files:
        return
    start = min(path.stat().st_mtime for path in _listed(folder))  # submitit's own file is written before the start
    own = [each for each in known if each.begin["job"] == job and not each.begin["id"].isdecimal()]
    begun = [each for each in own if each.begin["time"] <= start + 1]
    yield LogPart(job, tuple(sorted(files, reverse=True)), start, begun[-1] if begun else None)


def _conductors(run: Run, known: Sequence[Incarnation], ids: set[str], stage: str) -> Iterator[LogPart]:
    """The logs of submitted jobs of which no rank has left one."""
    logs: dict[str, list[Path]] = {}
    for path in _listed(run.jobs):
        if (match := CONDUCTOR_LOG.fullmatch(path.name)) and match[1] not in ids:
            logs.setdefault(match[1], []).append(path)
    names = {each.begin["id"]: each for each in reversed(known)}
    jobs = {id: job for job, id in submitted(run).items()}
    for id, files in logs.items():
        start = names.get(id)
        job = start.begin["job"] if start else jobs.get(id, "" if stage else f"job {id}")
        if job and stage in ("", job):
            time = start.begin["time"] if start else min(path.stat().st_mtime for path in files)
            yield LogPart(job, tuple(sorted(files, reverse=True)), time, start, conductor=True)


class Reader:
    """Reads a growing log: the lines that were completed since the last call, without submitit's own remarks."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def lines(self, rest: bool = False) -> list[str]:
        """The new lines; with `rest` also the last one, which has no end."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content if rest else content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        lines = whole.decode("utf-8", "replace").splitlines()
        return [line for line in lines if not SUBMITIT_LINE.match(line) and not line.startswith("submitit ")]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
