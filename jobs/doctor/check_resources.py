"""Checks of what a job asks for on each node, against what the nodes of its partition have."""

import re
from collections.abc import Callable, Iterator

from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, failure, good, warning
from jobs.doctor.gpus import capability, runs_on
from jobs.doctor.site import Node
from jobs.doctor.wish import Wish

SHOWN = 4  # names of nodes
INSTALL = "pip install torch torchvision --index-url https://download.pytorch.org/whl/cu126"
"""The newest builds that still carry code for the V100 (sm_70); those for CUDA 12.8 and later do not."""


def check_nodes(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Enough nodes have all that is asked for, and are in service."""
    partition = facts.site.partition(wish)
    if partition is None or not facts.site.nodes:
        return
    if wish.gpus and "gpu" not in facts.site.config.get("GresTypes", "gpu").split(","):
        yield refusal(facts)(
            "gpus", "this Slurm knows no GPUs (GresTypes has no gpu)",
            "choose the site's cluster with GPUs, or set gpus_per_node to 0",
        )  # fmt: skip
        return
    nodes, lack = fitting(wish, facts)
    if lack is not None:
        yield lack
        return
    usable = [node for node in nodes if node.usable]
    asked = f"{wish.nodes} node{'s' * (wish.nodes > 1)}"
    if len(usable) < wish.nodes:
        away = [node for node in nodes if not node.usable]
        names = ", ".join(f"{node.name} ({'+'.join(node.states).lower()})" for node in away[:SHOWN])
        reasons = sorted({node.reason for node in away if node.reason})
        yield warning(
            "nodes", f"of {len(nodes)} that fit only {len(usable)} are in service, and {asked} are needed: {names}"
            + (f"; reason: {reasons[0]}" if reasons else ""),
            "the job will wait until they come back: choose another partition or constraint, or ask the site's staff",
        )  # fmt: skip
        return
    yield good("nodes", f"{len(usable)} in service have what is asked for on {asked}")
    if wish.gpus:
        types = sorted({type_ or "(no type)" for node in usable for type_ in node.gpus})
        yield good("gpus", f"{wish.gpus} on each node, of type {', '.join(types)}")


def refusal(facts: Facts, about: str = "") -> Callable[[str, str, str], Finding]:
    """How to tell that the site does not take a job: by a warning where sbatch takes that very job, and otherwise by a
    failure. about: the key that was looked at; sbatch is asked about no job of cpu_partition."""
    apart = about == "cpu_partition" and not facts.site.plugins
    return warning if facts.site.taken and not apart else failure


def fitting(wish: Wish, facts: Facts) -> tuple[list[Node], Finding | None]:
    """The nodes of the partition that have all that is asked for, in service or not; and what too few have."""
    partition = facts.site.partition(wish)
    if partition is None:
        return [], None
    nodes = facts.site.nodes_of(partition.name)
    where = f"partition {partition.name}"
    for about, has, what, remedy in _demands(wish):
        found = [node for node in nodes if has(node)]
        if len(found) < wish.nodes:
            there = f"{len(found)} of {len(nodes)} nodes" if about != "nodes" else f"{len(found)} nodes"
            text = f"{what}, but in {where} only {there} {'have that' if about != 'nodes' else 'exist'}"
            return found, refusal(facts)(about, text, remedy.format(most=_most(about, nodes, wish)))
        nodes = found
    return nodes, None


Demand = tuple[str, Callable[[Node], bool], str, str]


def _demands(wish: Wish) -> Iterator[Demand]:
    count = f"{wish.nodes} node{'s' * (wish.nodes > 1)}"
    yield "nodes", lambda node: True, f"{count} are asked for", "set nodes lower, or choose another partition"
    features = wish.chosen("constraint")
    if features:
        yield (
            "constraint", lambda node: has_features(node, features), f"constraint {features!r} is asked for on {count}",
            "features there: {most}",
        )  # fmt: skip
    if wish.gpus:
        yield (
            "gpus", lambda node: sum(node.gpus.values()) >= wish.gpus,
            f"{wish.gpus} GPUs on each of {count} are asked for",
            "set gpus_per_node and processes to {most} or less, or choose another partition",
        )  # fmt: skip
        if type_ := wish.gpu_type:
            yield (
                "gpu type", lambda node: node.gpus.get(type_, 0) >= wish.gpus,
                f"{wish.gpus} GPUs of type {type_!r} on each of {count} are asked for", "types there: {most}",
            )  # fmt: skip
    yield (
        "cores", lambda node: node.cpus >= wish.cpus, f"{wish.cpus} cores on each of {count} are asked for",
        "set cpus_per_process lower: a node there has {most} cores",
    )  # fmt: skip
    if wish.memory_gb is not None:
        megabytes = wish.memory_gb * 1024
        yield (
            "memory", lambda node: node.memory_mb >= megabytes,
            f"{wish.memory_gb:g} GB of memory on each of {count} are asked for",
            "set memory_gb lower: jobs there can have {most} GB on a node",
        )  # fmt: skip


def _most(about: str, nodes: list[Node], wish: Wish) -> str:
    """What there is instead."""
    if about == "constraint":
        return ", ".join(sorted({name for node in nodes for name in node.features})) or "none"
    if about == "gpu type":
        return ", ".join(sorted({name for node in nodes for name in node.gpus if name})) or "none is named"
    most = {
        "gpus": lambda node: sum(node.gpus.values()),
        "cores": lambda node: node.cpus,
        "memory": lambda node: node.memory_mb // 1024,
    }
    return str(max(map(most[about], nodes), default=0)) if about in most else ""


def has_features(node: Node, expression: str) -> bool:
    """Whether a node has what a constraint asks for, as far as '&', ',' and '|' say; counts and brackets, which speak
    of several nodes, are left to sbatch."""
    if re.search(r"[\[\]()*!]", expression):
        return True
    have = set(node.features)
    return any(all(name.strip() in have for name in re.split(r"[&,]", part)) for part in expression.split("|"))


def check_architecture(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """The installed torch carries code for the GPUs that the job can get."""
    torch = facts.torch
    if torch is None:
        if wish.cluster.wrapper or wish.cluster.python:
            yield good("torch", "is that of the image, or of another python: `doctor --probe` looks there")
        elif "torch" not in facts.silent:
            yield failure(
                "torch", "cannot be loaded by this python", "install the project's packages here (README, Installation)"
            )
        return
    if not wants_gpus(wish, facts):
        yield good("torch", f"{torch.version}, on the CPU")
        return
    if torch.cuda is None:
        yield failure(
            "torch", f"{torch.version} is built for CPUs alone, but GPUs are asked for",
            f"install a build with CUDA: {INSTALL}",
        )  # fmt: skip
        return
    types = gpu_types(wish, facts)
    lacking = [
        name for name in types
        if torch.architectures is not None and (number := capability(name)) is not None
        and not runs_on(torch.architectures, number)
    ]  # fmt: skip
    if lacking:
        carried = ", ".join(torch.architectures or ())
        number = capability(lacking[0]) or 0
        older = number < 75
        yield failure(
            "torch", f"{torch.version} carries no code for {lacking[0]} (sm_{number}): it has {carried}",
            f"install {'a build for CUDA 12.6' if older else 'a newer build'}: {INSTALL}",
        )  # fmt: skip
    elif torch.architectures is None:
        yield good("torch", f"{torch.version} with CUDA {torch.cuda}")
    else:
        known = [name for name in types if capability(name) is not None]
        fits = f"carries code for {', '.join(known)}" if known else "the GPUs' type is not named: `--probe` looks"
        yield good("torch", f"{torch.version} with CUDA {torch.cuda}; {fits}")
    seen = [f"NCCL {torch.nccl}" if torch.nccl else "", f"driver {facts.driver}" if facts.driver else ""]
    if any(seen):
        yield good("driver", f"{', '.join(filter(None, seen))} on this machine")


def wants_gpus(wish: Wish, facts: Facts) -> bool:
    """Whether GPUs are to be used; on this machine they are wherever there are some."""
    return wish.gpus > 0 or (not wish.slurm and wish.cluster.gpus_per_node is None and bool(facts.driver))


def gpu_types(wish: Wish, facts: Facts) -> list[str]:
    """The types of GPU that the job may get: the one asked for, by option or constraint, or those of the nodes that
    fit; on this machine those that it has."""
    if not wish.slurm:
        return list(facts.torch.gpus) if facts.torch is not None else []
    if wish.gpu_type:
        return [wish.gpu_type]
    words = [word for word in re.split(r"[&,|]", wish.chosen("constraint")) if capability(word) is not None]
    if words:
        return words
    nodes, _ = fitting(wish, facts)
    types = {name for node in nodes for name in node.gpus if name}
    features = {name for node in nodes for name in node.features if capability(name) is not None}
    return sorted(types or features)
