"""The site's own signals, sent to the probe's job, and what its ranks have seen of them."""

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from jobs import scontrol
from jobs.doctor.asking import run
from jobs.doctor.facts import Facts
from jobs.doctor.probed import Probed, RankFacts, last_beat, signals
from jobs.doctor.warden import BACK

HEARING = 20.0  # seconds for a signal to reach all ranks
POLL = 0.05
LONGER = 20.0  # seconds beyond KillWait until the ranks must be gone
WORTH_WAITING = 45.0  # seconds of delay up to which it is waited until the job runs again
STARTING = 30.0  # seconds for that, beyond the delay


class Strike:
    """Strikes at the job `id`, whose ranks have found `ranks` and write into `folder`."""

    def __init__(self, id: str, folder: Path, ranks: Mapping[int, RankFacts], facts: Facts) -> None:
        self._id, self._folder, self._ranks = id, folder, ranks
        self._kill_wait = facts.site.number("KillWait", 30.0)
        # Both clocks were compared with the file server's.
        own = facts.written.skew if facts.written is not None else 0.0
        self._ahead = {rank: own - found.skew for rank, found in ranks.items()}

    def user_signal(self) -> dict[int, float]:
        """Send USR2 as a time limit's warning does; seconds until each rank has heard it."""
        begun = time.time()
        run(["scancel", "--signal=USR2", self._id], scontrol.PATIENCE)
        return self._hear("SIGUSR2", begun)

    def requeue(self, probed: Probed) -> Probed:
        """Have Slurm take the job back; what the ranks are told, how long they live, and when the job is back."""
        begun = time.time()
        refusal, given = scontrol.requeue(self._id), False
        if refusal is not None and "disabled" in refusal and scontrol.allow_requeue(self._id):
            given, refusal = True, scontrol.requeue(self._id)
        if refusal is not None:
            return replace(probed, requeue_refused=refusal, given=given)
        pending = self._until(self._is_pending, HEARING)
        told = self._hear("SIGTERM", begun)
        lived = self._lived()
        delay = self._delay(begun)
        worth = pending is not None and delay is not None and delay <= WORTH_WAITING
        ran = worth and self._until((self._folder / BACK).exists, (delay or 0.0) + STARTING) is not None
        back = time.time() - begun if ran else None
        return replace(probed, given=given, pending=pending, told=told, lived=lived, delay=delay, back=back)

    def _hear(self, name: str, begun: float) -> dict[int, float]:
        heard: dict[int, float] = {}

        def all_heard() -> bool:
            for rank in self._ranks:
                times = [at - self._ahead[rank] - begun for at in signals(self._folder, rank, name)]
                if times and rank not in heard:
                    heard[rank] = max(0.0, times[0])
            return len(heard) == len(self._ranks)

        self._until(all_heard, HEARING)
        return dict(sorted(heard.items()))

    def _lived(self) -> float | None:
        """Seconds from TERM to the death of the rank that died first; None if they live on."""
        still: dict[int, float | None] = {}
        seen = time.monotonic()

        def all_silent() -> bool:
            nonlocal still, seen
            now = {rank: last_beat(self._folder, rank) for rank in self._ranks}
            if now != still:
                still, seen = now, time.monotonic()
            return time.monotonic() - seen > 2.0

        if self._until(all_silent, self._kill_wait + LONGER) is None:
            return None
        lives = []
        for rank, beat in still.items():
            told = signals(self._folder, rank, "SIGTERM")
            if beat is not None and told:
                lives.append(beat - told[0])
        return min(lives, default=None)

    def _is_pending(self) -> bool:
        facts = scontrol.show_job(self._id)
        return facts is not None and facts.restarts >= 1 and facts.state == "PENDING"

    def _delay(self, begun: float) -> float | None:
        """Seconds from the requeue until the job may start, as Slurm says."""
        facts = scontrol.show_job(self._id)
        found = re.search(r"\bEligibleTime=(\S+)", facts.text) if facts is not None else None
        try:
            return max(0.0, datetime.fromisoformat(found[1]).timestamp() - begun) if found else None
        except ValueError:
            return None

    def _until(self, there: Callable[[], bool], patience: float) -> float | None:
        """Seconds until `there` says so; None if it does not in time."""
        begun = time.monotonic()
        while time.monotonic() - begun < patience:
            if there():
                return time.monotonic() - begun
            time.sleep(POLL)
        return None
