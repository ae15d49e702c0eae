"""Simulated histories of runs, with the account of their time that they must give.

A `Story` writes the events that a run would have written, and keeps its own account, a step at a time. `long_run` makes
the whole folder of a run of weeks.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agl_core.config import StageConfig, TrainConfig
from agl_core.files import write_json, write_text
from agl_core.reporting.events import CANCEL, JOB_KINDS, LAUNCH, LEAVE, SUBMIT

BEGIN = 1_750_000_000.0
"""When stories begin: seconds since 1970."""
CITIES = {"ARG": 0.91, "ATL": 0.86, "JAX": 0.93, "OMA": 0.9}
"""The cities of the challenge, and the score that each comes near to in `long_run`."""


@dataclass
class Piece:
    """Time that went by: milliseconds, in which item, and of which step of which stage's result it is a part."""

    milliseconds: int
    item: str
    stage: str = ""
    step: int = 0


class Story:
    """A run whose every moment is known. `events` is what its file would hold; `seconds` what an account must say.

    Times are given in seconds, and kept in milliseconds, so that sums are exact.
    """

    def __init__(self, job: str = "train", total: int = 1000, every: int = 10, begin: float = BEGIN) -> None:
        """job: the stage; total: its length in steps; every: steps between two events."""
        self.events: list[dict[str, Any]] = []
        self.pieces: list[Piece] = []
        self.lost = 0
        self._now = self._begin = round(begin * 1000)
        self.id, self.restart, self.attempt, self.generation, self.host = "17", 0, 0, 0, "node1"
        self._done: dict[str, int] = {}
        self._saved: dict[str, int] = {}
        self._waited = self._busy = self._stepped = 0  # milliseconds since the last event of a step
        self.turn_to(job, total, every)

    def turn_to(self, job: str, total: int = 1000, every: int = 10) -> None:
        """What follows is about this stage, or this job."""
        self.job, self.total, self.every, self.logged = job, total, every, 0
        self._done.setdefault(job, 0)
        self._saved.setdefault(job, 0)

    @property
    def now(self) -> float:
        """Seconds since 1970."""
        return self._now / 1000

    @property
    def step(self) -> int:
        """The last step of the stage."""
        return self._done[self.job]

    @property
    def seconds(self) -> dict[str, float]:
        """By item; those without any time are left out."""
        found: Counter[str] = Counter()
        for piece in self.pieces:
            found[piece.item] += piece.milliseconds
        return {item: amount / 1000 for item, amount in found.items() if amount}

    # --- jobs

    def submit(self, id: str = "17", job: str = "") -> None:
        """A job is handed to the scheduler."""
        self._job_event(SUBMIT, job or self.job, id=id)

    def spend(self, seconds: float, item: str) -> None:
        """Let time go by."""
        self._spend(round(seconds * 1000), item)

    def launch(self, id: str = "", restart: int | None = None, attempt: int = 0, host: str = "node1") -> None:
        """The job begins to run; by default as the next attempt of the same job."""
        self.id, self.attempt, self.host = id or self.id, attempt, host
        self.restart = self.restart if restart is None else restart
        where = {"host": host, "step": self._saved[self.job], "reached": self._done[self.job]}
        self._job_event(LAUNCH, self.job, **self._who(), **where)

    def leave(self, end: str, why: str = "", deed: str = "", text: str = "") -> None:
        """The job's processes have ended."""
        told = {"step": self._done[self.job], "end": end, "why": why, "deed": deed, "text": text}
        self._job_event(LEAVE, self.job, **self._who(), **told)

    def cancel(self, *ids: str) -> None:
        """The user cancels jobs."""
        self._job_event(CANCEL, "", ids=",".join(ids))

    # --- the trainer

    def start(self, seconds: float = 30.0, each: float = 1.0) -> None:
        """The stage starts, from its newest checkpoint, and does its first step within these seconds."""
        self.generation += 1
        begun, launched = self._saved[self.job], self.now
        self._forget(begun)
        first = round(each * 1000)
        self._spend(round(seconds * 1000) - first, "start-up")
        self.event("start", step=begun, steps=self.total, epochs=self.total // self.every, world_size=4, device="cuda",
                   precision="float16", optimizer="AdamW (fused)", threads=2, parameters=24_000_000, tiles=4000,
                   skipped=[], launched=launched, job=self.id)  # fmt: skip
        self._spend(first, "start-up")
        self._done[self.job] = begun + 1
        self._busy, self._waited, self._stepped = first, 0, self._now
        self._step_event()
        items = {"python": 0.5, "imports": 6.0, "checkpoint": round(max(seconds - 7.5, 0.0), 3), "step": 1.0}
        self.event("startup", step=self.step, seconds=items, total=round(seconds, 3))

    def train(self, steps: int, each: float = 1.0, data: float = 0.0) -> None:
        """Do so many steps of `each` seconds, of which `data` are waited for data."""
        for _ in range(steps):
            whole, waited = round(each * 1000), round(data * 1000)
            self._done[self.job] += 1
            self._spend(whole - waited, "training", self.step)
            self._spend(waited, "data wait", self.step)
            self._busy, self._waited, self._stepped = self._busy + whole, self._waited + waited, self._now
            if self.step % self.every == 0 or self.step == self.total:
                self._step_event()

    def validate(self, seconds: float, score: float = 0.5, cities: dict[str, Any] | None = None) -> None:
        """Score the held-out fold."""
        self._spend(round(seconds * 1000), "validation", self.step)
        self.event("validation", step=self.step, epoch=self.step // self.every, seconds=round(seconds, 3), score=score,
                   cities=cities or {})  # fmt: skip

    def save(self, stall: float = 0.2, write: float = 2.0) -> None:
        """Save the present state; its event comes with the next step, as the disk takes its time."""
        at = self.now
        self._spend(round(stall * 1000), "checkpoint", self.step)
        self._saved[self.job] = self.step
        self.event("checkpoint", step=self.step, stall=stall, seconds=write, bytes=300_000_000, at=at)

    def roll_back(self, to: int, seconds: float = 1.0) -> None:
        """Go back to the state after step `to`."""
        self.lost += sum(1 for _ in range(to, self.step))
        self._spend(round(seconds * 1000), "lost")
        for piece in self.pieces:
            if piece.stage == self.job and piece.step > to:
                piece.item, piece.stage = "lost", ""
        self.event("rollback", step=self.step, to=to)
        self._saved[self.job] = self.step

    def interrupt(self, signal: str = "TERM", seconds: float = 3.0, saved: bool = True) -> None:
        """The trainer is asked to leave, and saves in these seconds."""
        self.spend(seconds, "ending")
        if saved:
            self._saved[self.job] = self.step
        told = {"signal": signal, "saved": self._saved[self.job], "at": self._stepped / 1000}
        self.event("interruption", step=self.step, **told, waited=self._waited / 1000)

    def finish(self, seconds: float = 4.0, score: float = 0.9) -> None:
        """The stage has its length and leaves its weights."""
        self.spend(seconds, "ending")
        self._saved[self.job] = self.step
        self.event("finish", step=self.step, score=score)

    def event(self, kind: str, **values: Any) -> None:
        """An event of the trainer."""
        head = {"time": self.now, "kind": kind, "stage": self.job, "generation": self.generation}
        self.events.append(head | values)

    def write(self, path: Path) -> Path:
        """Write the file of events; one that is being read is appended to, as a run does."""
        text = "".join(json.dumps(event) + "\n" for event in self.events)
        before = path.read_text() if path.exists() else ""
        goes_on = text.startswith(before)
        with path.open("a" if goes_on else "w") as file:
            file.write(text.removeprefix(before) if goes_on else text)
        return path

    def _step_event(self) -> None:
        share = round(self._waited / self._busy, 4) if self._busy else 0.0
        progress = self.step / self.total
        losses = {"loss": 3.0 * math.exp(-3 * progress) + 0.4, "agl_loss": 2.0 * math.exp(-3 * progress) + 0.2,
                  "direction_loss": 0.5 * math.exp(-5 * progress) + 0.1,
                  "scale_loss": 0.5 * math.exp(-4 * progress) + 0.1}  # fmt: skip
        rest = {"lr": 1e-4 * (1 - progress) + 1e-7, "crops_per_second": 40.0, "data_wait": share}
        self.event("step", step=self.step, epoch=self.step // self.every, **losses, **rest,
                   seconds=self._busy / 1000, waited=self._waited / 1000)  # fmt: skip
        self._busy = self._waited = 0

    def _forget(self, begun: int) -> None:
        """What was done after step `begun` is about to be done again."""
        self.lost += max(self._done[self.job] - begun, 0)
        self._done[self.job] = begun
        for piece in self.pieces:
            if piece.stage == self.job and piece.step > begun:
                piece.item, piece.stage = "lost", ""

    def _spend(self, milliseconds: int, item: str, step: int = 0) -> None:
        self._now += milliseconds
        self.pieces.append(Piece(milliseconds, item, self.job if step else "", step))

    def _who(self) -> dict[str, Any]:
        return {"id": self.id, "restart": self.restart, "attempt": self.attempt}

    def _job_event(self, kind: str, job: str, **values: Any) -> None:
        self.events.append({"time": self.now, "kind": kind, "stage": job} | values)


