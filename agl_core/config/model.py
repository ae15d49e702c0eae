"""Configuration of the verbs that make use of networks, or tell what they take."""

from dataclasses import dataclass

from agl_core.config.option import TTA, WEIGHTS_CACHE, option


@dataclass
class PredictConfig:
    """`python launch.py predict`: write AGL and VFLOW for every image of a split."""

    run: str = option(
        "", "name of the run whose weights to use; only the path of a weights file does without", required=True
    )
    runs: str = option("runs", "folder of all runs")
    weights: str = option(
        "best",
        "best, last, last-ema, those of a stage (<stage>/best, <stage>/last, <stage>/last-ema), or the path of a "
        "weights file",
    )
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
    tta: str = option(
        "auto",
        "auto: as the training run was told; none; d4: in all eight symmetries of the square, averaged",
        choices=("auto", *TTA),
    )
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
class WeightsConfig:
    """`python launch.py weights`: fetch encoders' ImageNet weights into the cache that training reads."""

    encoder: str = option("", "encoders to fetch the weights of: A,B,...; default: list what the cache has")
    weights_cache: str = option(WEIGHTS_CACHE, "folder of the encoders' ImageNet weights")
    check: bool = option(False, "fetch nothing: verify what the cache has, by its checksums, and name what is missing")


@dataclass
class RecipeConfig:
    """`python launch.py recipe`: what a recipe comes to."""

    recipe: str = option(
        "", "a name from agl_core/recipes/ or the path of a YAML file; default: list them", positional="one"
    )
    diff: str = option("", "show what differs from this recipe instead of from the defaults")
    all: bool = option(False, "print every key, those with default values too")


@dataclass
class FitConfig:
    """`python launch.py fit`: what training an encoder takes on this machine's device."""

    encoder: str = option("", "encoders to measure, a row for each: A,B,...; default: the recipe's")
    recipe: str = option("kbrodt", "whose stages and network: a name from agl_core/recipes/ or the path of a YAML file")
    stage: str = option("", "the stage to measure; default: the first")
    cluster: str = option("debug", "for how many processes to predict: a name from cluster_configs/ or a YAML file")
    crop: int | None = option(None, "side of the square crop, pixels; default: the stage's")
    precision: str = option(
        "auto", "precision of forward passes, as in training", choices=("auto", "float32", "float16", "bfloat16")
    )
    gradient_checkpointing: bool | None = option(
        None, "compute activations again in the backward pass, as in training; default: as the recipe does"
    )
    memory: float | None = option(None, "GB of the device that may be used; default: all that is free")
    most: int = option(64, "largest micro-batch to try")
    steps: int = option(5, "optimiser steps to time, after two that are not")
    tiles: int | None = option(None, "tiles of an epoch; default: those of the store, or the challenge's 5923")
    store: str = option("", "a prepared store, for its number of tiles")
    threads: int | None = option(None, "CPU threads; default: all cores")
    json: str = option("", "also write the table to this JSON file")
