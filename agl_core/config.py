"""Typed configuration: every key of every verb, with its default and one sentence of documentation.

A key has one name everywhere: `--some-key VALUE` and `some_key=VALUE` on the command line, `some_key: VALUE` in a
recipe, `config.some_key` in Python. Groups are reached with dots: `stages.pretrain.optimizer.lr=3e-4`.
"""

from collections.abc import Iterator
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).parent / "recipes"
CODECS = ("auto", "zstd", "raw")


def option(
    default: Any,
    help: str,
    choices: tuple[str, ...] = (),
    identity: bool = True,
    required: bool = False,
    positional: str = "",
) -> Any:
    """A configuration field: its default, its documentation, its valid values.

    `identity` says whether another value makes it another run: keys that only choose where and how fast something
    runs are not part of a run's identity. `required` keys have no sensible default; the command line asks for them.
    `positional` keys also take words without a key: one, or several, which are joined with commas.
    """
    metadata = {
        "help": help, "choices": choices, "identity": identity, "required": required, "positional": positional,
    }  # fmt: skip
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def options(config: type[Any] | object) -> Iterator["Field[Any]"]:
    """The fields of a configuration class, in the order in which `--help` shows them."""
    yield from fields(config)  # type: ignore[arg-type]


@dataclass
class AugmentConfig:
    """Chances of the augmentations and how far they go; each is drawn by itself, for every visit of a tile anew.

    Geometric ones change the labels with the image (see `agl_core.geometry`); photometric ones change the image alone.
    """

    rot90: float = option(0.0, "chance of a rotation by 90, 180 or 270 degrees or none, drawn evenly")
    flip_horizontal: float = option(0.0, "chance of a horizontal flip")
    flip_vertical: float = option(0.0, "chance of a vertical flip")
    transpose: float = option(0.0, "chance of swapping x and y")
    stretch: float = option(0.0, "chance of multiplying all heights, surfaces moved accordingly (tiles with a pose)")
    stretch_most: float = option(2.0, "largest factor of the heights")
    stretch_highest: float = option(200.0, "metres above which no height is stretched")
    view: float = option(0.0, "chance of a new view direction, surfaces moved accordingly (tiles with a pose)")
    view_degrees: float = option(30.0, "largest change of the angle, either way")
    view_least: float = option(0.7, "least factor of the scale")
    view_most: float = option(1.3, "largest factor of the scale")
    rotate: float = option(0.0, "chance of a rotation by any angle")
    rotate_degrees: float = option(180.0, "largest rotation, either way")
    zoom: float = option(0.0, "chance of magnifying or reducing the image")
    zoom_least: float = option(0.7, "least magnification")
    zoom_most: float = option(1.3, "largest magnification")
    dropout: float = option(0.0, "chance of square holes of 32 pixels")
    blur: float = option(0.0, "chance of one of five blurs")
    brightness: float = option(0.0, "chance of another brightness and contrast")
    tone: float = option(0.0, "chance of one of gamma, colour jitter and tone curve")
    noise: float = option(0.0, "chance of one of two noises")
    fancy_pca: float = option(0.0, "chance of a shift along the main axes of the colours (fancy PCA)")
    fog: float = option(0.0, "chance of fog")
    shadow: float = option(0.0, "chance of shadows of clouds or of what stands outside")
    sun_flare: float = option(0.0, "chance of a sun flare")


@dataclass
class LossConfig:
    """Weights of the three parts of the loss."""

    agl: float = option(2.0, "weight of the mean squared error of the heights (m^2), known pixels only")
    direction: float = option(50.0, "weight of the mean squared error of (sin, cos) of the angle")
    scale: float = option(50.0, "weight of the mean squared error of the scale (pixels per metre)")


@dataclass
class OptimizerConfig:
    """AdamW with weight decay on matrices only."""

    lr: float = option(1e-4, "peak learning rate")
    weight_decay: float = option(5e-4, "decay of weights of two or more dimensions; biases and norms have none")
    clip: float = option(2.0, "largest norm of the gradient; 0 does not clip")


@dataclass
class ScheduleConfig:
    """Learning rate as a function of progress; nothing of it is stored in a checkpoint."""

    name: str = option(
        "cosine",
        "cosine: one half cosine over the stage, by step; cosine-epochs: cosine annealing once per epoch with a "
        "fixed half period and no restart (the reference's); constant",
        choices=("cosine", "cosine-epochs", "constant"),
    )
    warmup: float = option(0.0, "share of the stage's steps over which the rate rises from 0")
    half_period: int = option(25, "cosine-epochs: epochs from the peak to the floor")
    floor: float = option(1e-6, "lowest learning rate of the cosine")


