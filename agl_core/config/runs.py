"""Configuration of the verbs that look after runs."""

from dataclasses import dataclass

from agl_core.config.option import option


@dataclass
class ReportConfig:
    """`python launch.py report`: what became of a run, in one page."""

    run: str = option("", "name of the run or ensemble to report on", required=True, positional="one")
    runs: str = option("runs", "folder of all runs")


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
