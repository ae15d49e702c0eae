"""`python launch.py doctor`, and its quick form before every submission."""

import sys
from collections.abc import Sequence
from pathlib import Path

from agl_core.config import DoctorConfig, PredictConfig, TrainConfig
from agl_core.errors import UserError
from jobs.cluster import ClusterConfig
from jobs.doctor.checks import check
from jobs.doctor.facts import Facts, gather
from jobs.doctor.findings import FAILURE, GOOD, Finding, as_json, failure, good, summary, tell, warning
from jobs.doctor.wish import Wish, wish_of, wish_to_predict, wish_to_train
from jobs.failure import JobError
from jobs.lock import check_queue
from jobs.pipeline import JobSpec, check_data
from jobs.runs import Run
from jobs.settings import Assignments
from jobs.survey import find_run


def doctor(config: DoctorConfig, cluster_keys: Assignments) -> None:
    """Check a site and a configuration, and print a line for each check.

    Raises:
        UserError: the configuration cannot be read.
        JobError: a check has failed.
    """
    wish = wish_of(config, cluster_keys)
    if config.run:
        find_run(config.runs, config.run)
    if config.probe and not wish.slurm:
        raise UserError(f"probe is for clusters with Slurm, but cluster {config.cluster} is this machine: leave it out")
    facts = gather(wish, config.quick)
    findings = [*_active(wish, config), *check(wish, facts), *([] if config.quick else _data(wish))]
    if not config.json:
        tell([each for each in findings if not (config.quick and each.level == GOOD)], sys.stdout, summed_up=False)
    if config.probe:
        probed = _probe(wish, config, facts, findings)
        findings += probed
        if not config.json:
            tell(probed, sys.stdout, summed_up=False)
    print(as_json(findings) if config.json else summary(findings))
    if failed := [each for each in findings if each.level == FAILURE]:
        names = ", ".join(dict.fromkeys(each.about for each in failed))
        raise JobError(f"{len(failed)} of {len(findings)} checks failed: {names}")


def _probe(wish: Wish, config: DoctorConfig, facts: Facts, before: list[Finding]) -> list[Finding]:
    """What a job finds on the nodes; none is submitted where it could not start."""
    from jobs.doctor.probe import probe

    if any(each.level == FAILURE for each in before):
        return [warning("probe", "was not submitted, since checks have failed", "mend these first")]
    return probe(wish, facts, 60 * config.probe_minutes, sys.stderr)


def _data(wish: Wish) -> list[Finding]:
    """Whether the tiles can be split into the folds and are of cities that the stages know, as training will ask."""
    settings = wish.config
    if settings is None or not (settings.data or Path(settings.store).exists()):
        return []
    try:
        check_data(settings)
    except UserError as error:
        text, _, remedy = str(error).rpartition(": ")
        return [failure("data", text or remedy, remedy if text else "mend it")]
    return [good("data", f"{settings.data or settings.store}: tiles, folds and cities go together")]


def _active(wish: Wish, config: DoctorConfig) -> list[Finding]:
    """Whether the run that is named is at work, as far as its folder and the queue tell."""
    run = Run(wish.runs / config.run)
    if not config.run or not wish.slurm:
        return []
    try:
        check_queue(run)
    except UserError as error:
        text, _, remedy = str(error).partition(": ")
        return [warning("run", text, remedy)]
    return []


def before_submission(wish: Wish) -> None:
    """The quick form: print what may bite, and refuse what will not work; nothing is written. Where Slurm does not
    answer nothing is refused: sbatch has the last word.

    Raises:
        UserError: what would fail, what to do, and the way past.
    """
    facts = gather(wish, quick=True)
    told = [each for each in check(wish, facts) if each.level != GOOD]
    failed = [each for each in told if each.level == FAILURE and facts.site.answers]
    tell([each for each in told if each not in failed], sys.stderr, summed_up=False)
    if failed:
        first = failed[0]
        more = f" (and {len(failed) - 1} more: see the verb doctor)" if len(failed) > 1 else ""
        raise UserError(f"{first.about}: {first.text}; {first.remedy}{more}; or submit all the same with --doctor none")


def before_training(
    configs: Sequence[TrainConfig], cluster: ClusterConfig, jobs: Sequence[JobSpec] | None = None
) -> None:
    """`before_submission` of runs with these settled configurations, if they are to be submitted and want it. jobs:
    what is left to do of them; None: all."""
    if cluster.executor == "slurm" and all(config.doctor == "quick" for config in configs):
        before_submission(wish_to_train(configs, cluster, jobs=jobs))


def before_predicting(config: PredictConfig, cluster: ClusterConfig, runs: Path) -> None:
    """The same of a prediction whose folder is below `runs`."""
    if cluster.executor == "slurm" and config.doctor == "quick":
        before_submission(wish_to_predict(cluster, runs))
