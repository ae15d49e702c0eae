"""Checks of what the site allows: Slurm itself, partition, account, limits, and the user's own settings."""

import re
from collections.abc import Iterator

from jobs.doctor.check_resources import fitting
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, failure, good, warning
from jobs.doctor.site import Association, Partition, Qos, Site
from jobs.doctor.wish import Wish

OLDEST = (20, 11)
"""The oldest version of Slurm whose srun and sbatch have all the options that are used, as their release notes say."""


def check_slurm(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Its programs are there, its controller answers, and its version has what is used."""
    if missing := [name for name in Facts.programs if name not in facts.programs]:
        yield failure("slurm", f"{', '.join(missing)} not found", "give the command on a login node of the site")
        return
    if not facts.site.answers:
        yield warning(
            "slurm", "the controller (slurmctld) does not answer, so that nothing of the site was checked",
            "try `scontrol ping`; give the command again when it answers",
        )  # fmt: skip
        return
    found = re.search(r"(\d+)\.(\d+)", facts.site.version)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        yield warning(
            "slurm", f"version {found[0]} is older than {OLDEST[0]}.{OLDEST[1]}, with which this was never tried",
            "look at the scripts with --dry-run, and give `doctor --probe`",
        )  # fmt: skip
    else:
        yield good("slurm", f"{facts.site.version or 'some version'}, the controller answers")


def check_partition(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Those of both kinds of jobs exist, are up, and let this user in."""
    if not facts.site.answers:
        return
    names = {"partition": wish.partition}
    if wish.cluster.cpu_partition:
        names["cpu_partition"] = wish.cluster.cpu_partition
    for about, name in names.items():
        partition = facts.site.partition(wish) if about == "partition" else facts.site.partitions.get(name)
        if partition is None:
            known = ", ".join(sorted(facts.site.partitions)) or "none that you may see"
            what = f"there is no partition {name!r}" if name else "no partition is given, and the site has no default"
            yield failure(about, f"{what} (there are {known})", f"give another {about} in the cluster configuration")
        else:
            yield from _check_state(about, partition)
            yield from _check_allowed(about, partition, wish, facts)


def _check_state(about: str, partition: Partition) -> Iterator[Finding]:
    other = f"choose another {about}, or ask the site's staff"
    if partition.state in ("INACTIVE", "DRAIN"):
        yield failure(about, f"{partition.name} takes no new jobs (state {partition.state})", other)
    elif partition.state == "DOWN":
        yield warning(about, f"{partition.name} starts no jobs now (state DOWN); they would wait", other)
    elif partition.root_only:
        yield failure(about, f"{partition.name} takes jobs of root alone", other)
    elif partition.reservation_only:
        yield warning(
            about, f"{partition.name} takes only jobs with a reservation", "give it by sbatch: {reservation: NAME}"
        )
    else:
        yield good(about, f"{partition.name} is up")


def _check_allowed(about: str, partition: Partition, wish: Wish, facts: Facts) -> Iterator[Finding]:
    account, qos = wish.chosen("account"), wish.chosen("qos")
    accounts = [account] if account else [each.account for each in facts.site.associations or ()]
    if partition.allow_accounts and accounts and not set(accounts) & set(partition.allow_accounts):
        yield failure(
            "account", f"{about} {partition.name} takes only accounts {', '.join(partition.allow_accounts)}",
            "give one of them as account, or choose another partition",
        )  # fmt: skip
    elif account and account in partition.deny_accounts:
        yield failure("account", f"{about} {partition.name} refuses account {account}", "give another account")
    if partition.allow_groups and facts.groups and not set(facts.groups) & set(partition.allow_groups):
        yield failure(
            about, f"{partition.name} takes only members of the groups {', '.join(partition.allow_groups)}",
            "choose another partition, or ask the site's staff to be made a member",
        )  # fmt: skip
    if qos and ((partition.allow_qos and qos not in partition.allow_qos) or qos in partition.deny_qos):
        yield failure(
            "qos", f"{about} {partition.name} does not take qos {qos}",
            f"choose one of {', '.join(partition.allow_qos) or 'the others'}, or another partition",
        )  # fmt: skip


def check_account(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Account and quality of service are known, and this user may have them."""
    site, account, qos = facts.site, wish.chosen("account"), wish.chosen("qos")
    if not site.answers:
        return
    if site.associations is None:
        if account or qos:
            yield good("account", "Slurm keeps no accounts here, or does not tell; account and qos are not checked")
        return
    own = associations(wish, site)
    if not own:
        known = sorted({each.account for each in site.associations})
        if account or not known:
            what = f"account {account!r}" if account else "any account"
            tell = f"give one of {', '.join(known)}" if known else "ask the site's staff"
            yield failure("account", f"you may not charge {what} in this partition", f"{tell} as account")
            return
    if account:
        yield good("account", f"you may charge {account}")
    if not qos:
        return
    allowed = sorted({name for each in own for name in each.qos})
    if site.qos is not None and qos not in site.qos:
        yield failure("qos", f"there is no qos {qos!r}", f"choose one of {', '.join(allowed or sorted(site.qos))}")
    elif allowed and qos not in allowed:
        yield failure("qos", f"you may not use qos {qos!r}", f"choose one of {', '.join(allowed)}")
    else:
        yield good("qos", f"you may use {qos}")


def associations(wish: Wish, site: Site) -> list[Association]:
    """Those of the user's that count for the job."""
    account, partition = wish.chosen("account"), wish.partition
    found = [each for each in site.associations or () if account in ("", each.account)]
    return [each for each in found if each.partition in ("", partition)]


def qualities(wish: Wish, site: Site) -> list[Qos]:
    """Whose limits count for the job: the one that it asks for, and that of the partition."""
    partition = site.partition(wish)
    names = [wish.chosen("qos"), partition.qos if partition is not None else ""]
    return [site.qos[name] for name in names if site.qos is not None and name in site.qos]


def check_time_limit(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """It is within those of partition, qos and account, and leaves time to train."""
    partition = facts.site.partition(wish)
    if partition is None:
        return
    assert wish.cluster.time_hours is not None
    asked = wish.cluster.time_hours * 3600
    limits = [(partition.max_time, f"partition {partition.name}")]
    limits += [(each.max_wall, f"qos {each.name}") for each in qualities(wish, facts.site)]
    walls = [each.max_wall for each in associations(wish, facts.site)]
    if walls and None not in walls:
        limits.append((max(wall for wall in walls if wall is not None), "your account"))
    known = [(limit, of) for limit, of in limits if limit is not None]
    tightest, of = min(known, default=(float("inf"), ""))
    startup = facts.measured.startup
    if asked > tightest:
        yield failure(
            "time limit", f"{spoken(asked)} is above that of {of}, {spoken(tightest)}",
            f"set time_hours to {tightest / 3600:g}: a job that reaches it comes back and goes on",
        )  # fmt: skip
    elif startup is not None and asked < 4 * (startup + wish.cluster.signal_seconds):
        yield warning(
            "time limit", f"of {spoken(asked)} the start takes {spoken(startup)} and the warning comes "
            f"{wish.cluster.signal_seconds} s before the end: little is left to train", "set a larger time_hours",
        )  # fmt: skip
    else:
        yield good(
            "time limit", f"{spoken(asked)}" + (f"; {of} allows {spoken(tightest)}" if known else "; any is allowed")
        )


def check_limits(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """So many jobs, nodes and GPUs may one user have."""
    partition = facts.site.partition(wish)
    if partition is not None and partition.max_nodes is not None and partition.max_nodes < wish.cluster.nodes:
        yield failure(
            "limits", f"partition {partition.name} gives a job at most {partition.max_nodes} of the "
            f"{wish.cluster.nodes} nodes", "set nodes lower, or choose another partition",
        )  # fmt: skip
    for each in qualities(wish, facts.site):
        asked = wish.gpus * wish.cluster.nodes
        if each.gpus is not None and each.gpus < asked:
            yield failure(
                "limits", f"qos {each.name} gives {each.gpus} GPUs at most, not {asked}",
                "set nodes or gpus_per_node lower, or choose another qos",
            )  # fmt: skip
    submit = [each.max_submit for each in qualities(wish, facts.site)]
    submit += [each.max_submit for each in associations(wish, facts.site)]
    most = min((limit for limit in submit if limit is not None), default=None)
    if most is not None and most < wish.jobs:
        yield failure(
            "limits", f"{wish.jobs} jobs are submitted together, but you may have {most} at once",
            "train fewer runs at once, or with --until train; or choose another qos",
        )  # fmt: skip


def check_sbatch(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """What `sbatch --test-only` says to a stage's job with all its options."""
    trial = facts.site.test
    if trial is None:
        if facts.site.answers:
            yield warning(
                "sbatch", "`sbatch --test-only` does not answer in time, so that the options were not tried",
                "give the command again",
            )  # fmt: skip
        return
    if trial.accepted:
        yield good("sbatch", "takes the job as it would be submitted")
    elif not _explained(wish, facts):
        yield failure(
            "sbatch", f"refuses the job: {trial.text}", "adapt the cluster configuration; --dry-run shows the script"
        )


def _explained(wish: Wish, facts: Facts) -> bool:
    """Whether what is refused would be taken if nodes that are out of service came back: sbatch itself takes it too."""
    assert facts.site.test is not None
    nodes, _ = fitting(wish, facts)
    usable = [node for node in nodes if node.usable]
    partition = facts.site.partition(wish)
    down = partition is not None and partition.state == "DOWN"
    lacking = len(nodes) >= wish.cluster.nodes > len(usable)
    return (lacking or down) and "configuration is not available" in facts.site.test.text


def check_environment(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """What the user has set for all their jobs and that goes over the site's defaults here."""
    for name, value in wish.overrides().items():
        key = name.removeprefix("SBATCH_").lower()
        yield warning(
            "environment", f"{name}={value} is used, since the cluster configuration gives no {key}",
            f"write it into the cluster configuration ({key}), or unset it",
        )  # fmt: skip


def spoken(seconds: float) -> str:
    """A time in words."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.4g} h"
