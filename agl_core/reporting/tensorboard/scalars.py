"""The same numbers for TensorBoard, and pictures."""

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from agl_core.reporting.events import each_event
from agl_core.reporting.pictures.sheet import Image

RETRY = 60.0  # seconds from a refusal of the disk to the next attempt


class Scalars:
    """Keeps TensorBoard's files of one stage, below `folder`, to what the events of the run tell.

    A start compares what earlier ones have left there with events.jsonl, and writes again from the first step on where
    they differ: what a kill has cut off, and what was done after the step that this start continues from, which
    TensorBoard then takes back. So each step is there once, whatever has happened. From there on every event is in the
    file before `take` returns. With `folder` None nothing is written (other ranks).
    """

    def __init__(self, folder: Path | None, stage: str, generation: int, events: Path) -> None:
        """generation: number of this start of the run; events: its events.jsonl."""
        self._folder, self._stage, self._generation, self._events = folder, stage, generation, events
        self._file: Any = None
        self._curves: Any = None
        self._again, self._refusals = 0.0, 0

    def take(self, kind: str, **values: Any) -> None:
        """An event that is in events.jsonl now, if it could be written there.

        Raises:
            OSError: the disk refuses it; it is written a while later, from events.jsonl. So it is after any other
                error, which a damaged file may lead to.
        """
        if self._folder is None or (self._file is None and time.monotonic() < self._again):
            return
        event = {"time": time.time(), "kind": kind, "stage": self._stage, "generation": self._generation, **values}
        try:
            if self._file is None:
                self._begin(event)
            else:
                self._append(event)
        except Exception:  # the disk refuses, or what earlier starts have left is not as it should be
            self._again, self._refusals = time.monotonic() + RETRY, self._refusals + 1
            self.close()
            raise

    def close(self) -> None:
        """Close the file; what the disk refuses is lost, which must not hide how the stage ended."""
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()

    def _begin(self, event: dict[str, Any]) -> None:
        """Write what earlier files lack."""
        # Here, since it takes a fifth of a second, which only the first process has to wait for.
        from agl_core.reporting.tensorboard.curves import records_of
        from agl_core.reporting.tensorboard.records import RecordFile, file_name, read_records, session, summary

        assert self._folder is not None
        folder = self._folder / self._stage
        self._curves = records_of(self._stage, each_event(self._events))
        self._curves.take(event)
        wanted: dict[int, list[bytes]] = {}
        for record in self._curves.from_step(0):
            wanted.setdefault(record.step, []).append(record.content)
        found = _contents(read_records(folder))
        differing = (
            step for step in wanted.keys() | found.keys() if sorted(wanted.get(step, [])) != sorted(found.get(step, []))
        )
        first = min(differing, default=max(wanted, default=-1) + 1)
        self._file = RecordFile(folder / file_name(self._generation, self._refusals), event["time"])
        lacking = list(self._curves.from_step(first))
        begun = [session(first, event["time"])]
        if found and max(found) <= first and not Counter(found.get(first, [])) - Counter(wanted.get(first, [])):
            # Nothing has to be taken back: what is there is not told twice to those who read the file itself.
            there = found.get(first, [])
            begun, lacking = [], [one for one in lacking if one.step > first or one.content not in there]
        self._file.append([*begun, *(summary(one.step, one.at, one.content) for one in lacking)])
        self._curves.forget_before(max(wanted, default=0))

    def _append(self, event: dict[str, Any]) -> None:
        from agl_core.reporting.tensorboard.records import session, summary

        step = event.get("step", 0)
        before = {record.kind: record.content for record in self._curves.from_step(step)}
        if self._curves.take(event) is None:
            return
        after = list(self._curves.from_step(step))
        new = [record for record in after if before.get(record.kind) != record.content]
        if any(record.kind in before for record in new):  # TensorBoard takes the whole step back
            self._file.append([session(step, event["time"]), *(summary(r.step, r.at, r.content) for r in after)])
        elif new:
            self._file.append([summary(record.step, record.at, record.content) for record in new])
        self._curves.forget_before(step)


def _contents(events: Any) -> dict[int, list[bytes]]:
    """What TensorBoard shows of `events`: the Summaries by step."""
    found: dict[int, list[bytes]] = {}
    begun = False
    for event in events:
        what = event.WhichOneof("what")
        if what == "session_log":
            if begun:
                for step in [step for step in found if step >= event.step]:
                    del found[step]
            begun = True
        elif what == "summary":
            found.setdefault(event.step, []).append(event.summary.SerializeToString(deterministic=True))
    return found


class Pictures:
    """Pictures of one stage for TensorBoard, in a run of their own beside the scalars.

    What earlier starts have shown of steps that are done again is taken back with the first picture of this one.
    """

    def __init__(self, folder: Path | None, stage: str, start: int, generation: int) -> None:
        """start: the step that this start of the run, number `generation`, continues from."""
        self._folder, self._stage, self._start, self._generation = folder, stage, start, generation
        self._file: Any = None

    def write(self, step: int, pictures: dict[str, Image]) -> None:
        """Show pictures (h, w, 3), by name, at `step`. Raises OSError."""
        if self._folder is None:
            return
        from tensorboard.compat.proto.summary_pb2 import Summary

        from agl_core.reporting.tensorboard.records import RecordFile, file_name, session, summary

        at, records = time.time(), []
        if self._file is None:
            path = self._folder / f"{self._stage}.tiles" / file_name(self._generation)
            self._file = RecordFile(path, at)
            records.append(session(min(self._start + 1, step), at))
        for name, picture in pictures.items():
            height, width = picture.shape[:2]
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=_jpeg(picture))
            value = Summary.Value(tag=f"{self._stage}/{name}", image=image)
            records.append(summary(step, at, Summary(value=[value]).SerializeToString()))
        self._file.append(records)

    def close(self) -> None:
        """Close the file; what the disk refuses is lost."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()


def _jpeg(picture: Image) -> bytes:
    from agl_core.opencv import cv2

    done, encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    assert done
    return encoded.tobytes()
