"""Configuration of the verbs that tell what networks and recipes take."""

from dataclasses import dataclass

from agl_core.config.option import WEIGHTS_CACHE, option


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
