"""The time of a step: as measured, and what follows from it for other stages and other numbers of processes."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from agl_core.config import PlanConfig, StageConfig, TrainConfig
from agl_core.durable.interval import DAY, HOUR, MINUTE
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.training.fit_forecast import Pace, usable
from jobs.planning.measured import Measured


def duration(seconds: float) -> str:
    """In the two largest units: 6 d 3 h, 5 h 20 min, 3 min 20 s, 12 s."""
    units = (("d", DAY), ("h", HOUR), ("min", MINUTE), ("s", 1.0))
    for (name, size), (smaller, part) in pairwise(units):
        if round(seconds / part) * part >= size:
            whole, rest = divmod(round(seconds / part), round(size / part))
            return f"{whole} {name} {rest} {smaller}" if rest else f"{whole} {name}"
    return f"{seconds:.0f} s" if seconds >= 10 or not seconds else f"{seconds:.2g} s"


@dataclass(frozen=True)
class Reference:
    """A measured step: its seconds, of which stage of a recipe, by how many processes. pace: that of `fit`, with the
    largest micro-batch that fits at its crop, in the place of these."""

    seconds: float
    stage: StageConfig
    processes: int
    source: str
    pace: Pace | None = None
    largest: int = 0

    def step(self, stage: StageConfig, processes: int) -> float:
        """Seconds of a step of another stage, or by another number of processes.

        Time is taken to go with the pixels of the process that has most of them; what processes exchange does not
        change with their number.
        """
        if self.pace is not None:
            fits = max(self.largest * self.pace.crop**2 // stage.crop**2, 1)
            return self.pace.step(stage, usable(stage, fits, processes), processes)
        return self.seconds * pixels(stage, processes) / pixels(self.stage, self.processes)


def micro_batch(stage: StageConfig, processes: int) -> int:
    """That of a stage, or a smaller one where there would not be one for each process."""
    return usable(stage, stage.micro_batch, processes)


def pixels(stage: StageConfig, processes: int) -> int:
    """Pixels that the process which has most of them computes in a step."""
    size = micro_batch(stage, processes)
    return -(-(stage.batch // size) // processes) * size * stage.crop**2


def references(
    config: PlanConfig, train: TrainConfig, measured: Measured | None, processes: int
) -> dict[str, Reference]:
    """A measured step for each stage: its own where there is one."""
    first = next(iter(train.stages.values()))
    if config.step_seconds is not None:
        return dict.fromkeys(
            train.stages,
            Reference(
                config.step_seconds,
                first,
                processes,
                f"--step-seconds, for {processes} process{'es' * (processes != 1)}",
            ),
        )
    if config.fit:
        return dict.fromkeys(train.stages, _of_fit(config.fit, train))
    own: dict[str, Reference] = {}
    if measured is not None:
        if measured.config.encoder != train.encoder:
            raise UserError(
                f"run {config.run} has measured {measured.config.encoder}, not {train.encoder}: give --step-seconds or "
                "--fit"
            )
        for name, times in measured.stages.items():
            if times.step is not None:
                stage = measured.config.stages[name]
                own[name] = Reference(times.step, stage, times.processes or 1, f"run {config.run}")
    if not own:
        why = f"run {config.run} has done no steps yet" if measured is not None else "it depends on your GPU"
        raise UserError(
            f"the time of a step is unknown ({why}): give --step-seconds, --fit with a file of `fit --json`, or --run "
            "with a run that has trained"
        )
    any_stage = next(iter(own.values()))
    named, reference = next((name for name, one in own.items() if one is any_stage), ""), any_stage
    other = replace(reference, source=f"{reference.source}, from stage {named} by the pixels of a step")
    return {name: own.get(name, other) for name in train.stages}


def _of_fit(path: str, train: TrainConfig) -> Reference:
    if not Path(path).is_file():
        raise UserError(f"--fit {path} does not exist: write it with `python launch.py fit --json FILE`")
    content = read_json(Path(path))
    rows = content.get("rows", []) if isinstance(content, dict) else []
    known = {row.get("encoder"): row for row in rows if isinstance(row, dict) and row.get("pace")}
    row = known.get(train.encoder)
    if row is None:
        raise UserError(
            f"--fit {path} holds no measured time of {train.encoder}, only of "
            f"{', '.join(map(str, known)) or 'nothing'}: give --encoder, or measure it with "
            "`python launch.py fit --json FILE`"
        )
    try:
        values = {name: row["pace"][name] for name in ("micro_batch", "crop", "compute", "commit")}
        pace, largest = Pace(**values), int(row["largest"])
        stage = next(iter(train.stages.values()))
        return Reference(pace.step(stage, pace.micro_batch, 1), stage, 1, f"fit ({path})", pace, largest)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"--fit {path} is not what `fit --json` writes ({error!r}): measure again") from None
