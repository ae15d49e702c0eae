"""Checks of what the probe's job has found from inside of its nodes."""

from collections.abc import Iterator

from jobs.doctor.check_interruptions import KILL_WAIT
from jobs.doctor.check_place import SKEW, size
from jobs.doctor.check_resources import INSTALL
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, failure, good, spoken, warning
from jobs.doctor.gpus import runs_on
from jobs.doctor.probed import Probed, RankFacts
from jobs.doctor.wish import Wish

LATE = 2.0  # seconds until a signal is heard
LEAST_KEPT = 0.8  # share of KillWait that must have been kept
STAFF = "ask the site's staff"


def check_probe(wish: Wish, facts: Facts, probed: Probed) -> list[Finding]:
    """What all of it says."""
    if probed.refused:
        return [warning("probe", probed.refused, "look at the queue (squeue --me); try again, or another partition")]
    if probed.missing:
        ranks = ", ".join(map(str, probed.missing))
        remedy = "see that the nodes have this python and this folder (keys python, setup, wrapper)"
        return [failure("probe", f"rank {ranks} has said nothing: {probed.log}", remedy)]
    hosts = sorted({rank.host for rank in probed.ranks})
    found = [good("probe", f"ran on {', '.join(hosts)} after {spoken(probed.waited)} in the queue")]
    for check in (_torch, _meeting, _files, _places, _clocks):
        found += check(wish, facts, probed)
    found += _signals(probed)
    found += _requeue(facts, probed)
    return found


def _torch(wish: Wish, facts: Facts, probed: Probed) -> Iterator[Finding]:
    for rank in probed.ranks:
        if rank.torch_error and not rank.version:
            yield failure("torch there", f"cannot be loaded on {_who(rank)}: {rank.torch_error}", INSTALL)
            return
    for rank in probed.ranks:
        if wish.gpus and not rank.gpus:
            yield failure(
                "gpus there", f"{_who(rank)} sees none: {rank.torch_error or 'torch ' + rank.version}",
                f"see that torch is built with CUDA ({INSTALL}), and the driver (nvidia-smi on the node)",
            )  # fmt: skip
            return
        lacking = [number for number in rank.capabilities if not runs_on(rank.architectures, number)]
        if lacking:
            yield failure(
                "torch there", f"{rank.version} carries no code for {rank.gpus[0]} (sm_{lacking[0]}) of {_who(rank)}",
                INSTALL,
            )  # fmt: skip
            return
        if not rank.precision:
            yield failure("gpus there", f"{_who(rank)} cannot compute: {rank.torch_error}", f"{STAFF} about this node")
            return
    first = probed.ranks[0]
    where = f"{first.gpus[0]}, {first.precision}" if wish.gpus and first.gpus else f"CPU, {first.precision}"
    slowest = max(rank.import_seconds or 0.0 for rank in probed.ranks)
    yield good("torch there", f"{first.version} computes ({where}); loaded in {spoken(slowest)}")


def _meeting(wish: Wish, facts: Facts, probed: Probed) -> Iterator[Finding]:
    apart = [rank for rank in probed.ranks if rank.precision and not rank.exchange]
    if apart:
        yield failure(
            "meeting", f"{_who(apart[0])}: {apart[0].torch_error or 'the sum over all ranks is wrong'}",
            "set network_interface (`ip -br link` on a node), or ask whether nodes reach each other's ports 20000 on",
        )  # fmt: skip
    elif len(probed.ranks) > 1 and all(rank.exchange for rank in probed.ranks):
        slowest = max(rank.meeting or 0.0 for rank in probed.ranks)
        yield good("meeting", f"{len(probed.ranks)} ranks met and exchanged numbers in {spoken(slowest)}")


def _files(wish: Wish, facts: Facts, probed: Probed) -> Iterator[Finding]:
    for rank in probed.ranks:
        if rank.write_error or rank.place_error:
            yield failure(
                "files there",
                f"{_who(rank)} cannot write to the run directory ({rank.write_error or rank.place_error})",
                "choose other --runs",
            )  # fmt: skip
            return
        if rank.unseen:
            yield failure(
                "files there", f"{_who(rank)} does not see what rank {rank.unseen[0]} has written to the run directory",
                "choose other --runs, on a file system that all nodes share",
            )  # fmt: skip
            return
    if any(rank.shared_lock in ("free", "none") for rank in probed.ranks):
        yield warning(
            "files there", "a lock on the run directory is not noticed by the other ranks",
            "ask for a mount with locks (NFS: without nolock; Lustre: with flock)",
        )  # fmt: skip
        return
    yield good("files there", "all ranks write to the run directory and see each other's files")