@dataclass
class StageConfig:
    """One stage of a recipe: a stretch of training with its own length, data settings, loss and optimiser."""

    length: str = option("1 epoch", "how long to train: 'N epochs' or 'N steps'")
    start: str = option(
        "encoder",
        "initial weights: 'encoder' (see encoder_weights; the rest at random), '<earlier stage>/best', "
        "'<earlier stage>/last', or the path of a weights file of this project",
    )
    crop: int = option(512, "side of the square crop, pixels")
    batch: int = option(32, "crops per optimiser step over all processes (the global batch)")
    micro_batch: int = option(8, "crops per forward pass of one process; must divide batch")
    augment: AugmentConfig = option(AugmentConfig, "augmentation")
    loss: LossConfig = option(LossConfig, "weights of the loss")
    optimizer: OptimizerConfig = option(OptimizerConfig, "AdamW")
    schedule: ScheduleConfig = option(ScheduleConfig, "learning rate schedule")
    validate_every: str = option("1 epoch", "how often to score the held-out fold: 'N epochs' or 'N steps'")


@dataclass
class ModelConfig:
    """The network around the encoder."""

    decoder_channels: list[int] = option(
        lambda: [256, 128, 64, 32, 16], "channels of the five decoder blocks, coarsest first"
    )
    use_city: bool = option(True, "condition on the city (one-hot at the bottleneck)")
    use_gsd: bool = option(True, "condition on the ground sampling distance (at the bottleneck)")
    pose_dropout: float = option(0.5, "dropout before the pose head's linear layer")


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
        "has one, and to report.md",
        choices=("train", "report"),
        identity=False,
    )
    encoder: str = option(
        "efficientnet-b7",
        "any encoder of segmentation-models-pytorch, or tu-NAME for timm's; A,B,... trains a run of each",
    )
    encoder_weights: str = option("imagenet", "imagenet, none, or the path of a safetensors file of the encoder")
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
    workers: int | None = option(None, "data loading processes per rank; default: the cluster's", identity=False)
    threads: int | None = option(
        None,
        "CPU threads per rank; on CPU another number gives other last bits; default: the cluster's",
        identity=False,
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
    stages: dict[str, StageConfig] = option(dict, "the stages, in order, by name (given by the recipe)")


@dataclass
class WorldConfig:
    """`python launch.py world`: render the built-in data set."""

    out: str = option("", "folder to write the data set to", required=True)
    tiles: int = option(64, "number of tiles, train and test together")
    size: int = option(256, "side of a tile, pixels")
    seed: int = option(0, "seed of the world: another seed is another world of the same kind")
    cities: int = option(3, "number of cities, each of its own style and gsd")
    views: int = option(3, "views (tiles) per place")
    test_share: float = option(0.2, "share of the places held out for testing")
    format: str = option("tif", "format of the RGB images", choices=("tif", "j2k"))
    unit: str = option("cm", "cm: AGL in uint16 centimetres; m: float32 metres", choices=("cm", "m"))
    workers: int | None = option(None, "rendering processes; default: one per core")


@dataclass
class PrepareConfig:
    """`python launch.py prepare`: build the LMDB store from a data set's files."""

    data: str = option("", "folder of the data set (geopose_train.csv, metadata.csv, train/)", required=True)
    store: str = option("", "folder to write the store to; default: <data>/store")
    unit: str = option("cm", "unit of the data set's AGL and VFLOW files", choices=("cm", "m"))
    codec: str = option(
        "auto",
        "how tiles are kept, without loss: zstd, compressed to about half; raw, twice as fast to read where memory "
        "holds it all; auto: that of the store, zstd for a new one",
        choices=CODECS,
    )
    bad_tiles: str = option(
        "list",
        "list: go on, with a line for each bad tile, and fail in the end; stop: end at the first",
        choices=("list", "stop"),
    )
    check: bool = option(
        False, "verify a store that is there, value by value and against the data set's files, and change nothing"
    )
    redo: str = option("", "ids of tiles to make again, whatever the store has of them: A,B,...")
    workers: int | None = option(None, "decoding processes; default: one per core")


@dataclass
class PredictConfig:
    """`python launch.py predict`: write AGL and VFLOW for every image of a split."""

    run: str = option(
        "", "name of the run whose weights to use; only the path of a weights file does without", required=True
    )
    runs: str = option("runs", "folder of all runs")
    weights: str = option("best", "best, last, <stage>/best, <stage>/last, or the path of a weights file")
    data: str = option("", "folder of the data set", required=True)
    split: str = option(
        "test", "which images: those of geopose_test.csv or of geopose_train.csv", choices=("test", "train")
    )
    out: str = option(
        "",
        "folder to write the predictions to; those of the same weights, settings and images that it has already are "
        "kept: delete its about.json to have all made again",
        required=True,
    )
    unit: str = option("cm", "cm: uint16 centimetres and px/cm; m: float32 metres and px/m", choices=("cm", "m"))
    window: int = option(0, "predict in overlapping windows of this side, pixels; 0: whole images")
    overlap: int = option(128, "overlap of neighbouring windows, pixels")
    precision: str = option(
        "auto",
        "auto: the one that the training run was given, where this device has it, otherwise chosen as in training",
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    threads: int | None = option(None, "CPU threads; default: all cores")


@dataclass
class EnsembleConfig:
    """`python launch.py ensemble`: average the predictions of several models."""

    members: str = option("", "folders of predictions of the same images, two or more: A,B,...", required=True)
    out: str = option(
        "",
        "folder to write the averages to; those of unchanged predictions that it has already are kept",
        required=True,
    )
    unit: str = option("cm", "unit of the members' files and of those written", choices=("cm", "m"))


@dataclass
class AugmentSheetConfig:
    """`python launch.py augment`: draw a tile under each augmentation, to see whether its labels still fit."""

    data: str = option("", "folder of the data set (geopose_train.csv, metadata.csv, train/)", required=True)
    out: str = option("", "PNG file to write", required=True)
    unit: str = option("cm", "unit of the data set's AGL and VFLOW files", choices=("cm", "m"))
    tile: str = option("", "id of the tile; default: the tallest of a few")
    crop: int = option(256, "side of the square crop, pixels")
    seed: int = option(0, "seed of what is drawn at random: the crop, and how far each operation goes")


@dataclass
class EvaluateConfig:
    """`python launch.py evaluate`: the official score of predictions on disk."""

    predictions: str = option("", "folder of the predictions (<id>_AGL.tif, <id>_VFLOW.json)", required=True)
    truth: str = option("", "folder of the truth (<id>_AGL.tif, <id>_VFLOW.json)", required=True)
    metadata: str = option(
        "", "CSV file with id, city and gsd; default: metadata.csv in the truth's folder or above it"
    )
    unit: str = option("cm", "unit of both folders' files", choices=("cm", "m"))
    json: str = option("", "also write the score to this JSON file")


@dataclass
class ReportConfig:
    """`python launch.py report`: what became of a run, in one page."""

    run: str = option("", "name of the run or ensemble to report on", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")


@dataclass
class DrillConfig:
    """`python launch.py drill`: rehearse interruptions and compare the results bit for bit."""

    interruptions: int = option(5, "how many times to interrupt the run")
    signal: str = option(
        "mixed",
        "what interrupts it: KILL of one process or all, TERM or USR2 to one or all; mixed draws one each time",
        choices=("KILL", "TERM", "USR2", "mixed"),
    )
    processes: int = option(2, "processes that train together; 1 runs as --cluster debug does, more as local")
    workers: int = option(2, "data loading processes of each of them")
    steps: int = option(60, "optimiser steps of the run")
    seed: int = option(0, "seed of the run and of the times and kinds of the interruptions")
    encoder: str = option("tu-resnet10t", "any encoder of segmentation-models-pytorch, or tu-NAME for timm's")
    crop: int = option(64, "side of the square crop, pixels")
    batch: int = option(8, "crops per optimiser step over all processes")
    micro_batch: int = option(2, "crops per forward pass of one process")
    store: str = option("", "a prepared store to train on; default: a small built-in world is rendered")
    out: str = option("drill", "folder for both runs; it must be new or that of an earlier drill, which is replaced")
    json: str = option("", "also write the result to this JSON file")


@dataclass
class StatusConfig:
    """`python launch.py status`: where runs stand."""

    run: str = option("", "names of the runs to show, several with commas; default: all", positional="several")
    runs: str = option("runs", "folder of all runs")
    json: bool = option(False, "print JSON, with all that is known, instead of a table")


@dataclass
class LogsConfig:
    """`python launch.py logs`: what the jobs of a run have printed."""

    run: str = option("", "name of the run", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")
    stage: str = option("", "only this stage, or another job of the run (prepare, predict, ...); default: all")
    rank: int = option(0, "which of the processes that train together")
    follow: bool = option(False, "go on showing what is printed, across restarts, until the run's jobs have ended")


@dataclass
class CancelConfig:
    """`python launch.py cancel`: end a run's jobs, those that wait included."""

    run: str = option("", "name of the run, or of an ensemble with all its members", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")


@dataclass
class ResumeConfig:
    """`python launch.py resume`: continue a run that has ended before it was done."""

    run: str = option("", "name of the run, or of an ensemble with its members", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")
    cluster: str = option(
        "", "where to run: a name from cluster_configs/ or the path of a YAML file; default: where it ran last"
    )
