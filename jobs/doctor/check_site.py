"""Checks of what the site says: Slurm itself, its partitions, sbatch, and the user's own settings."""

import re
from collections.abc import Iterable, Iterator

from jobs.doctor.check_resources import fitting, refusal
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, badness, failure, good, warning
from jobs.doctor.site import Partition
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
    if facts.site.answers:
        name = wish.partition
        yield from _check_one("partition", name, facts.site.partition(wish), wish, facts)
        if wish.only:
            yield from _check_others(wish, facts)
    if facts.site.answers and wish.cpu_partitions:
        names = wish.cpu_partitions
        found = [
            list(_check_one("cpu_partition", name, facts.site.partitions.get(name), wish, facts)) for name in names
        ]
        yield from min(found, key=badness)


def _check_one(about: str, name: str, partition: Partition | None, wish: Wish, facts: Facts) -> Iterator[Finding]:
    if partition is None:
        known = ", ".join(sorted(facts.site.partitions)) or "none that you may see"
        what = f"there is no partition {name!r}" if name else "no partition is given, and the site has no default"
        no = refusal(facts, about)
        yield no(about, f"{what} (there are {known})", f"give another {about} in the cluster configuration")
    else:
        yield from _check_state(about, partition, facts)
        yield from _check_allowed(about, partition, wish, facts)


def _check_others(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Of several partitions all must exist, though one is enough to run in."""
    if unknown := [name for name in wish.partitions if name not in facts.site.partitions]:
        yield warning(
            "partition", f"there is no partition {unknown[0]!r}, one of {', '.join(wish.partitions)}",
            "leave it out: Slurm takes a list only if it knows all that are in it",
        )  # fmt: skip


def _check_state(about: str, partition: Partition, facts: Facts) -> Iterator[Finding]:
    other = f"choose another {about}, or ask the site's staff"
    no = refusal(facts, about)
    if partition.state in ("INACTIVE", "DRAIN"):
        yield no(about, f"{partition.name} takes no new jobs (state {partition.state})", other)
    elif partition.state == "DOWN":
        yield warning(about, f"{partition.name} starts no jobs now (state DOWN); they would wait", other)
    elif partition.root_only:
        yield no(about, f"{partition.name} takes jobs of root alone", other)
    elif partition.reservation_only:
        yield warning(
            about, f"{partition.name} takes only jobs with a reservation", "give it by sbatch: {reservation: NAME}"
        )
    else:
        yield good(about, f"{partition.name} is up")


def _check_allowed(about: str, partition: Partition, wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Lists of what is refused count only where there is none of what is allowed, as Slurm has it."""
    account, qos, site = wish.chosen("account"), wish.chosen("qos"), facts.site
    no = refusal(facts, about)
    if site.enforces_accounts:
        accounts = [account] if account else [each.account for each in site.associations or ()]
        if partition.allow_accounts:
            if accounts and not lowered(accounts) & lowered(partition.allow_accounts):
                yield no(
                    "account", f"{about} {partition.name} takes only accounts {', '.join(partition.allow_accounts)}",
                    "give one of them as account, or choose another partition",
                )  # fmt: skip
        elif account and account.lower() in lowered(partition.deny_accounts):
            yield no("account", f"{about} {partition.name} refuses account {account}", "give another account")
    if partition.allow_groups and facts.groups and not set(facts.groups) & set(partition.allow_groups):
        yield no(
            about, f"{partition.name} takes only members of the groups {', '.join(partition.allow_groups)}",
            "choose another partition, or ask the site's staff to be made a member",
        )  # fmt: skip
    if qos and site.enforces("qos"):
        allowed = lowered(partition.allow_qos)
        if qos.lower() not in allowed if allowed else qos.lower() in lowered(partition.deny_qos):
            yield no(
                "qos", f"{about} {partition.name} does not take qos {qos}",
                f"choose one of {', '.join(partition.allow_qos) or 'the others'}, or another partition",
            )  # fmt: skip


def check_sbatch(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """What `sbatch --test-only` says to the job with all its options."""
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
    elif trial.unsure:
        yield warning("sbatch", f"could not try the job: {trial.text}", "give the command again when Slurm answers")
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
    lacking = len(nodes) >= wish.nodes > len(usable)
    return (lacking or down) and "configuration is not available" in facts.site.test.text


def check_environment(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """What the user has set for all their jobs and that goes over the site's defaults here."""
    for name, value in wish.overrides().items():
        key = name.removeprefix("SBATCH_").lower()
        yield warning(
            "environment", f"{name}={value} is used, since the cluster configuration gives no {key}",
            f"write it into the cluster configuration ({key}), or unset it",
        )  # fmt: skip


def lowered(names: Iterable[str]) -> set[str]:
    """Names in lower case: Slurm takes accounts and qualities of service in any."""
    return {name.lower() for name in names}
