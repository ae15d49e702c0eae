"""`doctor --probe`: a job of a minute that looks from inside of its nodes, and is sent what the site sends."""

import re
import secrets
import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from submitit.slurm.slurm import _make_sbatch_string

from agl_core.errors import UserError
from agl_core.files import write_json, write_text
from jobs import scontrol
from jobs.doctor.asking import run
from jobs.doctor.check_probe import check_probe
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, shown
from jobs.doctor.probed import Probed, RankFacts, read_ranks
from jobs.doctor.site import Trial
from jobs.doctor.software import weights_of
from jobs.doctor.strike import Strike
from jobs.doctor.warden import ASK, CLUSTER
from jobs.doctor.wish import Wish
from jobs.pipeline import STAGE
from jobs.sbatch import parameters, tasks
from jobs.settings import to_yaml
from jobs.snapshot import take_snapshot

MINUTES, SIGNAL = 10, 60  # time limit of the job, and how long before it Slurm warns, seconds
LOOKING = 240.0  # seconds for all ranks to say what they have found: torch may come from a slow disk
POLL, TELL = 0.2, 15.0  # seconds between two looks, and between two lines about the queue
ENDING = 60.0  # seconds for the job to be gone
SUBMITTING = 30.0  # seconds for sbatch
LATER = 10.0  # seconds in which a job may still turn up whose sbatch did not say whether there is one
JOB_ID = re.compile(r"^(\d+)(;\S+)?$")
"""What `sbatch --parsable` prints: the id, and the cluster if there are several. Sites print greetings before it."""


def probe(wish: Wish, facts: Facts, patience: float, file: TextIO) -> list[Finding]:
    """Submit the probe, wait until it runs, at most `patience` seconds, send it signals, and say what was found; lines
    about its course go to `file`. Whatever happens, the job is cancelled and its folder removed.

    Raises:
        UserError: its folder cannot be written to.
    """
    made = [each for each in (wish.runs, *wish.runs.parents) if not each.exists()]
    folder = wish.runs / f".doctor-{secrets.token_hex(4)}"
    course = _Course(wish, facts, folder, patience, file)
    try:
        folder.mkdir(parents=True)
        return check_probe(wish, facts, course.go())
    except OSError as error:
        raise UserError(f"{folder} cannot be written to ({error.strerror}): choose other --runs") from None
    finally:
        course.clean_up()
        for empty in made:
            with suppress(OSError):
                empty.rmdir()


