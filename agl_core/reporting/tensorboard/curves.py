"""What TensorBoard is told of a stage: a pure function of its events.

| tag, after the stage's name | of which event |
|---|---|
| loss, agl_loss, ..., lr, crops_per_second, data_wait, epoch | step |
| score; score, agl_r2, agl_rmse (m), magnitude_r2, magnitude_rmse (px), vflow_r2, vflow_rmse (px), | validation |
| angle_error (deg) and scale_error (px/m), each with /city; the same of the average of the weights with ema_ | |
| restarts: how often the stage was started again; began (text) | start |
| ended (text) | interruption, refusal, finish; of what was killed or taken back, the start after it |

There is one record for each event that counts. What a restart takes back is left out, as `read_events` leaves it out,
and where a step was done twice without being taken back, as a validation may be, the later one counts.
"""

import html
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING

from agl_core.reporting.events import is_finite

STEP_VALUES = ("lr", "crops_per_second", "data_wait", "epoch")
CITY_VALUES = (
    "score", "agl_r2", "agl_rmse", "magnitude_r2", "magnitude_rmse", "vflow_r2", "vflow_rmse", "angle_error",
    "scale_error",
)  # fmt: skip
ENDS = ("interruption", "refusal", "finish")
KILLED = "killed, or its machine failed"
_MOST = 3e38  # TensorBoard keeps numbers as float32


class Record(NamedTuple):
    """What one event tells: kind of event, time (seconds since 1970), and an encoded Summary."""

    step: int
    kind: str
    at: float
    content: bytes


