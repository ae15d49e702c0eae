"""Configuration of a training run."""

from dataclasses import dataclass

from agl_core.config.option import CHECKED, CHECKS, CODECS, TTA, WEIGHTS_CACHE, option
from agl_core.config.stage import ModelConfig, StageConfig


@dataclass
class CheckpointConfig:
    """When complete states are saved, which are kept, and how much trouble in saving them is borne."""

    every: str = option(
        "1 epoch",
        "save each time so much is done: 'N epochs' or 'N steps'; a stage that diverges goes back to one of these",
        identity=False,
    )
    interval: str = option(
        "10 minutes",
        "save after so much time too: 'N seconds', 'N minutes' or 'N hours'; auto: from the measured cost of a save "
        "and the observed rate of interruptions; never",
        identity=False,
    )
    keep: int = option(2, "how many of the newest checkpoints of a stage to keep", identity=False)
    keep_best: bool = option(True, "also keep the checkpoint of the best validated score", identity=False)
    keep_every: str = option(
        "", "also keep for ever one checkpoint per 'N epochs' or 'N steps'; empty: none", identity=False
    )
    grace: float = option(
        30.0,
        "seconds between the first warning (TERM, USR2) and the kill: Slurm's KillWait, or the partition's GraceTime",
        identity=False,
    )
    usr1: bool = option(False, "take the signal USR1 for a warning too", identity=False)
    patience: float = option(
        60.0, "minutes without a checkpoint because of a full or failing disk after which the run stops", identity=False
    )


@dataclass
class DivergenceConfig:
    """What is done about losses or gradients that are not finite."""

    max_skips: int = option(
        10, "such steps in a row, each skipped, after which the stage goes back to its last checkpoint of every"
    )
    max_rollbacks: int = option(3, "times that a stage goes back before it stops")


@dataclass
class WatchdogConfig:
    """When a process that makes no progress is ended, so that it can be started again."""

    minutes: float = option(
        10.0,
        "least time without progress after which a process is taken for hung; 0: never",
        identity=False,
    )
    factor: float = option(30.0, "the same as a multiple of the usual time of a step, if longer", identity=False)


@dataclass
class RestartConfig:
    """When a job that is started again and again is given up; interruptions alone never end a run that comes on."""

    crashes: int = option(
        4,
        "crashes in a row at the same step after which the job fails; the last but one sends it back to the queue, "
        "perhaps to other nodes (--cluster slurm)",
        identity=False,
    )
    inside: int = option(
        10,
        "starts in one allocation after which a job that crashes goes back to the queue, perhaps to other nodes "
        "(--cluster slurm)",
        identity=False,
    )
    fruitless: int = option(
        10,
        "starts in a row that have brought no new checkpoint after which the job fails (--cluster slurm)",
        identity=False,
    )


@dataclass
class NotifyConfig:
    """Who is told what while nobody looks."""

    command: list[str] = option(
        list,
        "a command of yours, as a list of words such as [python, tell.py], that is run without a shell for each event "
        "and gets it as JSON on its standard input; empty: none",
        identity=False,
    )
    events: list[str] = option(
        lambda: ["stage", "stall", "give-up", "score", "end"],
        "which events: start, stage (one has ended), interruption, stall, give-up, score, end (of the run)",
        identity=False,
    )
    score: float | None = option(None, "tell when a validated score reaches this (event score)", identity=False)
    stall_minutes: float = option(
        60.0, "tell when a job that runs has shown no sign of life for so long (event stall)", identity=False
    )
    mail: str = option(
        "",
        "address to which Slurm writes of the same events, but for stall and score (--cluster slurm); empty: none",
        identity=False,
    )
    timeout: float = option(30.0, "seconds after which the command is killed", identity=False)


