"""What `launch.py` can do: its verbs, their configuration classes and an example of each."""

from dataclasses import dataclass
from typing import Any

from agl_core.config import (
    AugmentSheetConfig,
    CancelConfig,
    DoctorConfig,
    DrillConfig,
    EnsembleConfig,
    EvaluateConfig,
    ExportConfig,
    FitConfig,
    LogsConfig,
    PlanConfig,
    PredictConfig,
    PrepareConfig,
    QuicklookConfig,
    RecipeConfig,
    RectifyConfig,
    ReportConfig,
    ResumeConfig,
    StatusConfig,
    TrainConfig,
    WatchConfig,
    WeightsConfig,
    WorldConfig,
)


@dataclass(frozen=True)
class Verb:
    """One verb; the one that trains has no name."""

    name: str
    config: type[Any]
    summary: str
    purpose: str
    example: str


TRAIN = Verb(
    "",
    TrainConfig,
    "train the stages of a recipe",
    "Train the stages of a recipe, one after the other, into the folder runs/<run>. Given again with the same "
    "settings, the command continues where the run stands; stages that are finished are left out.",
    "python launch.py --cluster debug --encoder resnet18 --recipe demo --data data/world --run first",
)

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            "world",
            WorldConfig,
            "render the built-in data set",
            "Render the built-in data set: oblique views of procedural cities with exact heights and pose, in the "
            "challenge's file layout (train, test and test_truth).",
            "python launch.py world --out data/world --tiles 64 --size 256 --seed 0",
        ),
        Verb(
            "prepare",
            PrepareConfig,
            "build the store that training reads from a data set's files",
            "Read the train images and heights of a data set once and build the LMDB store that training reads. Killed "
            "at any moment and given again, it does the rest; files that were changed are read again. The store of "
            "another data set is refused. With --check it verifies a store and changes nothing.",
            "python launch.py prepare --data data/world",
        ),
        Verb(
            "recipe",
            RecipeConfig,
            "show what a recipe comes to, and what of it differs from the defaults",
            "Print what of a recipe differs from the defaults or from another recipe, or with --all every key, as YAML "
            "with the source of each value. Without a name, list the recipes. Without --diff, what is printed is a "
            "recipe itself.",
            "python launch.py recipe kbrodt",
        ),
        Verb(
            "weights",
            WeightsConfig,
            "fetch encoders' ImageNet weights, on a machine with network, for those without",
            "Fetch the ImageNet weights of encoders into the cache that training reads, with checksums. A run fetches "
            "what it needs by itself where it is launched; compute nodes never try the network.",
            "python launch.py weights --encoder efficientnet-b7,senet154",
        ),
        Verb(
            "fit",
            FitConfig,
            "measure how large a micro-batch fits this device, how fast it trains, and how long a stage will take",
            "Measure training steps of a recipe's stage on this machine's device: the largest micro-batch, crops per "
            "second and peak memory of each encoder, and from them the stage's time on a cluster's devices.",
            "python launch.py fit --encoder tu-resnet10t --recipe demo --crop 64 --most 8",
        ),
        Verb(
            "predict",
            PredictConfig,
            "write the heights and the pose of every image of a data set, a list or a file of any size",
            "Predict heights (AGL) and pose (VFLOW) with the weights of a run, or of several together, of the images "
            "of a data set, or of any others. Killed at any moment and given again it does the rest; several of these "
            "commands at once share the images.",
            "python launch.py predict --run first --data data/world --out predictions/first",
        ),
        Verb(
            "ensemble",
            EnsembleConfig,
            "average the predictions of several models",
            "Average predictions of the same images: the mean or median of the heights, the mean of the scales, and of "
            "the directions.",
            "python launch.py ensemble --members predictions/first,predictions/second --out predictions/both",
        ),
        Verb(
            "evaluate",
            EvaluateConfig,
            "score predictions on disk against the truth, and say where the score is lost",
            "Compute the official score of the predictions in a folder, per city, what it would be if the angles, the "
            "scales or the heights were right, and the errors of heights and pose.",
            "python launch.py evaluate --predictions predictions/first --truth data/world/test_truth --json score.json",
        ),
        Verb(
            "rectify",
            RectifyConfig,
            "move images and heights to the ground that they stand on",
            "Make of oblique images and their heights true orthoimages: everything is moved to where it stands, the "
            "tallest hides the others, and a mask says what nobody has seen.",
            "python launch.py rectify --predictions predictions/first --out rectified/first",
        ),
        Verb(
            "quicklook",
            QuicklookConfig,
            "draw predictions for the eye: image, heights, flow arrows",
            "Draw for each image of a folder of predictions a PNG file: the image, its heights with a scale bar, and "
            "arrows from the tops to where they stand.",
            "python launch.py quicklook --predictions predictions/first",
        ),
        Verb(
            "export",
            ExportConfig,
            "make point clouds, heights of footprints, weights with their card, portable networks",
            "Write what other programs take: coloured point clouds (LAZ, LAS, PLY), height statistics of polygons "
            "(GeoJSON), weights with a card, or the network itself (ONNX, torch.export), checked against the original.",
            "python launch.py export points --predictions predictions/first --out export/first",
        ),
        Verb(
            "report",
            ReportConfig,
            "write what became of a run, or how several compare, into one HTML file",
            "Write one HTML file that needs no network: learning curves, losses and rates, what the score would be, "
            "the best and worst tiles, every start with its end, goodput, and the configuration; of several runs, how "
            "they differ. Training does so at its end.",
            "python launch.py report first",
        ),
        Verb(
            "watch",
            WatchConfig,
            "watch a run live, wherever it runs",
            "Show how a run fares, again and again: stage, step, losses, rate, scores, what interruptions have cost, "
            "and when it will end. Only the run's folder is read, so a login node will do; Ctrl-C ends the view, not "
            "the run.",
            "python launch.py watch first",
        ),
        Verb(
            "status",
            StatusConfig,
            "show where runs stand: stage, state, step, score, restarts, time left",
            "Show where runs stand, a row for each; of a single run that is named all its jobs, and what made them "
            "fail. Reads the folders of the runs and, where there is Slurm, its queue; changes nothing.",
            "python launch.py status first",
        ),
        Verb(
            "logs",
            LogsConfig,
            "show what the jobs of a run have printed, across all restarts",
            "Show what a rank of a run has printed, all its starts one after the other, each with a line that says "
            "where it ran and how it ended.",
            "python launch.py logs first --follow",
        ),
        Verb(
            "cancel",
            CancelConfig,
            "end a run's jobs; what is done is kept",
            "Cancel all jobs of a run that wait or run under Slurm, or have the process on this machine that trains it "
            "save and leave. The run can be continued.",
            "python launch.py cancel first",
        ),
        Verb(
            "resume",
            ResumeConfig,
            "continue a run that was cancelled, interrupted or given up",
            "Continue a run that has ended before it was done, with the settings that it was begun with, where it ran "
            "last or elsewhere; of an ensemble, what is left of its members too.",
            "python launch.py resume first",
        ),
        Verb(
            "augment",
            AugmentSheetConfig,
            "draw a tile under each augmentation, to see whether its labels still fit",
            "Draw one tile of a data set as a PNG file: under each geometric augmentation, with its heights and with "
            "arrows from the tops of walls to the ground that the labels say, and under each photometric one.",
            "python launch.py augment --data data/world --out sheet.png",
        ),
        Verb(
            "doctor",
            DoctorConfig,
            "check a site and a configuration before a week is lost on them",
            "Check partition, limits, preemption, environment, weights, data and disk against what is to be run: a "
            "line for each, good, warning or failure, with what to do. A quick form runs before every submission. The "
            "exit code is 1 if anything failed.",
            "python launch.py doctor --cluster slurm --recipe kbrodt --data data/world",
        ),
        Verb(
            "plan",
            PlanConfig,
            "predict when a run will end, and what interruptions will cost",
            "Simulate a run on GPUs that are taken away: when it ends, its goodput, the steps that are done twice, "
            "with a range, and how often to save. Times come from a run, from `fit`, or from the command line.",
            "python launch.py plan --recipe demo --tiles 96 --step-seconds 0.5 --preemptions-per-day 6 "
            "--queue-minutes 30",
        ),
        Verb(
            "drill",
            DrillConfig,
            "rehearse interruptions, and compare the results bit for bit",
            "Train a small run on this machine's CPU undisturbed and again while it is interrupted, print what the "
            "interruptions cost, and compare the results bit for bit. The exit code is 0 only if they are identical.",
            "python launch.py drill --interruptions 5 --signal mixed --processes 2",
        ),
    )
}
