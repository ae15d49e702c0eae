"""What `launch.py` can do: its verbs, their configuration classes and an example of each."""

from dataclasses import dataclass
from typing import Any

from agl_core.config import DrillConfig, EvaluateConfig, PredictConfig, PrepareConfig, TrainConfig, WorldConfig


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
            "Read the train images and heights of a data set once and build the LMDB store that training reads.",
            "python launch.py prepare --data data/world",
        ),
        Verb(
            "predict",
            PredictConfig,
            "write the heights and the pose of every image of a split",
            "Predict heights (AGL) and pose (VFLOW) of every image of a split with the weights of a run.",
            "python launch.py predict --run first --data data/world --out predictions/first",
        ),
        Verb(
            "evaluate",
            EvaluateConfig,
            "score predictions on disk against the truth",
            "Compute the official score of the predictions in a folder, and print it per city.",
            "python launch.py evaluate --predictions predictions/first --truth data/world/test_truth --json score.json",
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
