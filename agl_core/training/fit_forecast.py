"""How long a recipe's stages take, from the time of one micro-batch: pure arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass

from agl_core.config import StageConfig, TrainConfig
from agl_core.data.order import Order
from agl_core.errors import UserError
from agl_core.training.schedule import Span

CHALLENGE = {"ARG": 2325, "ATL": 704, "JAX": 1098, "OMA": 1796}
"""Training tiles of the Overhead Geopose Challenge by city, 5923 in all."""

TilesOf = Callable[[str], int]
"""How many tiles the stage of a name trains on."""


@dataclass(frozen=True)
class Pace:
    """What one device takes: seconds for forward and backward of `micro_batch` crops of side `crop`, and seconds for
    what comes once per step, whatever is in it (optimiser, moving average, gradient scale)."""

    micro_batch: int
    crop: int
    compute: float
    commit: float

    @property
    def crops_per_second(self) -> float:
        """With one micro-batch per step."""
        return self.micro_batch / (self.compute + self.commit)

    def step(self, stage: StageConfig, micro_batch: int, processes: int) -> float:
        """Seconds of a step of `stage`. Time is taken to grow with the pixels; with `processes`, the one that has most
        micro-batches counts, and what they exchange does not."""
        rounds = -(-(stage.batch // micro_batch) // processes)
        pixels = (micro_batch * stage.crop**2) / (self.micro_batch * self.crop**2)
        return rounds * self.compute * pixels + self.commit


@dataclass(frozen=True)
class StageTime:
    """What is expected of one stage: its steps, hours of training without validation, the micro-batch of each process,
    and the tiles that it trains on."""

    stage: str
    steps: int
    hours: float
    micro_batch: int
    tiles: int


def usable(stage: StageConfig, largest: int, processes: int) -> int:
    """The micro-batch that a stage would train with where `largest` fits: its own, or the next smaller divisor of its
    batch that fits and leaves one for each of the processes."""
    most = min(stage.micro_batch, largest, stage.batch // processes)
    numbers = [number for number in range(1, most + 1) if stage.batch % number == 0]
    # With sync_batchnorm every process must have as many; if that cannot be, training says so.
    even = [number for number in numbers if not stage.sync_batchnorm or stage.batch // number % processes == 0]
    return max(even or numbers)


def check_processes(config: TrainConfig, processes: int) -> None:
    """Raise a `UserError` if a step of a stage has fewer crops than there are processes."""
    for name, stage in config.stages.items():
        if stage.batch < processes:
            raise UserError(
                f"a step of stage {name!r} has {stage.batch} crops for {processes} processes: give a --cluster with "
                f"{stage.batch} processes or fewer"
            )


def forecast(config: TrainConfig, pace: Pace, largest: int, processes: int, tiles: TilesOf) -> list[StageTime]:
    """What is expected of every stage of `config`.

    Args:
        config: the recipe; its stages have the crops that they are to be trained with.
        pace: what was measured.
        largest: the largest micro-batch that fits at the crop of `pace`.
        processes: that train together, a device for each.
        tiles: how many tiles a stage trains on.
    """
    found = []
    for number, (name, stage) in enumerate(config.stages.items()):
        fits = max(largest * pace.crop**2 // stage.crop**2, 1)
        micro_batch, count = usable(stage, fits, processes), tiles(name)
        order = Order(config.seed, number, count, stage.batch)
        steps = Span.parse(stage.length, f"stages.{name}.length").steps(order)
        hours = steps * pace.step(stage, micro_batch, processes) / 3600
        found.append(StageTime(name, steps, hours, micro_batch, count))
    return found


def challenge_tiles(config: TrainConfig, stage: str) -> int:
    """Tiles of the challenge that a stage trains on: those of its cities, without the share that is held out.

    Raises:
        UserError: the stage is for cities that the challenge does not have.
    """
    wanted = [city.strip() for city in config.stages[stage].cities.split(",") if city.strip()]
    unknown = [city for city in wanted if city not in CHALLENGE]
    if unknown:
        raise UserError(
            f"stages.{stage}.cities has {unknown[0]}, which the challenge does not have: give --store or --tiles"
        )
    count = sum(tiles for city, tiles in CHALLENGE.items() if city in (wanted or CHALLENGE))
    return count - (count // config.folds if config.fold >= 0 else 0)
