"""Which loss of the heights, and whether averaging the weights (EMA) pays: a short ablation on the built-in world.

One stage under the eight exact symmetries, with the mean squared error, Huber's loss and the per-city R2 as loss of the
heights. In every run the exponential moving average of the weights is kept beside the raw ones, so that the two are
compared on one and the same training.

The weights of the losses make each begin as large as the others: what the best constant would cost is 57 m^2 under the
squared error, 5.7 m under Huber's loss with delta 1 m, and 1 under R2 (in the world of the study, whose cities have
variances of 14, 50 and 95 m^2; the mean over the cities is 53).
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.augmentation_study import FOLDS, QUICK_FOLDS, QUICK_WORLD, WORLD
from benchmarks.study import Arm, Study, demo_stage
from benchmarks.study_page import command

STEPS = 500

DECAY = 0.99
"""Of the average: about the last hundred steps, a fifth of the training."""

LOSSES: dict[str, tuple[str, dict[str, Any]]] = {
    "mse": ("squared error", {"agl_kind": "mse", "agl": 2.0}),
    "huber": ("Huber", {"agl_kind": "huber", "agl": 20.0, "huber_delta": 1.0}),
    "r2": ("per-city R2", {"agl_kind": "r2", "agl": 106.0}),
}
"""Title and values of each loss of the heights; the other parts are the demo recipe's."""

PAIRS = (
    (("huber", "last"), ("mse", "last")),
    (("r2", "last"), ("mse", "last")),
    *(((name, "last-ema"), (name, "last")) for name in LOSSES),
)


def study(quick: bool) -> Study:
    """The study, or a tiny one of the same form."""
    steps = 4 if quick else STEPS
    stage = {**demo_stage(quick), "length": f"{steps} steps", "validate_every": f"{steps // 4} steps", "ema": DECAY}
    arms = tuple(Arm(name, title, {"stages": {"train": {"loss": loss}}}) for name, (title, loss) in LOSSES.items())
    return Study(
        "loss study",
        QUICK_WORLD if quick else WORLD,
        "demo",
        {"folds": QUICK_FOLDS if quick else FOLDS, "stages": {"train": stage}},
        arms,
        ("last", "last-ema"),
        PAIRS,
    )


def main(argv: Sequence[str] | None = None) -> None:
    command("Losses of the heights and an average of the weights, on the built-in world.", study, argv)


if __name__ == "__main__":
    main()
