"""Mail that Slurm itself sends of the events that it knows: `notify.mail`."""

import shutil
from collections.abc import Sequence

from agl_core.config import TrainConfig
from agl_core.config.train import NotifyConfig
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.notices import GIVEN_UP, INTERRUPTION, RUN_ENDED, STAGE_ENDED, START
from jobs.pipeline import STAGE, JobSpec

TYPES = {START: ("BEGIN",), INTERRUPTION: ("REQUEUE",), GIVEN_UP: ("FAIL", "INVALID_DEPEND")}
"""What sbatch calls the events that may happen to any job."""
OPTIONS = ("mail-user", "mail-type")


def mail_options(notify: NotifyConfig, kind: str, last: bool) -> dict[str, str]:
    """The options of sbatch for a job of this kind. last: whether it is the last one of its run.

    Slurm knows of jobs only: END is what it says of one that has ended, and of one that was cancelled."""
    if not notify.mail:
        return {}
    types = [type for event in notify.events for type in TYPES.get(event, ())]
    if (STAGE_ENDED in notify.events and kind == STAGE) or (RUN_ENDED in notify.events and last):
        types.append("END")
    return {"mail-user": notify.mail, "mail-type": ",".join(dict.fromkeys(types))} if types else {}


def is_last(job: JobSpec, jobs: Sequence[JobSpec]) -> bool:
    """Whether a job is the last one of its run among those of a submission."""
    return [other for other in jobs if other.run == job.run][-1] == job


def check_notify(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Say so if the command of `notify` is not found here; raise a `UserError` where no mail can be sent, or another
    is asked for."""
    notify = config.notify
    if notify.command and shutil.which(notify.command[0]) is None:
        where = "the machines that do the jobs must have it" if cluster.executor == "slurm" else "nobody will be told"
        print(f"warning: notify.command: {notify.command[0]} is not found here, or is no program; {where}", flush=True)
    if not notify.mail:
        return
    if cluster.executor != "slurm":
        raise UserError(
            f"notify.mail is {notify.mail!r}, which Slurm writes to, but cluster {config.cluster} is none of Slurm's: "
            "give notify.mail= without a value, and use notify.command"
        )
    for option in cluster.sbatch:
        if option.replace("_", "-") in OPTIONS:
            raise UserError(
                f"notify.mail is {notify.mail!r}, but cluster {config.cluster} has sbatch.{option} already: remove one "
                "of the two"
            )
