"""Checks of folders: whether compute nodes see them, whether there is room, and whether they can do what is needed."""

from collections.abc import Iterator

from agl_core.config import TrainConfig
from jobs.doctor.facts import PYTHON, RUNS, STORE, WEIGHTS, Facts
from jobs.doctor.findings import Finding, failure, good, warning
from jobs.doctor.place import IN_MEMORY, Folder
from jobs.doctor.software import python_of
from jobs.doctor.wish import Wish

SKEW = 5.0  # seconds
COPIES = {
    False: 3,
    True: 4,
}  # of the weights in a checkpoint: themselves, two moments, and their average if there is one
LEAST_FILES = 10_000
LEAST_ROOM = 1 << 28  # bytes
FEW_WORKER_BYTES = 64 << 20  # of shared memory for each data loading process


def check_folders(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Compute nodes see the run directory with its copy of the code, the store and the weights."""
    names = {RUNS: "run directory", STORE: "store", WEIGHTS: "weights"}
    keys = {RUNS: "--runs", STORE: "--store", WEIGHTS: "--weights-cache"}
    for name, about in names.items():
        folder = facts.folders.get(name)
        if folder is None:
            if f"folder {name}" in facts.silent:
                yield warning(about, "its file system does not answer in time", "try `df` on it; ask the site's staff")
        elif (unseen := hidden(folder, wish, facts)) is not None:
            yield warning(
                about, f"{folder.path} {unseen}", f"choose a folder of a shared file system with {keys[name]}"
            )
        elif name == RUNS:
            yield good(about, f"{folder.path} on {folder.kind or 'an unknown file system'}")


def hidden(folder: Folder, wish: Wish, facts: Facts) -> str | None:
    """Why compute nodes may not see a folder, in words; None if there is no such sign."""
    if not wish.slurm or folder.network or one_machine(wish, facts):
        return None
    if folder.kind in IN_MEMORY:
        return f"lies in this machine's memory ({folder.kind}), which compute nodes do not see"
    if folder.kind:
        return f"lies on a disk of this machine ({folder.kind} at {folder.mount}), which compute nodes may not see"
    return None


def one_machine(wish: Wish, facts: Facts) -> bool:
    """Whether all nodes of the partition, or of the site where there is no such one, are this very machine."""
    partition = facts.site.partition(wish)
    nodes = facts.site.nodes_of(partition.name) if partition is not None else facts.site.nodes
    return bool(nodes) and all({node.name, node.address} & set(facts.own_names) for node in nodes)


def check_python(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Compute nodes see the interpreter and its packages."""
    if wish.cluster.wrapper:
        yield good("python", f"is that inside of {wish.cluster.wrapper[0]}: `doctor --probe` tries it")
        return
    if not wish.slurm:
        return
    found = [folder for name, folder in sorted(facts.folders.items()) if name.startswith(PYTHON)]
    if missing := [folder for folder in found if not folder.exists]:
        yield warning(
            "python", f"{missing[0].path} does not exist here",
            "give the full path of an interpreter that the nodes have (key python); `doctor --probe` tries it there",
        )  # fmt: skip
        return
    for folder in found:
        if (unseen := hidden(folder, wish, facts)) is not None:
            yield warning(
                "python", f"{folder.path} {unseen}",
                "install the environment on a shared file system; `doctor --probe` tries whether the nodes have it",
            )  # fmt: skip
            return
    if found:
        yield good("python", python_of(wish.cluster))


def check_writing(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """The run directory can be written to, its locks are seen, and its clock is right."""
    written = facts.written
    if written is None:
        if "written" in facts.silent:
            yield warning("writing", "the run directory does not answer in time", "ask the site's staff")
        return
    if written.error:
        yield failure("writing", f"the run directory cannot be written to ({written.error})", "choose other --runs")
        return
    if facts.umask & 0o700:
        yield failure(
            "writing", f"the umask {facts.umask:03o} takes from you what you have written", "give `umask 022` before"
        )
    if written.lock == "free":
        yield warning(
            "locks", "another process does not notice a lock on the run directory's file system: two launches of the "
            "same run at once would not see each other", "give each run from one machine only, or choose other --runs",
        )  # fmt: skip
    elif written.lock == "none":
        yield warning(
            "locks", "the run directory's file system has no locks; slower ones take their place",
            "choose other --runs if there are some, or ask for a mount with locks",
        )  # fmt: skip
    elif written.lock == "taken":
        yield good("locks", "another process sees a lock on the run directory's file system")
    yield from _check_clocks(facts)


def _check_clocks(facts: Facts) -> Iterator[Finding]:
    assert facts.written is not None
    clocks = {"the file server's": facts.written.skew, "slurmctld's": facts.site.clock or 0.0}
    wrong = {whose: skew for whose, skew in clocks.items() if abs(skew) > SKEW}
    for whose, skew in wrong.items():
        yield warning(
            "clock", f"{whose} is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's: times of "
            "jobs and of files do not fit together", "ask the site's staff to set the clocks (NTP)",
        )  # fmt: skip
    if not wrong:
        yield good("clock", "agrees with the file server's")


def check_room(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """There is room for the checkpoints that are kept, on the disk and in the user's quota."""
    folder = facts.folders.get(RUNS)
    if folder is None:
        return
    needed = sum(_to_come(config, wish, facts) for config in wish.configs)
    quota = facts.quota
    rooms = [(folder.free, f"{folder.mount or 'the disk'} has")]
    if quota is not None and quota.sure:
        rooms.append((quota.left, "your quota has"))
    remedy = "free some space, choose other --runs, or keep fewer (checkpoint.keep, checkpoint.keep_best)"
    if known := [(room, whose) for room, whose in rooms if room is not None]:
        room, whose = min(known)
        told = f"{whose} {size(room)} left" + (f", checkpoints take {size(needed)} more" if needed else "")
        if room < needed or room < LEAST_ROOM:
            yield failure("disk", told, remedy)
        elif room < 2 * needed:
            yield warning("disk", told, remedy)
        else:
            yield good("disk", told)
    if quota is not None and not quota.sure and quota.left is not None and quota.left < max(needed, LEAST_ROOM):
        yield warning("quota", f"one of your quotas, perhaps not that of {folder.path}, has {size(quota.left)} left",
                      "look at `quota -s`; " + remedy)  # fmt: skip
    counts = (folder.files, quota.files if quota is not None and quota.sure else None)
    files = min((count for count in counts if count is not None), default=None)
    if files is not None and files < LEAST_FILES:
        yield warning("files", f"only {files} files more are allowed there", "remove old files, or choose other --runs")


def _to_come(config: TrainConfig, wish: Wish, facts: Facts) -> int:
    """Bytes that the run's checkpoints will take beyond those that it has already; one is always written before an old
    one goes."""
    one, left = checkpoint_bytes(config, facts), wish.left(config)
    if one is None or not left:
        return 0
    # Beside the newest: the best one and the newest that was saved on schedule; and one that is being written.
    whole = one * (len(left) * (config.checkpoint.keep + config.checkpoint.keep_best + 1) + 1)
    return max(one, whole - facts.held.get(config.run, 0))


def checkpoint_bytes(config: TrainConfig, facts: Facts) -> int | None:
    """What one checkpoint of a run takes; None where that is not known."""
    average = any(stage.ema > 0 for stage in config.stages.values())
    parameters = facts.torch.parameters.get(config.encoder) if facts.torch is not None else None
    return facts.measured.bytes if parameters is None else 4 * COPIES[average] * parameters


def check_shared_memory(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Data loading processes of this machine have enough shared memory; containers often have 64 MB."""
    config, there = wish.config, facts.shared_memory
    if config is None or there is None:
        return
    needed = FEW_WORKER_BYTES * (config.workers or 0) * wish.cluster.processes
    if there < needed:
        yield warning(
            "shared memory", f"/dev/shm has {size(there)} for {(config.workers or 0) * wish.cluster.processes} data "
            "loading processes", "give the container more (--shm-size=8g, --ipc=host), or set fewer --workers",
        )  # fmt: skip
    else:
        yield good("shared memory", f"/dev/shm has {size(there)}")


def size(count: int) -> str:
    """Bytes in words."""
    return f"{count / 1e9:.3g} GB" if count >= 1e9 else f"{count / 1e6:.3g} MB"
