"""What a stage tells the user: the lines it prints, its events and its scalars."""

from typing import Any

from agl_core.data.order import Order
from agl_core.reporting.events import EventLog
from agl_core.reporting.progress import Progress
from agl_core.reporting.scalars import Scalars
from agl_core.scoring.score import Score


class Journal:
    """The one place where the first process of a stage writes to; silent in the others.

    Nothing here ever ends a run: what a full disk refuses is lost, and said once.
    """

    def __init__(self, stage: str, order: Order, events: EventLog, scalars: Scalars, progress: Progress) -> None:
        self._stage, self._order = stage, order
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
        """The losses of a step. rate: crops per second since the start of this process; data_wait: the share of the
        time since the last such line that steps have waited for data, 0 to 1."""
        self._data = {"data": f"{data_wait:.0%}"}
        total, agl, direction, scale = losses
        parts = {"loss": total, "agl_loss": agl, "direction_loss": direction, "scale_loss": scale}
        values = {**parts, "lr": lr, "crops_per_second": rate, "data_wait": round(data_wait, 4)}
        self.event("step", step, epoch=self._order.epochs_done(step), **values)
        self._try(lambda: self._scalars.write(step, values))

    def validation(self, step: int, result: Score, seconds: float) -> None:
        """The score of the held-out fold."""
        epoch = self._order.epochs_done(step)
        self.event("validation", step, epoch=epoch, seconds=round(seconds, 3), **result.as_json())
        values = {"score": result.score}
        for city, part in result.cities.items():
            values[f"{city}/agl_r2"] = part.agl_r2
            if part.vflow_r2 is not None:
                values[f"{city}/vflow_r2"] = part.vflow_r2
        self._try(lambda: self._scalars.write(step, values))
        parts = ", ".join(f"{city} {part.score:.3f}" for city, part in result.cities.items())
        self.note(f"step {step}, score {result.score:.4f} ({parts})")

    def _try(self, write: Any) -> None:
        try:
            write()
        except OSError as error:
            if not self._refused:
                self._refused = True
                self.note(f"warning: events and scalars cannot be written ({error}); training goes on without them")
