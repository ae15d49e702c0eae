"""All scenarios: what happens to a run, and how it must end all the same."""

from typing import Any

from tests.slurm.scenario import Expected, Scenario, Strike, undisturbed
from tests.slurm.tiny import EVERY

DONE = "done, done"
PREEMPTED = "interrupted, preempted, requeue"
WARNED = "interrupted, warned, requeue"
REQUEUED = "interrupted, requeued, leave"
CANCELLED = "interrupted, cancelled, leave"
CANCELLED_BY_SLURM = "interrupted, cancelled by preemption, requeue"
NOT_STARTED = "crashed, cancelled by preemption, requeue"
CONDUCTOR_DIED = "interrupted, conductor died, requeue"
CRASHED = "crashed, warned, again"
OVERTAKEN = "taken over, leave"
# Depends on whether its ranks were there already.
LATE = "interrupted, requeued, leave|crashed, requeued, leave"


def once(end: str) -> Expected:
    """Interrupted so, taken back once, and finished by the second incarnation."""
    return Expected((end, DONE), restarts=1)


def in_partition(name: str) -> dict[str, Any]:
    """A cluster configuration that differs in its partition."""
    return {"partition": name}


SHORT_LIMIT = {"time_hours": 0.016, "signal_seconds": 5}  # one minute, the least that Slurm knows
PREEMPT = Strike("preempt")

# Nobody warns the first one, and it does one step more before it sees that it is not wanted.
BESIDE = Expected((OVERTAKEN, DONE), restarts=1, lost=EVERY + 1, overlap=True)
HELD = {"sbatch": {"exclusive": True, "hold": True}}
RELEASE = Strike("release", "submitted", frozen=False)  # so that nothing has begun before the command has ended

# The lines of the site take, the first time that the stage is there, until Slurm has warned their shell. Then the ranks
# cannot be started any more.
UNTIL_PREEMPTED = """\
if [[ -z "$SLURM_RESTART_COUNT" && "$SLURM_JOB_NAME" == *-train ]]; then
  until scontrol show job "$SLURM_JOB_ID" | grep -q PreemptTime=2; do sleep 0.1; done
  sleep 1
fi"""

WHOLE = [
    Scenario(undisturbed("one", 1, 1)),
    Scenario(undisturbed("one", 1, 2), processes=2),
    Scenario(undisturbed("one", 2, 2), nodes=2, processes=2),
    Scenario(undisturbed("two", 1, 1), recipe="two"),
]
"""Nothing happens: the others are compared with these."""