class Curves:
    """Takes the events of a run, in the order of the file, and keeps the records of one stage that count."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._records: dict[int, dict[str, Record]] = {}
        self._texts: dict[tuple[int, str], list[str]] = {}
        self._newest, self._starts, self._reached = 0, 0, 0
        self._end = ""  # how the start before ended
        self._told: int | None = None  # the step at which `ended` tells that

    def take(self, event: Mapping[str, Any]) -> Record | None:
        """The record that the event leads to, if it is one of this stage that counts; what is not as it should be is
        left out. The same event may come twice."""
        if event.get("stage") != self.stage:
            if event.get("kind") == "start":  # also of another stage
                self._newest = max(self._newest, _whole(event.get("generation", 0)))
            return None
        kind, step, generation = event.get("kind"), event.get("step"), _whole(event.get("generation", self._newest))
        if kind == "leave":
            self._leave(event)
        elif kind == "launch":  # a start that was killed with everything could not say how far it came
            self._reached = max(self._reached, _whole(event.get("reached", 0)))
        if not isinstance(step, int) or isinstance(step, bool) or not 0 <= step < 2**62 or generation < self._newest:
            return None
        if kind == "start":
            return self._start(step, generation, event)
        self._reached = max(self._reached, step)
        if kind == "step":
            return self._add(step, kind, event, _scalars(self.stage, _of_step(event)))
        if kind == "validation":
            return self._add(step, kind, event, _scalars(self.stage, _of_validation(event)))
        if kind in ENDS:
            self._end, self._told = _ending(event), step
            return self._tell(step, "ended", event, f"after step {step}: {self._end}")
        return None

    def from_step(self, step: int) -> Iterator[Record]:
        """The records of `step` and later steps, in order."""
        for known in sorted(self._records):
            if known >= step:
                yield from self._records[known].values()

    def forget_before(self, step: int) -> None:
        """Let go of the records of earlier steps, which nobody will ask for."""
        for known in [known for known in self._records if known < step]:
            del self._records[known]
        for place in [place for place in self._texts if place[0] < step]:
            del self._texts[place]

    def _start(self, step: int, generation: int, event: Mapping[str, Any]) -> Record | None:
        if generation and generation == self._newest and (step, "began") in self._texts:
            return None  # known already
        self._newest = generation
        self._starts += 1
        for known in [known for known in self._records if known > step]:
            del self._records[known]
        for place in [place for place in self._texts if place[0] > step]:
            del self._texts[place]
        if self._starts > 1 and (self._told is None or self._told > step):
            self._tell(step, "ended", event, f"after step {self._reached}: {self._end or KILLED}")
        self._tell(step, "began", event, self._beginning(step, event))
        self._end, self._told, self._reached = "", None, step
        return self._add(step, "start", event, _scalars(self.stage, {"restarts": self._starts - 1}))

    def _beginning(self, step: int, event: Mapping[str, Any]) -> str:
        what = [f"{event[key]}" for key in ("device", "precision") if event.get(key)]
        text = f"start {self._starts}, from step {step} of {event.get('steps', '?')}; "
        text += f"{event.get('world_size', '?')} x {', '.join(what)}"
        if self._starts > 1:
            text += f"; the start before ended after step {self._reached}: {self._end or KILLED}"
        return text

    def _leave(self, event: Mapping[str, Any]) -> None:
        """Who started the process knows more of its end than the process itself."""
        why = next((str(event[key]) for key in ("why", "end") if event.get(key)), "")
        if why and why not in self._end:
            self._end = f"{self._end}; {why}" if self._end else why

    def _tell(self, step: int, kind: str, event: Mapping[str, Any], text: str) -> Record:
        texts = self._texts.setdefault((step, kind), [])
        if text not in texts:
            texts.append(text)
        content = Summary(value=[_text(f"{self.stage}/{kind}", "\n\n".join(map(_escaped, texts)))])
        return self._add(step, kind, event, content)

    def _add(self, step: int, kind: str, event: Mapping[str, Any], content: Any) -> Record:
        at = event.get("time")
        at = float(at) if is_finite(at) else 0.0
        record = Record(step, kind, at, content.SerializeToString(deterministic=True))
        self._records.setdefault(step, {})[kind] = record
        return record


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**62 else 0


def _of_step(event: Mapping[str, Any]) -> dict[str, Any]:
    losses = {name: value for name, value in event.items() if name == "loss" or name.endswith("_loss")}
    return losses | {name: event.get(name) for name in STEP_VALUES}


def _of_validation(event: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for prefix in ("", "ema_"):
        values[f"{prefix}score"] = event.get(f"{prefix}score")
        cities = event.get(f"{prefix}cities")
        for city, found in (cities if isinstance(cities, dict) else {}).items():
            if isinstance(found, dict):
                values |= {f"{prefix}{name}/{city}": found.get(name) for name in CITY_VALUES}
    return values


def _scalars(stage: str, values: Mapping[str, Any]) -> Any:
    return Summary(
        value=[
            Summary.Value(tag=_clean(f"{stage}/{name}"), simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
        ]
    )


def _text(tag: str, markdown: str) -> Any:
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype=DT_STRING, string_val=[_clean(markdown).encode()])
    return Summary.Value(tag=_clean(tag), metadata=metadata, tensor=tensor)


def _ending(event: Mapping[str, Any]) -> str:
    if event["kind"] == "interruption":
        saved = event.get("saved")
        kept = "nothing saved" if saved is None else f"saved up to step {saved}"
        return f"interrupted by {event.get('signal', 'a signal')}, {kept}"
    return "the stage is finished" if event["kind"] == "finish" else f"refused: {event.get('text', '')}"


def _escaped(text: str) -> str:
    """Text that TensorBoard's Markdown shows as it is."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~>-])", r"\\\1", html.escape(" ".join(text.split())))


def _clean(text: str) -> str:
    """Half of a character, which a damaged file may hold, cannot be encoded."""
    return text.encode("utf-8", "replace").decode()


def records_of(stage: str, events: Iterable[Mapping[str, Any]]) -> Curves:
    """The curves of `stage` after all `events` of the run."""
    curves = Curves(stage)
    for event in events:
        curves.take(event)
    return curves
