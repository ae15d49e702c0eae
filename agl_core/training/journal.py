"""What a stage tells the user: the lines it prints, its events and its scalars."""

from typing import Any

from agl_core.data.order import Order
from agl_core.model.losses import PARTS
from agl_core.reporting.events import EventLog
from agl_core.reporting.progress import Progress
from agl_core.reporting.scalars import Scalars
from agl_core.scoring.score import Score
from agl_core.training.validation import Scores


class Journal:
    """The one place where the first process of a stage writes to; silent in the others.

    Nothing here ever ends a run: what a full disk refuses is lost, and said once.
    """

    def __init__(
        self,
        stage: str,
        order: Order,
        events: EventLog,
        scalars: Scalars,
        progress: Progress,
        magnitude: bool = False,
    ) -> None:
        """magnitude: whether the loss has this part."""
        self._stage, self._order = stage, order
        self._losses = ["loss", *(f"{part}_loss" for part in PARTS[1:] if part != "magnitude" or magnitude)]
        self._events, self._scalars, self._progress = events, scalars, progress
        self._refused = False
        self._data: dict[str, str] = {}

    def event(self, kind: str, step: int, **values: Any) -> None:
        """One line of events.jsonl."""
        self._try(lambda: self._events.write(kind, step=step, **values))

    def note(self, text: str) -> None:
        """One line for the user that stays."""
        self._progress.note(f"{self._stage}: {text}")

    def warn(self, step: int, text: str) -> None:
        """Something that is not as it should be, while training goes on."""
        self.note(f"warning: {text}")
        self.event("warning", step, text=text)

    def advance(self, loss: float | None = None) -> None:
        """One step more is done."""
        values: dict[str, float | str] = {} if loss is None else {"loss": loss, **self._data}
        self._progress.advance(1, **values)

    def step(self, step: int, losses: list[float], lr: float, rate: float, data_wait: float) -> None:
        """The losses of a step, as `PARTS` names them. rate: crops per second since the start of this process;
        data_wait: the share of the time since the last such line that steps have waited for data, 0 to 1."""
        self._data = {"data": f"{data_wait:.0%}"}
        parts = dict(zip(self._losses, losses, strict=False))  # magnitude is the last of `PARTS`
        values = {**parts, "lr": lr, "crops_per_second": rate, "data_wait": round(data_wait, 4)}
        self.event("step", step, epoch=self._order.epochs_done(step), **values)
        self._try(lambda: self._scalars.write(step, values))

    def validation(self, step: int, scores: Scores, seconds: float) -> None:
        """The scores of the held-out fold."""
        epoch = self._order.epochs_done(step)
        found, values = scores.raw.as_json(), _scalars(scores.raw)
        told = f"step {step}, score {_in_words(scores.raw)}"
        if scores.average is not None:
            found |= _prefixed(scores.average.as_json())
            values |= _prefixed(_scalars(scores.average))
            told += f", average {_in_words(scores.average)}"
        self.event("validation", step, epoch=epoch, seconds=round(seconds, 3), **found)
        self._try(lambda: self._scalars.write(step, values))
        self.note(told)

    def _try(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            if not self._refused:
                self._refused = True
                self.note(f"warning: events and scalars cannot be written ({error}); training goes on without them")


def _prefixed(values: dict[str, Any]) -> dict[str, Any]:
    """What is said of the average of the weights, by names of its own."""
    return {f"ema_{name}": value for name, value in values.items()}


def _scalars(result: Score) -> dict[str, float]:
    values = {"score": result.score}
    for city, part in result.cities.items():
        values[f"{city}/agl_r2"] = part.agl_r2
        if part.vflow_r2 is not None:
            values[f"{city}/vflow_r2"] = part.vflow_r2
    return values


def _in_words(result: Score) -> str:
    parts = ", ".join(f"{city} {part.score:.3f}" for city, part in result.cities.items())
    return f"{result.score:.4f} ({parts})"