ENDS = ("preempted", "crashed", "node lost", "time limit", "preempted", "cancelled", "warned")
"""How the incarnations of `long_run` end, one after the other."""


def long_run(folder: Path, epochs: int = 1550, incarnations: int = 50) -> Path:
    """The folder of a finished run of two stages on a cluster, with so many epochs and starts in all; returns it.

    A pure function of its arguments: configuration, cluster, events with a validation of four cities in each epoch, the
    history of its jobs, records of stages and score."""
    return tell(long_story(epochs, incarnations), folder, epochs)


def long_story(epochs: int = 1550, incarnations: int = 50) -> Story:
    """What happens in `long_run`."""
    split = max(epochs // 3, 1)
    lengths = {"crops": split, "full": max(epochs - split, 1)}
    story = Story("crops", lengths["crops"] * 40)
    story.submit("1001", "prepare")
    for number, stage in enumerate(lengths):
        story.submit(str(1002 + number), stage)
    story.turn_to("prepare")
    story.spend(600.0, "queue")
    story.launch("1001")
    story.spend(2400.0, "other jobs")
    story.leave("done", deed="done")
    starts = {"crops": max(incarnations // 3, 1)}
    starts["full"] = max(incarnations - starts["crops"], 1)
    for number, (stage, length) in enumerate(lengths.items()):
        story.turn_to(stage, length * 40, 40)
        story.id, story.restart = str(1002 + number), 0
        story.spend(180.0, "queue")
        _stage(story, length, starts[stage], number)
    return story


def _stage(story: Story, epochs: int, starts: int, number: int) -> None:
    """A stage of 40 steps an epoch, interrupted after equal parts of its epochs."""
    story.launch(restart=0)
    for turn in range(starts):
        story.start(60.0 + turn % 5, each=1.5)
        until = epochs if turn == starts - 1 else min(epochs * (turn + 1) // starts, epochs - 1)
        while (epoch := story.step // 40) < until:
            story.train(40 * (epoch + 1) - story.step, each=1.5, data=0.05 * (1 + epoch % 3))
            story.validate(20.0, *_scores(epoch, epochs, number))
            if epoch % 2 and epoch < epochs - 1:
                story.save(0.15, 4.0)
        if turn < starts - 1:
            _end(story, ENDS[turn % len(ENDS)], turn, number)
    story.finish(6.0, _scores(epochs, epochs, number)[0])
    story.leave("done", deed="done")


def _end(story: Story, how: str, turn: int, number: int) -> None:
    """The end of an incarnation, and all until the next is launched."""
    story.train(17, each=1.5, data=0.0)
    if how == "crashed":
        story.spend(90.0, "down")
        text = "rank 2 ended with exit code -9: RuntimeError: CUDA error: an illegal memory access was encountered"
        story.leave("crashed", "warned", "again", text)
        story.launch(attempt=story.attempt + 1)
        return
    if how == "node lost":
        story.spend(300.0, "down")
        story.launch(restart=story.restart + 1, host=f"node{turn % 4 + 1}")
        return
    story.interrupt("USR2" if how == "time limit" else "TERM", 5.0)
    story.spend(1.5, "ending")
    text = f"interrupted by TERM; step {story.step} is saved"
    if how == "cancelled":
        story.cancel(story.id)
        story.leave("interrupted", how, "leave", text)
        story.spend(86_400.0, "stopped")
        story.submit(str(2000 + 100 * number + turn))
        story.spend(600.0, "queue")
        story.launch(str(2000 + 100 * number + turn), 0)
        return
    story.leave("interrupted", how, "requeue", text)
    story.spend(120.0 + 600.0 * (turn % 6), "queue")
    story.launch(restart=story.restart + 1, host=f"node{turn % 4 + 1}")


def _scores(epoch: int, epochs: int, number: int) -> tuple[float, dict[str, Any]]:
    """The score after an epoch, and that of each city: rising, and never smooth."""
    cities = {}
    for place, (city, best) in enumerate(CITIES.items()):
        rise = (
            1 - math.exp(-4 * (epoch + 1) / epochs) if number == 0 else 1 - 0.15 * math.exp(-5 * (epoch + 1) / epochs)
        )
        ripple = 0.01 * math.sin(12.9898 * (epoch + 1) * (place + 1)) * (1.2 - rise)
        agl, flow = best * 0.97 * rise + ripple, best * 1.03 * rise - ripple
        cities[city] = {"agl_r2": agl, "vflow_r2": flow, "score": (agl + flow) / 2, "images": 40,
                        "known_pixels": 40_000_000, "angle_error": 3.0 + 30 * (1 - rise),
                        "scale_error": 0.02 + 0.2 * (1 - rise)}  # fmt: skip
    return sum(value["score"] for value in cities.values()) / len(cities), cities


def tell(story: Story, folder: Path, epochs: int) -> Path:
    """Write the folder of a story's run."""
    from jobs.cluster import load_cluster
    from jobs.settings import to_yaml

    for name in ("jobs", "stages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    split = max(epochs // 3, 1)
    stages = {
        "crops": StageConfig(length=f"{split} epochs", crop=512),
        "full": StageConfig(start="crops/best", length=f"{max(epochs - split, 1)} epochs", crop=1024),
    }
    config = TrainConfig(run=folder.name, runs=str(folder.parent), recipe="kbrodt", data="/data/geopose",
                         store="/data/geopose/store", cluster="slurm", stages=stages, workers=6, threads=2)  # fmt: skip
    write_text(folder / "config.yaml", to_yaml(config))
    write_text(folder / "cluster.yaml", to_yaml(load_cluster("slurm")))
    story.write(folder / "events.jsonl")
    _write_history(story, folder / "jobs" / "history.jsonl")
    for event in story.events:
        if event["kind"] == "finish":
            record = {"finished": True, "steps": event["step"], "score": event["score"]}
            write_json(folder / "stages" / f"{event['stage']}.json", record)
    score, cities = _scores(epochs, epochs, 1)
    best_constant = {"score": -0.01, "cities": {city: {"score": -0.01} for city in CITIES}}
    changes = {"as predicted": 0.0, "true angle": 0.02, "true scale": 0.03, "true pose": 0.045, "true heights": 0.05}
    what_if = {
        name: {"score": score + more, "cities": {city: cities[city]["score"] + more for city in CITIES}}
        for name, more in changes.items()
    }
    write_json(
        folder / "score.json",
        {"score": score, "cities": cities, "best_constant": best_constant, "what_if": what_if, "images": {}},
    )
    return folder


def _write_history(story: Story, path: Path) -> None:
    """What `jobs.history` keeps of the same jobs."""
    lines = []
    for event in story.events:
        if event["kind"] not in JOB_KINDS or event["kind"] == SUBMIT:
            continue
        entry = {"time": event["time"], "kind": {LAUNCH: "begin", LEAVE: "end", CANCEL: "cancel"}[event["kind"]],
                 "job": event["stage"], "id": event.get("id", event.get("ids"))}  # fmt: skip
        rest = {key: event[key] for key in event if key not in ("time", "kind", "stage", "ids", "id", "reached")}
        more = {"pid": 4711} if event["kind"] == LAUNCH else {"traceback": ""} if event["kind"] == LEAVE else {}
        lines.append(json.dumps({**entry, **rest, **more}))
    path.write_text("\n".join(lines) + "\n")