@dataclass
class TrainConfig:
    """`python launch.py` without a verb: train a recipe's stages."""

    run: str = option(
        "", "name of the run, a folder below runs; default: <recipe>-<encoder>-fold<fold>", identity=False
    )
    runs: str = option("runs", "folder of all runs", identity=False)
    cluster: str = option(
        "debug", "where to run: a name from cluster_configs/ or the path of a YAML file", identity=False
    )
    recipe: str = option("kbrodt", "what to train: a name from agl_core/recipes/ or the path of a YAML file")
    data: str = option("", "folder of the data set (geopose_train.csv, metadata.csv, train/)", identity=False)
    store: str = option("", "folder of the prepared store; default: <data>/store", identity=False)
    unit: str = option(
        "cm", "unit of the data set's files, for preparing a store that is missing", choices=("cm", "m"), identity=False
    )
    codec: str = option(
        "auto", "codec of a store that has to be prepared: see `prepare --help`", choices=CODECS, identity=False
    )
    stage_in: str = option(
        "",
        "folder on the node's own disk or in its memory (/tmp, '$TMPDIR', /dev/shm) to which the store is copied at "
        "the start, if there is room; none: read it where it lies; default: the cluster's",
        identity=False,
    )
    dry_run: bool = option(False, "show what would be run or submitted, and stop", identity=False)
    until: str = option(
        "report",
        "train: stop after the last stage; report: go on to predict and score the data set's test split, as far as it "
        "has one, and to report.html",
        choices=("train", "report"),
        identity=False,
    )
    encoder: str = option(
        "efficientnet-b7",
        "any encoder of segmentation-models-pytorch, or tu-NAME for timm's; A,B,... trains a run of each",
    )
    encoder_weights: str = option(
        "imagenet",
        "imagenet, from the cache (see the verb weights); none; or the path of a safetensors file of the encoder",
    )
    weights_cache: str = option(
        WEIGHTS_CACHE, "folder of the encoders' ImageNet weights, which compute nodes must see too", identity=False
    )
    seed: int = option(314159, "seed of the folds, the sample order, the crops and the initial weights")
    fold: int = option(0, "held-out fold for validation; -1 trains on everything; K,L,... a run of each")
    folds: int = option(40, "number of folds")
    fold_by: str = option(
        "city",
        "city: every fold has every city's share (the reference's); place: a place is in one fold only",
        choices=("city", "place"),
    )
    precision: str = option(
        "auto",
        "auto: float16 with a gradient scaler on GPUs before Ampere, bfloat16 from there on, float32 on CPU",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    channels_last: bool = option(True, "memory layout that convolutions like best")
    gradient_checkpointing: bool = option(
        False,
        "compute the encoder's activations again in the backward pass instead of keeping them: less memory, about a "
        "third slower (tu- encoders)",
        identity=False,
    )
    tta: str = option(
        "none",
        "how the test split is predicted in the end: none; flips, 4 views; d4, all 8 symmetries of the square; scales, "
        "3 magnifications; all, both: 24 views",
        choices=TTA,
    )
    workers: int | None = option(None, "data loading processes per rank; default: the cluster's", identity=False)
    threads: int | None = option(
        None,
        "CPU threads per rank; on CPU another number gives other last bits; default: the cluster's",
        identity=False,
    )
    doctor: str = option("quick", CHECKED, choices=CHECKS, identity=False)
    tensorboard_tiles: int = option(
        4, "held-out tiles whose image, truth, prediction and error TensorBoard shows; 0: none", identity=False
    )
    log_every: int = option(10, "optimiser steps between two lines of events.jsonl and TensorBoard", identity=False)
    max_agl: dict[str, float] = option(
        lambda: {"default": 200.0, "ARG": 100.0}, "highest AGL written, metres, by city (default: all others)"
    )
    model: ModelConfig = option(ModelConfig, "the network")
    checkpoint: CheckpointConfig = option(CheckpointConfig, "checkpoints")
    divergence: DivergenceConfig = option(DivergenceConfig, "losses that are not finite")
    watchdog: WatchdogConfig = option(WatchdogConfig, "processes that hang")
    restart: RestartConfig = option(RestartConfig, "jobs that are started again")
    notify: NotifyConfig = option(NotifyConfig, "who is told what while nobody looks")
    stages: dict[str, StageConfig] = option(dict, "the stages, in order, by name (given by the recipe)")