def _places(wish: Wish, facts: Facts, probed: Probed) -> Iterator[Finding]:
    unreadable = {"store there": "store_error", "weights there": "weights_error"}
    for about, name in unreadable.items():
        for rank in probed.ranks:
            if error := getattr(rank, name):
                yield failure(about, f"{_who(rank)} cannot read it: {error}", "put it on a file system that nodes see")
                break
    staged = [rank for rank in probed.ranks if rank.stage_in]
    needed = facts.store.bytes if facts.store is not None else 0
    if errors := [rank for rank in staged if rank.stage_in_error]:
        yield warning(
            "stage-in", f"{_who(errors[0])}: {errors[0].stage_in_error}; the store would be read where it lies",
            "set stage_in to a folder that the nodes have ($TMPDIR, /dev/shm, /scratch)",
        )  # fmt: skip
    elif short := [rank for rank in staged if rank.stage_in_free is not None and rank.stage_in_free < 1.1 * needed]:
        yield warning(
            "stage-in", f"{short[0].stage_in} of {_who(short[0])} has {size(short[0].stage_in_free or 0)} for a store "
            f"of {size(needed)}; it would be read where it lies", "set stage_in to a larger folder of the nodes",
        )  # fmt: skip
    elif staged:
        yield good("stage-in", f"{staged[0].stage_in} has {size(staged[0].stage_in_free or 0)}")


def _clocks(wish: Wish, facts: Facts, probed: Probed) -> Iterator[Finding]:
    own = facts.written.skew if facts.written is not None else 0.0
    worst = max(probed.ranks, key=lambda rank: abs(rank.skew - own))
    if abs(worst.skew - own) > SKEW:
        yield warning(
            "clock there", f"that of {worst.host} differs by {abs(worst.skew - own):.0f} s from this machine's",
            f"{STAFF} to set the clocks (NTP)",
        )  # fmt: skip


def _signals(probed: Probed) -> Iterator[Finding]:
    deaf = [rank for rank in probed.ranks if rank.rank not in probed.heard]
    if deaf:
        yield failure(
            "signal there",
            f"{len(deaf)} of {len(probed.ranks)} ranks did not hear USR2, which comes before a time limit",
            "see that wrapper and setup start python with exec, so that signals reach it",
        )  # fmt: skip
        return
    slowest = max(probed.heard.values(), default=0.0)
    if slowest > LATE:
        yield warning("signal there", f"USR2 took {spoken(slowest)}", "set a larger signal_seconds")
    else:
        yield good("signal there", f"all ranks heard USR2, the last after {1000 * slowest:.0f} ms")


def _requeue(facts: Facts, probed: Probed) -> Iterator[Finding]:
    if probed.requeue_refused:
        yield failure(
            "requeue there", f"Slurm does not take the job back ({probed.requeue_refused})",
            f"{STAFF} to allow it; until then give `resume` after each interruption",
        )  # fmt: skip
        return
    if probed.pending is None:
        yield failure("requeue there", "the requeued job did not come back to the queue", f"{STAFF}")
        return
    right = ", after it had given itself the right" if probed.given else ""
    later = f"; may start {spoken(probed.delay)} later" if probed.delay is not None else ""
    again = f"; ran again after {spoken(probed.back)}" if probed.back is not None else ""
    yield good(
        "requeue there", f"back in the queue with the same id after {spoken(probed.pending)}{right}{later}{again}"
    )
    silent = [rank for rank in probed.ranks if rank.rank not in probed.told]
    if silent:
        yield warning(
            "kill there", f"{len(silent)} of {len(probed.ranks)} ranks were not told (TERM) that they are to be killed",
            "save more often (checkpoint.interval): what was trained since the last checkpoint is lost",
        )  # fmt: skip
        return
    kill_wait = facts.site.number("KillWait", KILL_WAIT)
    if probed.lived is None:
        yield warning("kill there", f"ranks lived on long after KillWait ({kill_wait:g} s)", f"{STAFF} about this node")
    elif probed.lived < LEAST_KEPT * kill_wait:
        yield warning(
            "kill there", f"ranks were killed {spoken(probed.lived)} after TERM, though KillWait is {kill_wait:g} s",
            f"set checkpoint.grace={max(1, int(probed.lived))}",
        )  # fmt: skip
    else:
        slowest = max(probed.told.values(), default=0.0)
        yield good("kill there", f"TERM came after {1000 * slowest:.0f} ms, the kill {spoken(probed.lived)} after it")


def _who(rank: RankFacts) -> str:
    return f"rank {rank.rank} on {rank.host}"
