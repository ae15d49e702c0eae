"""Checks of weights, store and environment variables, and of this machine where it is the one that trains."""

from collections.abc import Iterator

from agl_core.config import TrainConfig
from jobs.doctor.check_place import one_machine, size
from jobs.doctor.check_resources import wants_gpus
from jobs.doctor.facts import STORE, Facts
from jobs.doctor.findings import Finding, failure, good, spoken, warning
from jobs.doctor.wish import Wish


def check_encoders(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """The encoders exist, and their ImageNet weights are in the cache."""
    unknown = facts.torch.unknown if facts.torch is not None else {}
    for encoder, why in unknown.items():
        yield failure("encoder", why.rstrip("."), f"choose another --encoder than {encoder}")
    for encoder, there in facts.weights.items():
        cache = next(config.weights_cache for config in wish.configs if config.encoder == encoder)
        if there:
            yield good("weights", f"the ImageNet weights of {encoder} are in {cache}")
        elif encoder not in unknown:
            yield warning(
                "weights", f"the ImageNet weights of {encoder} are not in {cache}; a launch would fetch them first",
                f"give `python launch.py weights --encoder {encoder}` on a machine with network that has that folder",
            )  # fmt: skip


def check_offline(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Libraries do not try the network of nodes that have none."""
    value = wish.cluster.environment.get("HF_HUB_OFFLINE", wish.outside.get("HF_HUB_OFFLINE", ""))
    if value in ("1", "true", "TRUE", "yes", "on"):
        yield good("offline", "HF_HUB_OFFLINE is set: no library waits for a network")
    else:
        yield warning(
            "offline", "HF_HUB_OFFLINE is not set: on nodes without network a library may wait for it for minutes",
            'put HF_HUB_OFFLINE: "1" into environment of the cluster configuration',
        )  # fmt: skip


def check_store(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """The store is sealed, is that of the data set, and lies where it can be read fast."""
    config, store = wish.config, facts.store
    if config is None or not config.store:
        return
    if store is None:
        if "store" in facts.silent:
            yield warning("store", f"{config.store} does not answer in time", "ask the site's staff")
        return
    if store.problem:
        yield failure("store", store.problem, "give another --store, or prepare it again")
        return
    if not store.sealed:
        yield from _check_to_come(config, store.exists)
        return
    if store.strange:
        yield failure(
            "store", f"{config.store} and {config.data} differ in {store.strange} tiles",
            f"give `python launch.py prepare --data {config.data}`, or the store of this data set",
        )  # fmt: skip
        return
    folder = facts.folders.get(STORE)
    told = f"{store.tiles} tiles, {size(store.bytes)}" + (f", on {folder.kind}" if folder and folder.kind else "")
    if folder is not None and folder.slow and config.stage_in in ("", "none"):
        yield warning(
            "store", f"{told}: each crop is many small reads over the network",
            "set stage_in to the nodes' own disk or memory ($TMPDIR, /dev/shm): each job copies the store there",
        )  # fmt: skip
    elif config.stage_in not in ("", "none"):
        yield good("store", f"{told}; copied to {config.stage_in} of each node, if there is room: `--probe` looks")
    else:
        yield good("store", told)


def _check_to_come(config: TrainConfig, begun: bool) -> Iterator[Finding]:
    state = "is not finished" if begun else "does not exist yet"
    if config.data:
        yield good("store", f"{config.store} {state}: a job prepares it first")
    else:
        yield failure(
            "store", f"{config.store} {state}", "give the folder of a data set with --data, or a finished store"
        )


def check_measured(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """What is known of the times that the other checks go by."""
    found = facts.measured
    if wish.run and found.step is None and found.save is None:
        yield warning(
            "measured", f"run {wish.run} in {wish.runs} has measured nothing yet", "give another --run, or none"
        )
    elif found.step is None and found.save is None:
        yield good("measured", "no run has measured anything yet; steps and saves are not checked against limits")
    else:
        times = {"step": found.step, "save": found.save, "start-up": found.startup}
        known = ", ".join(f"{name} {spoken(value)}" for name, value in times.items() if value is not None)
        yield good("measured", f"{known} (run {found.run})")


def check_network(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Several nodes find each other, which can only be tried there."""
    if wish.nodes > 1 and not one_machine(wish, facts):
        chosen = wish.cluster.network_interface
        yield good(
            "network",
            f"nodes meet over {chosen or 'the interface that NCCL and gloo choose'}: `doctor --probe` tries it",
        )


def check_machine(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """This machine, where it is the one that trains: its GPUs and its cores."""
    cluster, config = wish.cluster, wish.config
    if facts.torch is not None and wants_gpus(wish, facts) and not facts.quick:
        there = len(facts.torch.gpus)
        needed = cluster.processes if cluster.executor == "local" else 1
        if there < max(needed, 1):
            yield failure(
                "gpus", f"torch sees {there} GPUs here, and {needed} processes need one each",
                f"set cluster.processes={max(there, 1)}, or look at the driver (nvidia-smi)",
            )  # fmt: skip
        else:
            yield good("gpus", ", ".join(facts.torch.gpus))
    if config is None:
        return
    wanted = cluster.processes * ((config.threads or 1) + (config.workers or 0))
    most = cluster.processes * max(config.threads or 1, config.workers or 0)
    if most > 2 * facts.cores:
        yield warning(
            "cores", f"{cluster.processes} processes want {wanted} threads and workers, and this machine has "
            f"{facts.cores} cores", "set fewer --workers and --threads, or fewer processes",
        )  # fmt: skip
    else:
        yield good("cores", f"{facts.cores}, for {wanted} threads and data loading processes")