class _Course:
    """One probe from its submission to its end."""

    def __init__(self, wish: Wish, facts: Facts, folder: Path, patience: float, file: TextIO) -> None:
        self._wish, self._facts, self._folder = wish, facts, folder
        self._patience, self._file = patience, file
        self._ranks = tasks(wish.cluster, STAGE)
        self._id = ""
        self._name = f"agl-{folder.name.removeprefix('.')}"  # no other job has it: it tells whether there is one
        self._unsure = False
        """Whether there may be a job whose id is not known."""

    def go(self) -> Probed:
        """Do it all."""
        refusal = self._submit()
        if refusal:
            return Probed(refused=refusal)
        waited, refusal = self._wait_for_start()
        if refusal:
            return Probed(refused=refusal, waited=waited)
        self._say("runs; its ranks look around")
        found = self._wait_for_ranks()
        missing = tuple(rank for rank in range(self._ranks) if rank not in found)
        if missing:
            return Probed(waited=waited, ranks=tuple(found.values()), missing=missing, log=self._log())
        strike = Strike(self._id, self._folder, found, self._facts)
        self._say("is sent USR2, as before a time limit")
        heard = strike.user_signal()
        self._say("is requeued, as by a preemption")
        return strike.requeue(Probed(waited=waited, ranks=tuple(found.values()), heard=heard))

    def clean_up(self) -> None:
        """End the job, and remove its folder when it has gone."""
        if not self._folder.exists():
            return
        with suppress(OSError):
            (self._folder / "stop").touch()
        ids = [self._id] if self._id else self._look_up() if self._unsure else []
        if ids:
            scontrol.cancel(ids)
            run(["scancel", "--full", "--signal=KILL", *ids], scontrol.PATIENCE)
            until = time.monotonic() + ENDING
            while scontrol.queue(ids) and time.monotonic() < until:
                time.sleep(POLL)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _look_up(self) -> list[str]:
        """Ids of the jobs with this one's name, as soon as there are any: slurmctld may take a job later than sbatch
        waits for its answer."""
        until = time.monotonic() + LATER
        while True:
            asked = scontrol.call(["squeue", "--noheader", f"--name={self._name}", "--format=%A"])
            found = [line.strip() for line in asked.stdout.splitlines()] if asked is not None else []
            if (ids := [line for line in found if line.isdecimal()]) or time.monotonic() > until:
                return ids
            time.sleep(POLL)

    def _submit(self) -> str:
        """Submit the job; why that did not work, or nothing."""
        wish, folder = self._wish, self._folder
        code = take_snapshot(folder / "code")
        write_text(folder / CLUSTER, to_yaml(wish.cluster))
        write_json(folder / ASK, self._asked())
        chosen = parameters(wish.cluster, wish.job(), code) | {"job_name": self._name, "time": MINUTES}
        chosen["additional_parameters"] |= {"signal": f"USR2@{SIGNAL}", "chdir": str(folder)}
        command = f"exec {shlex.quote(sys.executable)} -u -m jobs.doctor.warden {shlex.quote(str(folder))}"
        script = folder / "probe.sh"
        write_text(script, str(_make_sbatch_string(command=command, folder=folder, **chosen)))
        self._unsure = True  # also where Ctrl-C comes before sbatch has answered
        answer = run(["sbatch", "--parsable", str(script)], SUBMITTING, wish.environment())
        if answer is None:
            return "sbatch does not answer"
        said = [found[1] for line in answer.out.splitlines() if (found := JOB_ID.match(line.strip()))]
        if answer.code != 0 and not said:
            self._unsure = Trial(False, answer.error).unsure
            return f"sbatch refuses it: {answer.error}"
        self._id = next(iter(said[-1:] or self._look_up()), "")
        if not self._id:
            return f"sbatch does not say the job's id: {answer.out or answer.error}"
        self._say("is in the queue")
        return ""

    def _asked(self) -> dict[str, Any]:
        config = self._wish.config
        if config is None:
            return {"precision": "auto", "store": "", "weights": "", "stage_in": self._wish.cluster.stage_in}
        sealed = self._facts.store is not None and self._facts.store.sealed
        weights = weights_of(config)
        return {
            "precision": config.precision,
            "store": config.store if sealed else "",
            "weights": str(weights) if weights is not None and weights.is_file() else "",
            "stage_in": config.stage_in,
        }

    def _wait_for_start(self) -> tuple[float, str]:
        """Seconds until the job runs; and why it does not, or nothing."""
        begun, told = time.monotonic(), 0.0
        while True:
            queued = scontrol.queue([self._id])
            waited = time.monotonic() - begun
            job = queued.get(self._id) if queued is not None else None
            if job is not None and job.state == "RUNNING":
                return waited, ""
            if queued is not None and job is None:
                return waited, f"the job ended before it could look around: {self._log()}"
            if waited > self._patience:
                reason = f" ({job.reason})" if job is not None and job.reason else ""
                return waited, f"the job did not start within {self._patience / 60:.3g} minutes{reason}"
            if waited - told > TELL and job is not None:
                told = waited
                expected = f", Slurm expects it to start at {job.start}" if job.start else ""
                self._say(f"waits for {waited:.0f} s ({job.reason or job.state.lower()}){expected}")
            time.sleep(POLL)

    def _wait_for_ranks(self) -> dict[int, RankFacts]:
        until = time.monotonic() + LOOKING
        while time.monotonic() < until:
            found = read_ranks(self._folder, self._ranks)
            if len(found) == self._ranks:
                return found
            queued = scontrol.queue([self._id])
            if queued is not None and self._id not in queued:
                break
            time.sleep(POLL)
        return read_ranks(self._folder, self._ranks)

    def _log(self) -> str:
        """The end of what the job has printed."""
        texts = []
        for path in sorted([*self._folder.glob("*.out"), *self._folder.glob("*.err"), *self._folder.glob("*.log")]):
            with suppress(OSError):
                texts += path.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-2:]
        return " / ".join(texts)[-300:] or "it has printed nothing"

    def _say(self, text: str) -> None:
        print(f"probe: job {self._id} {shown(text)}", file=self._file, flush=True)
