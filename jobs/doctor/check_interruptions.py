"""Checks of what happens to a job that is taken away: how it is told, how long it has, and how it comes back."""

import re
from collections.abc import Iterator

from agl_core.durable.exits import INTERRUPTED
from jobs.doctor.check_limits import job_qos
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, failure, good, spoken, warning
from jobs.doctor.site import Site
from jobs.doctor.wish import Wish

KILL_WAIT, CRED_EXPIRE = 30.0, 120.0  # Slurm's defaults, seconds
LONG_DELAY = 900.0  # seconds
LEAST_SAVE = 5.0  # seconds that are taken for a save where none has been measured


def check_preemption(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """A job that is preempted is told, and comes back."""
    partition = facts.site.partition(wish)
    if partition is None:
        return
    mode, grace = preemption(wish, facts.site)
    after = f"after a grace of {grace:g} s" if grace else "at once"
    if "SUSPEND" in mode or "GANG" in mode:
        yield warning(
            "preemption", f"mode {mode}: jobs are stopped on their node and wait there; the processes of a job that is "
            "stopped on one node only lose each other, and its GPUs' memory stays taken",
            "choose a partition that requeues, or ask the site's staff",
        )  # fmt: skip
    elif mode == "CANCEL" and not grace:
        yield warning(
            "preemption", "mode CANCEL without a grace: Slurm warns and does not bring the job back; it hands itself "
            "back in the seconds before it is killed (KillWait)",
            "choose a partition that requeues or has a grace; `doctor --probe` tries how long there is",
        )  # fmt: skip
    elif mode == "CANCEL":
        yield good(
            "preemption",
            f"mode CANCEL: Slurm does not bring the job back; it hands itself back in its grace of {grace:g} s",
        )
    elif mode == "REQUEUE":
        user = "preempt_send_user_signal" in facts.site.config.get("SlurmctldParameters", "")
        sent = "USR2 and TERM" if user else "TERM"
        yield good("preemption", f"mode REQUEUE: told by {sent}, taken {after}, and back in the queue by itself")
    else:
        yield good("preemption", "jobs there are not preempted")


def preemption(wish: Wish, site: Site) -> tuple[str, float]:
    """Mode of preemption and grace, seconds, of the job: those of its partition or of its quality of service."""
    kind, general = site.config.get("PreemptType", ""), site.config.get("PreemptMode", "OFF").upper()
    partition = site.partition(wish)
    if partition is None or kind.endswith("none"):
        return "OFF", 0.0
    if kind.endswith("qos"):
        qos = job_qos(wish, site)
        own = qos.preempt_mode if qos is not None and qos.preempt_mode not in ("", "CLUSTER") else general
        return own, qos.grace_time if qos is not None else 0.0
    return partition.preempt_mode or general, partition.grace_time


def check_warning_time(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """A step and a save fit between a warning and the kill, and checkpoint.grace is no longer than that."""
    if not facts.site.answers or facts.site.partition(wish) is None:
        return
    kill_wait = facts.site.number("KillWait", KILL_WAIT)
    _, grace = preemption(wish, facts.site)
    given = grace + kill_wait
    said = f"KillWait {kill_wait:g} s" + (f" after a grace of {grace:g} s" if grace else "")
    leaving = facts.measured.leaving if wish.trains else None
    needed = leaving if leaving is not None else LEAST_SAVE
    taken = f"the last save took {spoken(needed)}" if leaving is not None else f"a save takes {LEAST_SAVE:g} s or more"
    if leaving is not None:
        taken = f"a step and a save took {spoken(needed)} in run {facts.measured.run}"
    if needed > given:
        yield warning(
            "warning time", f"{said}: {taken}, so that what was trained since the last checkpoint is lost",
            "save more often (checkpoint.interval=auto), and to a faster disk; or choose a partition with a grace",
        )  # fmt: skip
        return
    config = wish.config
    if config is not None and wish.trains and config.checkpoint.grace > given:
        yield warning(
            "warning time", f"checkpoint.grace is {config.checkpoint.grace:g} s, but the site kills after {given:g} s "
            f"({said})", f"set checkpoint.grace={given:g}: a save that does not fit is not begun then",
        )  # fmt: skip
        return
    yield good("warning time", f"{said}; {taken if leaving is not None else 'no save was measured yet'}")


def check_signal(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """The warning before the time limit comes early enough."""
    leaving, asked = facts.measured.leaving if wish.trains else None, wish.cluster.signal_seconds
    if leaving is not None and asked < leaving:
        own = facts.measured.run in wish.own  # another run may be of a slower place, or of a larger network
        yield (failure if own else warning)(
            "signal", f"signal_seconds is {asked}, but a step and a save take {spoken(leaving)} "
            f"(run {facts.measured.run})", f"set signal_seconds to {int(2 * leaving) + 1} or more",
        )  # fmt: skip
    elif leaving is not None and asked < 2 * leaving:
        yield warning(
            "signal", f"signal_seconds is {asked}, and a step and a save take {spoken(leaving)} already",
            f"set signal_seconds to {int(2 * leaving) + 1} or more",
        )  # fmt: skip
    else:
        yield good("signal", f"USR2 comes {asked} s before the time limit")


def check_requeue(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """A job may come back, and soon."""
    config = facts.site.config
    if not facts.site.answers:
        return
    if config.get("JobRequeue") == "0":
        yield warning(
            "requeue", "the site's default is that no job comes back (JobRequeue=0); these ask for it (--requeue) and "
            "give themselves the right where it is taken",
            "give `doctor --probe`, which tries whether that works here",
        )  # fmt: skip
    if str(INTERRUPTED) in _codes(config.get("RequeueExitHold", "")):
        yield failure(
            "requeue", f"exit code {INTERRUPTED}, with which interrupted jobs leave, has them held (RequeueExitHold)",
            "ask the site's staff to take it out of RequeueExitHold",
        )  # fmt: skip
    found = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
    delay = (float(found[1]) if found else CRED_EXPIRE) + 1
    if delay > LONG_DELAY:
        yield warning(
            "requeue delay", f"a job that comes back waits {spoken(delay)} before it may start (cred_expire)",
            "each interruption costs at least so long: ask the site's staff for a shorter one",
        )  # fmt: skip
    else:
        yield good("requeue delay", f"a job that comes back may start after {delay:g} s")


def _codes(text: str) -> set[str]:
    """The exit codes of a list such as 1-3,75."""
    found: set[str] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= {str(code) for code in range(int(first), int(last or first) + 1)}
    return found
