"""`python launch.py` without a verb: create or continue a run and have its stages trained."""

from agl_core.config import TrainConfig
from jobs.cluster import ClusterConfig
from jobs.executors import check_place, describe, enter, execute
from jobs.lock import hold
from jobs.pipeline import check_inputs, fetch_encoder_weights, plan, settle, store_missing
from jobs.runs import check_same_run, create, run_of


def train(config: TrainConfig, cluster: ClusterConfig) -> None:
    """Train the stages that are left of a run, or with `config.dry_run` only show how; that writes nothing at all.

    Everything that can be known to be wrong is refused before the run directory is created.

    Raises:
        UserError: something that the user gave is wrong, missing or in use.
    """
    run = run_of(config)
    config = settle(config, cluster, run)
    check_same_run(run, config)
    missing = store_missing(config, cluster)
    chain = plan(config, run, missing and cluster.executor == "slurm")
    if not chain:
        print(f"nothing to do: run {run.name} is finished ({run.path})")
        return
    enter(cluster)
    from agl_core.model.encoders import check_encoder

    check_encoder(config.encoder)
    if config.dry_run:
        if missing and cluster.executor != "slurm":
            print("there is no store yet: run `python launch.py prepare` first")
        print(f"run {run.name} in {run.path}, recipe {config.recipe}, encoder {config.encoder}: would run\n")
        print(describe(chain, run, cluster, config.threads or 1, config.workers or 0))
        return
    check_place(cluster)
    check_inputs(config, cluster)
    if cluster.executor == "slurm":
        fetch_encoder_weights(config, chain)
    with hold(run):
        for note in create(run, config):
            print(note, flush=True)
        execute(chain, run, cluster)
    if cluster.executor != "slurm":
        print(f"run {run.name} is finished; next: python launch.py predict --run {run.name} --data DATA --out FOLDER")