INTERRUPTED = [
    # The longest ones first: they mostly wait.
    Scenario(
        "time limit",
        (Strike("time limit"),),
        Expected((WARNED, DONE), exact=False, restarts=1),
        cluster=SHORT_LIMIT,
    ),
    Scenario("slurmd killed for good", (Strike("slurmd killed"),), BESIDE),
    Scenario("node lost, its processes live on", (Strike("node lost"),), BESIDE),
    # They come to themselves when the next incarnation trains, and must not take the run from it.
    Scenario(
        "node lost while its ranks start",
        (RELEASE, Strike("node lost", "start-up")),
        Expected((OVERTAKEN, DONE), restarts=1, overlap=True),
        cluster=HELD,
    ),
    Scenario("two nodes, preempted", (PREEMPT,), once(PREEMPTED), nodes=2, processes=2),
    Scenario("two nodes, one rank killed", (Strike("kill one"),), Expected((CRASHED, DONE)), nodes=2, processes=2),
    Scenario("preempted in its grace", (PREEMPT,), once(PREEMPTED)),
    Scenario("preempted in its grace, two ranks", (PREEMPT,), once(PREEMPTED), processes=2),
    Scenario("preempted with the user's signal", (PREEMPT,), once(PREEMPTED), user_signal=True),
    Scenario("preempted without grace", (PREEMPT,), once(REQUEUED), in_partition("grace0")),
    Scenario(
        "preempted without grace, with the user's signal",
        (PREEMPT,),
        once(REQUEUED),
        in_partition("grace0"),
        user_signal=True,
    ),
    Scenario("cancelled by preemption", (PREEMPT,), once(CANCELLED_BY_SLURM), in_partition("cancelling")),
    Scenario("cancelled by preemption after a grace", (PREEMPT,), once(PREEMPTED), in_partition("cancelling_grace")),
    Scenario(
        "submitted without the right to come back",
        (Strike("forbid requeue", "submitted", frozen=False), RELEASE, PREEMPT),
        once(PREEMPTED),
        cluster=HELD,
    ),
    Scenario(
        "preempted twice",
        (PREEMPT, Strike("preempt", step=15)),
        Expected((PREEMPTED, PREEMPTED, DONE), restarts=2),
    ),
    Scenario("preempted during validation", (Strike("preempt", "validation"),), once(PREEMPTED)),
    Scenario("preempted during a checkpoint", (Strike("preempt", "checkpoint"),), once(PREEMPTED)),
    Scenario(
        "preempted while the ranks start",
        (RELEASE, Strike("preempt", "start-up", frozen=False)),
        once(PREEMPTED),
        cluster=HELD,
    ),
    Scenario(
        "preempted while the conductor starts",
        (RELEASE, Strike("preempt", "conductor starts", frozen=False)),
        Expected((LATE, DONE), restarts=1),
        cluster={**HELD, **in_partition("grace0")},
    ),
    Scenario(
        "preempted in the lines of the site",
        (RELEASE, Strike("preempt", "script runs", frozen=False)),
        Expected(restarts=1),
        cluster={**HELD, **in_partition("grace0"), "setup": ['[ -n "$SLURM_RESTART_COUNT" ] || sleep 20']},
    ),
    Scenario(
        "preempted in the lines of the site, mode CANCEL",
        (RELEASE, Strike("preempt", "script runs", frozen=False)),
        once(NOT_STARTED),
        cluster={**HELD, **in_partition("cancelling"), "setup": [UNTIL_PREEMPTED]},
    ),
    Scenario(
        "the lines of the site fail",
        expected=Expected((), states=("FAILED", "CANCELLED")),
        cluster={"setup": ["exit 3"]},
        recipe="two",
    ),
    Scenario("warned by hand", (Strike("warn"),), once(WARNED)),
    Scenario("requeued by hand", (Strike("requeue"),), once(REQUEUED)),
    Scenario(
        "requeued by hand during validation, two ranks", (Strike("requeue", "validation"),), once(REQUEUED), processes=2
    ),
    Scenario("one rank killed", (Strike("kill one"),), Expected((CRASHED, DONE)), processes=2),
    Scenario("all ranks killed", (Strike("kill all"),), Expected((CRASHED, DONE), lost=EVERY), processes=2),
    Scenario("conductor killed", (Strike("kill conductor"),), once(CONDUCTOR_DIED), processes=2),
    Scenario("node declared down", (Strike("node down"),), once(REQUEUED)),
    Scenario(
        "requeued while the store is built",
        (RELEASE, Strike("requeue at once", "store", job="prepare", slow=True)),
        once(REQUEUED),
        cluster=HELD,
        processes=2,  # those of its prediction too
        data=True,
    ),
    Scenario("a chain across a preemption", (PREEMPT,), once(PREEMPTED), recipe="two", data=True),
    Scenario(
        "a chain whose second stage is preempted",
        (Strike("preempt", job="second"),),
        once(PREEMPTED),
        recipe="two",
    ),
    Scenario(
        "cancelled in the grace of a preemption",
        (Strike("preempt and cancel"),),
        Expected((CANCELLED, DONE), states=("CANCELLED", "FAILED"), runs=2),
    ),
    Scenario("cancelled", (Strike("cancel"),), Expected((CANCELLED,), states=("CANCELLED",))),
    Scenario(
        "checkout edited between two incarnations",
        (PREEMPT, Strike("spoil checkout", "queue", frozen=False)),
        once(PREEMPTED),
        copied=True,
    ),
]

SCENARIOS = {scenario.name: scenario for scenario in (*WHOLE, *INTERRUPTED)}
