"""Checks of accounts and qualities of service, and of the limits of time, nodes, GPUs and jobs that come with them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from jobs.doctor.check_resources import refusal
from jobs.doctor.check_site import lowered
from jobs.doctor.facts import Facts
from jobs.doctor.findings import Finding, failure, good, spoken, warning
from jobs.doctor.site import Association, Qos, Site
from jobs.doctor.wish import Wish

Limit = TypeVar("Limit", int, float)


def check_account(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """Account and quality of service are known, and this user may have them."""
    site, account, qos = facts.site, wish.chosen("account"), wish.chosen("qos")
    if not site.answers:
        return
    if site.associations is None or not site.enforces_accounts:
        if account or qos:
            yield good("account", "Slurm keeps no accounts here, or does not tell or enforce them: not checked")
        return
    own = associations(wish, site)
    no = refusal(facts)
    if not own:
        known = sorted({each.account for each in site.associations})
        what = f"account {account!r}" if account else "any account"
        tell = f"give one of {', '.join(known)} as account" if known else "ask the site's staff for an account"
        yield no("account", f"you may not charge {what} in this partition", tell)
        return
    if account:
        yield good("account", f"you may charge {account}")
    if not qos:
        return
    if not site.enforces("qos"):
        no = warning
    allowed = sorted({name for each in own for name in each.qos})
    if site.qos is not None and qos.lower() not in site.qos:
        yield no("qos", f"there is no qos {qos!r}", f"choose one of {', '.join(allowed or sorted(site.qos))}")
    elif allowed and qos.lower() not in lowered(name.lstrip("+") for name in allowed):
        yield no("qos", f"you may not use qos {qos!r}", f"choose one of {', '.join(allowed)}")
    else:
        yield good("qos", f"you may use {qos}")


def associations(wish: Wish, site: Site) -> list[Association]:
    """Those of the user's that count for the job: of its account, or of any if none is given; those of its partition
    go before those of all."""
    account, partition = wish.chosen("account").lower(), site.partition(wish)
    found = [each for each in site.associations or () if account in ("", each.account.lower())]
    if partition is None:
        return found
    bound = [each for each in found if each.partition == partition.name]
    everywhere = [each for each in found if not each.partition]
    return bound or everywhere if account else [*bound, *everywhere]


def job_qos(wish: Wish, site: Site) -> Qos | None:
    """The quality of service of the job: the one that it asks for, or the default, or the only one that the user may
    have; None if that is not known."""
    own = associations(wish, site)
    defaults = {each.default_qos or (each.qos[0] if len(each.qos) == 1 else "") for each in own}
    name = wish.chosen("qos") or (next(iter(defaults)) if len(defaults) == 1 else "")
    return (site.qos or {}).get(name.lower())


def qualities(wish: Wish, site: Site) -> list[Qos]:
    """Whose limits count for the job, in the order in which Slurm takes the first that is set: that of the partition,
    then its own, or the other way round where its own says so (OverPartQOS)."""
    if not site.enforces_limits:
        return []
    partition, own = site.partition(wish), job_qos(wish, site)
    of_partition = (site.qos or {}).get(partition.qos.lower()) if partition is not None else None
    order = [own, of_partition] if own is not None and "overpartqos" in own.flags else [of_partition, own]
    return [each for each in order if each is not None]


def check_time_limit(wish: Wish, facts: Facts) -> Iterator[Finding]:
    """It is within those of partition, qos and account, and leaves time to train."""
    partition = facts.site.partition(wish)
    if partition is None:
        return
    asked = 60.0 * float(wish.parameters()["time"])  # whole minutes, as sbatch gets them
    of_job = qualities(wish, facts.site)
    known = []
    if partition.max_time is not None and not any("partitiontimelimit" in each.flags for each in of_job):
        known.append((partition.max_time, f"partition {partition.name}"))
    first = _first(of_job, lambda each: each.max_wall)
    if first is None and (wall := _of_account(wish, facts.site, lambda each: each.max_wall)) is not None:
        first = wall, "your account"
    if first is not None:
        known.append(first)
    tightest, of = min(known, default=(float("inf"), ""))
    startup = facts.measured.startup if wish.trains else None
    if asked > tightest:
        # Such a site takes a job that no partition of its would ever start.
        holds = facts.site.config.get("EnforcePartLimits", "").upper() == "NO" and not facts.site.plugins
        yield (failure if holds and of.startswith("partition ") else refusal(facts))(
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
    partition, of_job = facts.site.partition(wish), qualities(wish, facts.site)
    no = refusal(facts)
    most = partition.max_nodes if partition is not None else None
    free = any("partitionmaxnodes" in each.flags for each in of_job)
    if partition is not None and most is not None and most < wish.nodes and not free:
        yield no(
            "limits", f"partition {partition.name} gives a job at most {most} of the {wish.nodes} nodes",
            "set nodes lower, or choose another partition",
        )  # fmt: skip
    asked = wish.gpus * wish.nodes
    if (gpus := min(_gpu_limits(wish, of_job), default=None)) is not None and gpus[0] < asked:
        yield no(
            "limits", f"{gpus[1]} gives {gpus[0]} GPUs at most, not {asked}",
            "set nodes or gpus_per_node lower, or choose another qos",
        )  # fmt: skip
    yield from _check_jobs(wish, facts, of_job)


def _gpu_limits(wish: Wish, of_job: Sequence[Qos]) -> Iterator[tuple[int, str]]:
    """How many GPUs the job may have, and by whom; limits on one type count for jobs that ask for that type alone."""
    for type_ in dict.fromkeys(["", wish.gpu_type]):
        of_types = {each.name: (each.gpus_of_user.get(type_), each.gpus_of_job.get(type_)) for each in of_job}
        for at in (0, 1):
            found = [(limits[at], f"qos {name}") for name, limits in of_types.items()]
            yield from [(limit, whose) for limit, whose in found if limit is not None][:1]


def _check_jobs(wish: Wish, facts: Facts, of_job: Sequence[Qos]) -> Iterator[Finding]:
    """All jobs of the submission may wait at once. sbatch was asked about one of them only, so that it has no say."""
    partition, site = facts.site.partition(wish), facts.site
    limit = _first(of_job, lambda each: each.max_submit)
    if limit is None:
        most, jobs = _of_account(wish, site, lambda each: each.max_submit), wish.jobs
    else:
        own = job_qos(wish, site)
        of_partition = partition is not None and limit[1] == f"qos {partition.qos}"
        apart = of_partition and (own is None or limit[1] != f"qos {own.name}")
        most, jobs = limit[0], wish.in_partition if apart else wish.jobs
    if most is not None and most < jobs:
        covered = jobs == 1 or site.plugins
        yield (refusal(facts) if covered else failure)(
            "limits", f"{jobs} jobs are submitted together, but you may have {most} at once",
            "train fewer runs at once, or with --until train; or choose another qos",
        )  # fmt: skip


def _first(of_job: Sequence[Qos], limit: Callable[[Qos], Limit | None]) -> tuple[Limit, str] | None:
    """The limit that counts, and whose it is; None if there is none."""
    for each in of_job:
        if (found := limit(each)) is not None:
            return found, f"qos {each.name}"
    return None


def _of_account(wish: Wish, site: Site, limit: Callable[[Association], Limit | None]) -> Limit | None:
    """The limit of the job's account; the largest of all where none is given; None for no limit, and where it is not
    known whether a quality of service sets another."""
    if job_qos(wish, site) is None and site.qos:
        return None
    found = [limit(each) for each in associations(wish, site)] if site.enforces_limits else []
    known = [each for each in found if each is not None]
    return max(known) if known and len(known) == len(found) else None
