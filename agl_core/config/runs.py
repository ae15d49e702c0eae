"""Configuration of the verbs that look after runs."""

from dataclasses import dataclass

from agl_core.config.option import CHECKS, option


@dataclass
class ReportConfig:
    """`python launch.py report`: what became of one run or several, in one page."""

    run: str = option(
        "", "names of the runs or ensembles to report on, several are compared", required=True, positional="several"
    )
    runs: str = option("runs", "folder of all runs")
    out: str = option(
        "", "the HTML file; default: report.html in the run's folder, of several report-A-B.html in that of all runs"
    )
    predictions: str = option("", "folder of predictions to show tiles of; default: those of the run")
    truth: str = option("", "folder of their truth; default: test_truth of the run's data set, where it has one")
    tiles: int = option(4, "how many of the best and of the worst tiles to show; 0: none")


@dataclass
class StatusConfig:
    """`python launch.py status`: where runs stand."""

    run: str = option("", "names of the runs to show, several with commas; default: all", positional="several")
    runs: str = option("runs", "folder of all runs")
    json: bool = option(False, "print JSON, with all that is known, instead of a table")


@dataclass
class WatchConfig:
    """`python launch.py watch`: the live view of a run, from its folder alone."""

    run: str = option("", "name of the run", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")
    every: float = option(2.0, "seconds between two looks at the run's folder")
    once: bool = option(False, "show it once and stop")


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
    doctor: str = option(
        "as-begun",
        "what is checked before a submission: quick or none; as-begun: what the run was begun with (--cluster slurm)",
        choices=("as-begun", *CHECKS),
    )


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
class DoctorConfig:
    """`python launch.py doctor`: what on this site will bite, before it does."""

    cluster: str = option("slurm", "the site: a name from cluster_configs/ or the path of a YAML file")
    recipe: str = option("kbrodt", "what is to be trained: a name from agl_core/recipes/ or the path of a YAML file")
    encoder: str = option("", "encoders to be trained, several with commas; default: the recipe's")
    data: str = option("", "folder of the data set; default: it is not looked at")
    store: str = option("", "folder of the prepared store; default: <data>/store")
    run: str = option("", "name of a run whose measured step and save times count; default: the newest that has any")
    runs: str = option("runs", "folder of all runs")
    quick: bool = option(False, "only what runs by itself before every submission: a few seconds")
    probe: bool = option(
        False, "also submit a job of a minute that looks from inside a compute node and is sent the site's signals"
    )
    probe_minutes: float = option(15.0, "how long to wait for that job to start, minutes")
    json: bool = option(False, "print JSON instead of lines")


@dataclass
class PlanConfig:
    """`python launch.py plan`: when a run will end, and what interruptions will cost."""

    cluster: str = option(
        "",
        "where: a name from cluster_configs/ or the path of a YAML file; several with commas are compared; default: "
        "where --run ran last, or slurm",
    )
    recipe: str = option(
        "",
        "what is to be trained: a name from agl_core/recipes/ or the path of a YAML file; default: what is left of "
        "--run, or kbrodt",
    )
    encoder: str = option("", "encoder to be trained; default: the recipe's")
    data: str = option("", "folder of the data set, for the number of its tiles; default: the run's")
    tiles: int = option(0, "number of training tiles, where neither data nor run tells; 0: unknown")
    run: str = option("", "name of a run whose measured times and progress count, also one that is still going on")
    runs: str = option("runs", "folder of all runs")
    preemptions_per_day: float | None = option(
        None, "how often a job is preempted in a day of running; default: as measured (--interruptions), or 6"
    )
    crashes_per_day: float | None = option(
        None, "how often it is killed without a warning in a day of running; default: as measured, or 0.2"
    )
    queue_minutes: float | None = option(
        None, "minutes in the queue before each start, in the mean; default: as measured, or 30"
    )
    interruptions: str = option(
        "",
        "where measured interruptions are read from: run (that of --run), runs (all below --runs), sacct (the user's "
        "jobs in Slurm's accounts), or the path of a JSON file; default: none",
    )
    step_seconds: float | None = option(None, "seconds for an optimiser step; default: as the run or `fit` measured it")
    save_seconds: float | None = option(None, "seconds that a checkpoint holds training up; default: as measured")
    startup_seconds: float | None = option(None, "seconds from the start of a job to its first step; default: measured")
    validation_seconds: float | None = option(None, "seconds for a validation; default: as measured")
    gpus: str = option("", "numbers of GPUs to compare, with commas; default: the cluster's")
    fit: str = option("", "JSON file that `fit --json` wrote, for the time of a step; default: the run's")
    draws: int = option(200, "simulated runs, from which the range comes")
    seed: int = option(0, "seed of the simulation")
    json: bool = option(False, "print JSON instead of tables")
