"""The official score of the held-out fold, shared among processes, exact whatever their number."""

from collections.abc import Sequence

import torch

from agl_core.data.store import Store
from agl_core.geometry import Pose
from agl_core.inference.predictor import Predictor
from agl_core.scoring.score import ImageResult, Score, score
from agl_core.scoring.sums import ImageSums, image_sums
from agl_core.training.parallel import Parallel


def validate(predictor: Predictor, store: Store, tiles: Sequence[int], parallel: Parallel) -> Score:
    """Predict the whole images `tiles` of the store and score them as `evaluate` would from disk.

    Process `rank` takes every `world_size`-th image. What is exchanged is integer sums and poses, one row an image,
    so every process returns the same score to the last bit.
    """
    sums = torch.zeros(len(tiles), 5, dtype=torch.int64)
    poses = torch.zeros(len(tiles), 2, dtype=torch.float64)
    for row in range(parallel.rank, len(tiles), parallel.world_size):
        entry = store.entries[tiles[row]]
        rgb, agl = store.read_tile(tiles[row])
        predicted = predictor.predict(rgb, entry.city, entry.gsd)
        sums[row] = torch.tensor(image_sums(agl, predicted.agl_cm).as_ints())
        poses[row] = torch.tensor([predicted.pose.scale, predicted.pose.angle], dtype=torch.float64)
    sums = parallel.sum(sums.to(parallel.device)).cpu()
    poses = parallel.sum(poses.to(parallel.device)).cpu()
    return score(
        [
            ImageResult(
                entry.id,
                entry.city,
                ImageSums(*(int(value) for value in sums[row])),
                Pose(entry.scale, entry.angle) if entry.scale is not None and entry.angle is not None else None,
                Pose(float(poses[row, 0]), float(poses[row, 1])),
            )
            for row, entry in enumerate(store.entries[number] for number in tiles)
        ]
    )
