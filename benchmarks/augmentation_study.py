"""Do augmentations harm, or did their labels? Heavy augmentation with right and with wrong labels, and without.

The author of the reference found that "augmentations are damaging"; the labels of the augmented samples were wrong in
two ways (see `mislabelling.py`). Here the same network is trained on the built-in world without augmentation, with the
exact symmetries alone, and with the reference's heavy augmentation under right and under its own labels. In every arm a
second stage without any augmentation follows, from the last weights of the first one.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: Python then looks for modules in this folder, not in the one above
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from agl_core.config import AugmentConfig, WorldConfig
from benchmarks.mislabelling import wrong_labels
from benchmarks.study import Arm, Study, demo_stage
from benchmarks.study_page import command
from jobs.settings import train_config

WORLD = WorldConfig(tiles=720, size=160, seed=6, cities=3, views=3, test_share=0.25)
"""Tiles little larger than a crop, so that turned and reduced crops reach beyond them as often as in the reference:
2.2 % of the pixels. It turns and reduces a crop of twice the side, and then takes a part of that: 1.7 %."""

QUICK_WORLD = WorldConfig(tiles=12, size=64, seed=6, cities=2, views=2, test_share=0.3, workers=1)

FOLDS, QUICK_FOLDS = 12, 2
"""Folds by place: 45 of the 540 tiles are held out for the learning curves."""

PRETRAIN, FINETUNE = 1000, 700
"""Steps of the two stages."""

PAIRS = (("symmetries", "none"), ("right", "none"), ("wrong", "none"), ("right", "symmetries"), ("wrong", "right"))


def augmented(augment: AugmentConfig) -> dict[str, Any]:
    """The changes of an arm that is augmented in its first stage."""
    return {"stages": {"pretrain": {"augment": asdict(augment)}}}


def arms() -> tuple[Arm, ...]:
    """No augmentation, symmetries alone, and the reference's augmentation with right and with wrong labels."""
    symmetries = train_config({"recipe": "demo"}).stages["train"].augment
    heavy = train_config({"recipe": "kbrodt"}).stages["pretrain"].augment
    return (
        Arm("none", "no augmentation", augmented(AugmentConfig())),
        Arm("symmetries", "exact symmetries", augmented(symmetries), seeds=1),
        Arm("right", "heavy, right labels", augmented(heavy)),
        Arm("wrong", "heavy, wrong labels", augmented(heavy), wrong_labels),
    )


def study(quick: bool) -> Study:
    """The study, or a tiny one of the same form."""
    common = {**demo_stage(quick), "augment": asdict(AugmentConfig())}
    pretrain, finetune = (4, 2) if quick else (PRETRAIN, FINETUNE)
    first = {"start": "encoder", "length": f"{pretrain} steps", "validate_every": f"{max(pretrain // 5, 1)} steps"}
    second = {
        "start": "pretrain/last", "length": f"{finetune} steps", "validate_every": f"{max(finetune // 5, 1)} steps",
    }  # fmt: skip
    base = {
        "folds": QUICK_FOLDS if quick else FOLDS,
        "stages": {"pretrain": {**common, **first}, "finetune": {**common, **second}},
    }
    pairs = tuple(((arm, "last"), (other, "last")) for arm, other in PAIRS)
    return Study("augmentation study", QUICK_WORLD if quick else WORLD, "demo", base, arms(), pairs=pairs)


def main(argv: Sequence[str] | None = None) -> None:
    command("Heavy augmentation with right and with wrong labels, and none, on the built-in world.", study, argv)


if __name__ == "__main__":
    main()
