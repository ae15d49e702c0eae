"""The official score of the held-out fold, shared among processes, exact whatever their number."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from agl_core.data.store import Store
from agl_core.errors import UserError
from agl_core.geometry import Pose
from agl_core.inference.memory import TooLargeError, is_shortage
from agl_core.inference.predictor import NotFiniteError, Prediction, Predictor
from agl_core.scoring.score import ImageResult, Score, score
from agl_core.scoring.sums import ImageSums, image_sums
from agl_core.training.parallel import Parallel


class Scores(NamedTuple):
    """Of one validation: the score of the weights, and that of their average where there is one."""

    raw: Score
    average: Score | None

    @property
    def ema(self) -> bool:
        """Whether the average scored higher."""
        return self.average is not None and self.average.score > self.raw.score

    @property
    def best(self) -> Score:
        """The higher one."""
        return self.average if self.average is not None and self.ema else self.raw


def validate(
    predictor: Predictor,
    store: Store,
    tiles: Sequence[int],
    parallel: Parallel,
    give_up: Callable[[], bool] = lambda: False,
    look: Callable[[int, Prediction], None] = lambda tile, predicted: None,
) -> Score | None:
    """Predict the whole images `tiles` of the store and score them as `evaluate` would from disk.

    Process `rank` takes every `world_size`-th image. What is exchanged is integer sums and poses, one row an image,
    so every process returns the same score to the last bit. `give_up` is asked before every image; if it says so in any
    process, all return None. `look` is shown each of `tiles` with its prediction, in the process that has made it.

    Raises:
        NotFiniteError: in all processes, if the network's answer is not finite in one.
        UserError: in all processes, with the same sentence, if one cannot read or predict an image.
    """
    sums = torch.zeros(len(tiles), 5, dtype=torch.int64)
    poses = torch.zeros(len(tiles), 2, dtype=torch.float64)
    given_up, problem, refusal = False, "", ""
    for row in range(parallel.rank, len(tiles), parallel.world_size):
        if given_up := give_up():
            break
        entry = store.entries[tiles[row]]
        try:
            rgb, agl = store.read_tile(tiles[row])
            predicted = predictor.predict(rgb, entry.city, entry.gsd)
        except NotFiniteError as error:
            problem = str(error)
            break
        except (TooLargeError, RuntimeError, MemoryError) as error:
            if not isinstance(error, TooLargeError) and not is_shortage(error):
                raise
            refusal = (
                f"{predictor.device} has too little memory to validate on tile {entry.id}, {entry.height} x "
                f"{entry.width} pixels at once: use devices with more memory, or prepare a store of smaller tiles"
            )
            break
        except UserError as error:
            refusal = str(error)
            break
        sums[row] = torch.tensor(image_sums(agl, predicted.agl_cm).as_ints())
        poses[row] = torch.tensor([predicted.pose.scale, predicted.pose.angle], dtype=torch.float64)
        look(tiles[row], predicted)
    if parallel.any(given_up):
        return None
    if refusal := parallel.any_text(refusal):
        raise UserError(refusal)
    if parallel.any(bool(problem)):
        raise NotFiniteError(problem or "the network's answer is not finite")
    sums = torch.stack(parallel.gather(sums)).sum(0)
    poses = torch.stack(parallel.gather(poses)).sum(0)  # each row is of one process and zero in the others
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
