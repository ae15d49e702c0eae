"""All checks, in the order in which they are told: each a function of what is asked for and of what is known."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from jobs.doctor.check_interruptions import check_preemption, check_requeue, check_signal, check_warning_time
from jobs.doctor.check_limits import check_account, check_limits, check_time_limit
from jobs.doctor.check_place import check_folders, check_python, check_room, check_shared_memory, check_writing
from jobs.doctor.check_resources import check_architecture, check_nodes
from jobs.doctor.check_site import check_environment, check_partition, check_sbatch, check_slurm
from jobs.doctor.check_software import (
    check_encoders,
    check_machine,
    check_measured,
    check_network,
    check_offline,
    check_store,
)
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, badness
from jobs.doctor.wish import Wish

Check = Callable[[Wish, Facts], Iterable[Finding]]

OF_SLURM: tuple[Check, ...] = (
    check_slurm,
    check_partition,
    check_account,
    check_time_limit,
    check_limits,
    check_nodes,
    check_sbatch,
    check_environment,
    check_preemption,
    check_warning_time,
    check_signal,
    check_requeue,
    check_python,
    check_offline,
    check_network,
)
OF_THIS_MACHINE: tuple[Check, ...] = (check_machine, check_shared_memory)
OF_BOTH: tuple[Check, ...] = (
    check_architecture,
    check_encoders,
    check_store,
    check_folders,
    check_writing,
    check_room,
    check_measured,
)


def check(wish: Wish, facts: Facts) -> list[Finding]:
    """What all checks find that make sense where the jobs run; of several partitions, in the best of them."""
    chosen = OF_SLURM if wish.slurm else OF_THIS_MACHINE
    looked = [
        [finding for each in (*chosen, *OF_BOTH) for finding in each(one, facts)] for one in _narrowed(wish, facts)
    ]
    return min(looked, key=badness)


def _narrowed(wish: Wish, facts: Facts) -> list[Wish]:
    """The wish with each of its partitions alone, where it has several: a job starts in the one that can have it."""
    if len(wish.partitions) < 2:
        return [wish]
    known = [name for name in wish.partitions if name in facts.site.partitions]
    return [replace(wish, only=name) for name in known or wish.partitions]
