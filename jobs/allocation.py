"""What Slurm has given to this process, why it is taken away, and how it is handed back."""

import os
import time
from dataclasses import dataclass

from jobs import scontrol
from jobs.why import CANCELLED, REQUEUED, why

ASK_AGAIN = 2.0  # seconds between two questions to a Slurm that does not answer or refuses
PATIENCE = 120.0  # seconds after which a job that Slurm neither explains nor ends goes on


@dataclass(frozen=True)
class Allocation:
    """What Slurm has given: the job's id, and how often it has been taken back and given anew."""

    job_id: str
    restart: int

    @classmethod
    def here(cls) -> "Allocation":
        """That of this process."""
        return cls(os.environ["SLURM_JOB_ID"], int(os.environ.get("SLURM_RESTART_COUNT", "0")))

    def why(self) -> str:
        """What has happened to the job, as far as Slurm says."""
        facts = scontrol.show_job(self.job_id)
        grace = None
        if facts is not None and facts.preempt_time is not None:
            grace = scontrol.grace_time(facts.partition)
        return why(facts, self.restart, grace)

    def hand_back(self) -> str | None:
        """Have Slurm start the job again later; None, or why it refuses."""
        refusal = scontrol.requeue(self.job_id)
        if refusal is not None and "disabled" in refusal and scontrol.allow_requeue(self.job_id):
            # It came to the queue without the right to come back; its owner may give it that right.
            refusal = scontrol.requeue(self.job_id)
        return None if refusal is None or "pending" in refusal.lower() else refusal


def hand_back(allocation: Allocation, patience: float) -> str | None:
    """Have Slurm start the job again later, if it will within `patience` seconds; None, or why it refuses. "" if the
    job was cancelled while Slurm refused: it could be brought back nevertheless."""
    until = time.monotonic() + patience
    while (refusal := allocation.hand_back()) is not None and time.monotonic() < until:
        time.sleep(ASK_AGAIN)
        now = allocation.why()
        if now == REQUEUED:  # it was done, and the command ended by it before it could say so
            return None
        if now == CANCELLED:
            return ""
    return refusal
