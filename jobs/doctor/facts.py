"""All that the checks look at, gathered in one place."""

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agl_core.machine import cores
from jobs.doctor import place, slurm, software
from jobs.doctor.asking import PATIENCE, side_by_side
from jobs.doctor.measured import Measured, measured_by
from jobs.doctor.place import Folder, Quota, Written
from jobs.doctor.site import Site
from jobs.doctor.software import StoreFacts, Torch
from jobs.doctor.wish import Wish
from jobs.runs import Run

QUICK, WHOLE = 2.5, 120.0
"""Seconds for all questions together. The commands among them have a little less, so that none of them stays."""
SLURM = {True: 2.3, False: PATIENCE}
"""Seconds for a command of Slurm, in the quick form and otherwise."""
TRIAL = {True: 1.2, False: PATIENCE}
"""The same for `sbatch --test-only`, which is asked only where Slurm has answered in time."""
RUNS, WEIGHTS, STORE, PYTHON, DATA = "runs", "weights", "store", "python", "data"


@dataclass(frozen=True)
class Facts:
    """What is known. programs: which of Slurm's there are; folders: where what is asked for lies, by the names above,
    python's with numbers; silent: what did not answer in time; weights: the files of ImageNet weights that exist, by
    encoder; held: bytes of the checkpoints that there are already, by name of the run; None for what was not looked
    at."""

    site: Site = field(default_factory=Site)
    programs: Sequence[str] = ("sbatch", "srun", "scontrol", "squeue", "scancel")
    folders: Mapping[str, Folder] = field(default_factory=dict)
    written: Written | None = None
    quota: Quota | None = None
    torch: Torch | None = None
    store: StoreFacts | None = None
    weights: Mapping[str, bool] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured)
    driver: str = ""
    silent: Sequence[str] = ()
    groups: Sequence[str] = ()
    cores: int = 1
    shared_memory: int | None = None
    umask: int = 0o022
    quick: bool = False
    own_names: Sequence[str] = ("localhost", "127.0.0.1")


def gather(wish: Wish, quick: bool) -> Facts:
    """Look at everything: in a few seconds where `quick`, else also at what takes longer."""
    folders = _folders(wish)
    asked: dict[str, Callable[[], Any]] = {
        **place.questions(folders, wish.runs),
        **software.questions(wish.cluster, wish.configs, wish.outside, quick),
        "measured": lambda: measured_by(wish.runs, wish.run, sorted(wish.own)),
        "held": lambda: _held(wish),
        "groups": _groups,
        "weights": lambda: {config.encoder: path.is_file() for config in wish.configs
                            if (path := software.weights_of(config)) is not None},
    }  # fmt: skip
    if wish.slurm:
        asked |= slurm.questions(wish, SLURM[quick])
    else:
        asked["shared memory"] = _shared_memory
    if not quick:
        asked["quota"] = lambda: place.quota_of(place.look(wish.runs), slurm.user_name() or str(os.getuid()))
    answers = side_by_side(asked, QUICK if quick else WHOLE)
    trial = None
    if wish.slurm and answers.get("config") is not None:  # a Slurm that does not answer is asked no more
        question = {"trial": lambda: slurm.try_sbatch(wish, TRIAL[quick])}
        trial = side_by_side(question, TRIAL[quick] + 0.2).get("trial")
    return Facts(
        site=slurm.site_of(answers, trial),
        programs=[name for name in Facts.programs if shutil.which(name)],
        folders={name: answers[f"folder {name}"] for name in folders if f"folder {name}" in answers},
        written=answers.get("written"),
        quota=answers.get("quota"),
        torch=answers.get("torch"),
        store=answers.get("store"),
        weights=answers.get("weights") or {},
        held=answers.get("held") or {},
        measured=answers.get("measured") or Measured(),
        driver=answers.get("driver") or "",
        silent=sorted(set(asked) - set(answers)),
        groups=answers.get("groups") or (),
        cores=cores(),
        shared_memory=answers.get("shared memory"),
        umask=_umask(),
        quick=quick,
        own_names=place.local_names(),
    )


def _folders(wish: Wish) -> dict[str, Path]:
    """What is asked for, by name; python's have numbers."""
    folders = {RUNS: wish.runs}
    for config in wish.configs[:1]:
        if config.store:
            folders[STORE] = Path(config.store)
        if config.data:
            folders[DATA] = Path(config.data)
        if (weights := software.weights_of(config)) is not None:
            folders[WEIGHTS] = weights.parent
    if not wish.cluster.wrapper:
        folders |= {f"{PYTHON} {number}": path for number, path in enumerate(software.python_paths(wish.cluster))}
    return folders


def _held(wish: Wish) -> dict[str, int]:
    """Bytes of the checkpoints of the stages that are left, by name of the run."""
    return {
        config.run: place.held_bytes([Run(wish.runs / config.run).checkpoints(stage) for stage in wish.left(config)])
        for config in wish.configs
    }


def _groups() -> list[str]:
    import grp

    found = []
    for number in {os.getegid(), *os.getgroups()}:
        try:
            found.append(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return sorted(found)


def _shared_memory() -> int:
    known = os.statvfs("/dev/shm")
    return known.f_bavail * known.f_frsize


def _umask() -> int:
    """That of this process; asking the system by its own call would change it for a moment."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1], 8) for line in lines if line.startswith("Umask:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0o022
