"""TensorBoard shows what events.jsonl tells, whatever has happened to a run: judged by TensorBoard's own reader."""

import errno
import io
import json
import logging
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as ServersAccumulator

from agl_core.reporting.events import EventLog, read_events
from agl_core.reporting.tensorboard import records, scalars
from agl_core.reporting.tensorboard.records import read_records
from agl_core.reporting.tensorboard.scalars import Pictures, Scalars

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "tensorboard")  # it warns of each step that it takes back


class Life:
    """One start of a stage, as the journal writes it: to events.jsonl first."""

    def __init__(self, run: Path, generation: int, start: int, stage: str = "first", silent: bool = False) -> None:
        self.step = start
        self.events = EventLog(run / "events.jsonl", stage, generation)
        self.scalars = Scalars(None if silent else run / "tensorboard", stage, generation, run / "events.jsonl")
        self.write("start", start, steps=100, world_size=2, device="cpu", precision="float32")

    def write(self, kind: str, step: int, lost: bool = False, **values: Any) -> None:
        """lost: a kill falls between the two files."""
        self.events.write(kind, step=step, **values)
        if not lost:
            with suppress(OSError):
                self.scalars.take(kind, step=step, **values)

    def train(self, steps: int, salt: float = 0.0, lost: bool = False) -> "Life":
        """So many steps more, and a validation after every fifth; lost: but the last record."""
        for step in range(self.step + 1, self.step + steps + 1):
            last = lost and step == self.step + steps
            loss = 1 / step + salt
            self.write("step", step, last, epoch=step // 3, loss=loss, agl_loss=loss / 2, lr=1e-3, data_wait=0.1)
            if step % 5 == 0:
                cities = {city: {"score": step / 100, "agl_rmse": 9.0, "vflow_r2": None} for city in ("A", "B/C")}
                self.write("validation", step, last, epoch=step // 3, score=step / 100 + salt, cities=cities)
        self.step += steps
        return self

    def close(self) -> None:
        self.events.close()
        self.scalars.close()


def shown(run: Path, stage: str = "first") -> Curves:
    """What TensorBoard shows."""
    accumulator = EventAccumulator(str(run / "tensorboard" / stage), size_guidance=EVERYTHING)
    accumulator.Reload()
    found = {tag: [(one.step, one.value) for one in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    return {tag: points for tag, points in found.items() if points}


def told(run: Path, stage: str = "first") -> Curves:
    """What it should show, from the digest of the events alone."""
    curves: Curves = {}
    starts = 0
    for event in read_events(run / "events.jsonl"):
        if event["stage"] != stage:
            continue
        if event["kind"] == "start":
            for points in curves.values():
                points[:] = [(step, value) for step, value in points if step <= event["step"]]
            values: dict[str, Any] = {"restarts": starts}
            starts += 1
        elif event["kind"] == "step":
            values = {name: event[name] for name in ("loss", "agl_loss", "lr", "data_wait", "epoch")}
        elif event["kind"] == "validation":
            values = {"score": event["score"]}
            for city, found in event["cities"].items():
                values |= {f"{name}/{city}": value for name, value in found.items() if value is not None}
        else:
            continue
        for name, value in values.items():
            points = curves.setdefault(f"{stage}/{name}", [])
            if points and points[-1][0] == event["step"]:
                points.pop()
            points.append((event["step"], float(np.float32(value))))
    return {tag: points for tag, points in curves.items() if points}


def assert_whole(run: Path, stage: str = "first") -> None:
    """Each step once and none missing, and the same in the reader of TensorBoard's server."""
    found = shown(run, stage)
    assert found == told(run, stage)
    steps = [step for step, _ in found.get(f"{stage}/loss", [])]
    assert steps == list(range(1, len(steps) + 1))
    server = ServersAccumulator(str(run / "tensorboard" / stage), tensor_size_guidance={"scalars": 0, "text": 0})
    server.Reload()
    for tag, points in found.items():
        assert [one.step for one in server.Tensors(tag)] == [step for step, _ in points]
    began = [one.step for one in server.Tensors(f"{stage}/began")]
    assert began == sorted(set(began))


def newest_file(run: Path) -> Path:
    return max((run / "tensorboard" / "first").iterdir())


def cut(path: Path, size: int) -> None:
    os.truncate(path, max(0, path.stat().st_size - size))


def test_an_undisturbed_stage_is_shown_as_its_events_tell_it(tmp_path: Path) -> None:
    life = Life(tmp_path, 1, 0).train(20)
    assert_whole(tmp_path)  # while it runs
    life.write("finish", 20)
    life.close()
    assert_whole(tmp_path)
    assert shown(tmp_path)["first/score/B/C"][-1] == (20, float(np.float32(0.2)))


def test_a_restart_goes_on_where_it_is_and_is_marked(tmp_path: Path) -> None:
    Life(tmp_path, 1, 0).train(12)
    life = Life(tmp_path, 2, 10)
    assert_whole(tmp_path)  # before its first step
    life.train(10, salt=0.5)
    assert_whole(tmp_path)
    assert shown(tmp_path)["first/restarts"] == [(0, 0), (10, 1)]


MISHAPS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda run: None,
    "a torn record": lambda run: cut(newest_file(run), 7),
    "torn in its header": lambda run: cut(newest_file(run), newest_file(run).stat().st_size - 3),
    "several records lost": lambda run: cut(newest_file(run), 700),
    "a power cut": lambda run: newest_file(run).write_bytes(newest_file(run).read_bytes()[:-300] + bytes(300)),
    "an empty file": lambda run: os.truncate(newest_file(run), 0),
    "a file is gone": lambda run: newest_file(run).unlink(),
    "all files are gone": lambda run: shutil.rmtree(run / "tensorboard"),
    "a torn event": lambda run: cut(run / "events.jsonl", 9),
}


@pytest.mark.parametrize("mishap", MISHAPS)
@pytest.mark.parametrize("back", [0, 1, 7, 17])
def test_what_a_kill_has_cut_off_is_written_again(tmp_path: Path, mishap: str, back: int) -> None:
    """After it the run continues `back` steps before the last one."""
    Life(tmp_path, 1, 0).train(9)
    Life(tmp_path, 2, 7).train(10, lost=True)
    MISHAPS[mishap](tmp_path)
    if mishap == "a torn event":
        back = max(back, 1)  # no checkpoint is newer than what is in events.jsonl
    Life(tmp_path, 3, 17 - back).train(3, salt=0.1)
    assert_whole(tmp_path)


@pytest.mark.parametrize("seed", range(12))
def test_many_lives_with_any_mishaps_leave_each_step_once(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    step = 0
    for generation in range(1, 9):
        life = Life(tmp_path, generation, step).train(chance.randrange(9), generation / 10, chance.random() < 0.5)
        if chance.random() < 0.3:
            life.write("interruption", life.step, signal="TERM", saved=life.step)
        if chance.random() < 0.6:
            MISHAPS[chance.choice(list(MISHAPS))](tmp_path)
        # Events that are lost were of steps that the newest checkpoint cannot be after.
        kept = max((e["step"] for e in read_events(tmp_path / "events.jsonl") if "loss" in e), default=0)
        step = max(0, min(life.step, kept) - chance.choice([0, 0, 1, 4, 12]))
    Life(tmp_path, 9, step).train(4)
    assert_whole(tmp_path)


def test_starts_in_one_second_and_clocks_that_go_back_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for generation, (start, clock) in enumerate([(0, 2e9), (3, 2e9), (2, 2e9), (4, 1.9e9), (1, 1.8e9)], 1):
        monkeypatch.setattr(time, "time", lambda clock=clock: clock)
        Life(tmp_path, generation, start).train(4, salt=generation)
    assert_whole(tmp_path)
    assert [value for _, value in shown(tmp_path)["first/restarts"]] == [0, 4]


def test_a_start_that_was_replaced_and_has_not_noticed_is_not_shown(tmp_path: Path) -> None:
    old = Life(tmp_path, 1, 0).train(8)
    new = Life(tmp_path, 2, 5).train(2, salt=1)
    old.train(3, salt=2)
    new.train(8, salt=1)
    old.train(2, salt=2)
    assert_whole(tmp_path)
    Life(tmp_path, 3, 14).train(1)
    assert_whole(tmp_path)


def test_going_back_after_losses_that_are_not_finite_leaves_out_the_steps_and_goes_on(tmp_path: Path) -> None:
    life = Life(tmp_path, 1, 0).train(4)
    for step in (5, 6):
        life.write("skip", step, losses=["nan"])
    life.write("rollback", 6, to=4)
    life.step = 6
    life.train(3)
    assert [step for step, _ in shown(tmp_path)["first/loss"]] == [1, 2, 3, 4, 7, 8, 9]
    assert shown(tmp_path) == told(tmp_path)
    Life(tmp_path, 2, 9).train(1)
    assert shown(tmp_path) == told(tmp_path)


def test_a_validation_that_is_done_again_counts_once_the_later_one(tmp_path: Path) -> None:
    Life(tmp_path, 1, 0).train(5)
    life = Life(tmp_path, 2, 5)
    life.write("validation", 5, epoch=1, score=0.75, cities={})
    assert shown(tmp_path)["first/score"] == [(5, 0.75)]
    assert [step for step, _ in shown(tmp_path)["first/loss"]] == [1, 2, 3, 4, 5]
    life.train(3)
    assert shown(tmp_path)["first/score"] == [(5, 0.75)]
    Life(tmp_path, 3, 8).train(1)
    assert shown(tmp_path)["first/score"] == [(5, 0.75)]


def test_stages_do_not_mix(tmp_path: Path) -> None:
    Life(tmp_path, 1, 0).train(6)
    Life(tmp_path, 2, 4).train(2).write("finish", 6)
    Life(tmp_path, 3, 0, "second").train(7)
    Life(tmp_path, 4, 3, "second").train(7)
    for stage in ("first", "second"):
        assert_whole(tmp_path, stage)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_that_an_earlier_version_has_begun_goes_on(tmp_path: Path) -> None:
    """It named files by the time of their making, and tags otherwise."""
    from torch.utils.tensorboard import SummaryWriter

    Life(tmp_path, 1, 0, silent=True).train(8)
    writer = SummaryWriter(str(tmp_path / "tensorboard" / "first"), purge_step=1)
    for step in range(1, 9):
        writer.add_scalar("first/loss", 1 / step, step)
        writer.add_scalar("first/A/agl_r2", 0.5, step)
    writer.close()
    Life(tmp_path, 2, 6).train(3)
    assert_whole(tmp_path)


class _FullDisk(io.FileIO):
    """Takes half of what it is given while it is `full`."""

    full = False

    def write(self, content: Any) -> int:
        if not self.full:
            return super().write(content)
        content = bytes(content)
        if len(content) < 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(content[: len(content) // 2])


def test_what_a_full_disk_has_refused_is_written_when_it_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scalars, "RETRY", 0.0)
    real = Path.open

    def open_file(path: Path, mode: str = "r", *how: Any, **more: Any) -> Any:
        return _FullDisk(path, mode) if "tfevents" in path.name and mode == "ab" else real(path, mode, *how, **more)

    monkeypatch.setattr(Path, "open", open_file)
    life = Life(tmp_path, 1, 0).train(4)
    for steps in (1, 5):
        monkeypatch.setattr(_FullDisk, "full", True)
        life.train(steps)
        monkeypatch.setattr(_FullDisk, "full", False)
        life.train(2)
        assert_whole(tmp_path)


def test_a_refusal_is_told_and_not_tried_again_at_once(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    writer = Scalars(tmp_path / "tensorboard", "first", 1, tmp_path / "events.jsonl")
    with pytest.raises(OSError, match="tensorboard"):
        writer.take("step", step=1, loss=1.0)
    writer.take("step", step=2, loss=1.0)


def _train_for_ever(run: Path, generation: int, start: int) -> None:
    Life(run, generation, start).train(10**6)


def test_a_process_that_is_killed_anywhere_loses_nothing(tmp_path: Path) -> None:
    chance, start = random.Random(0), 0
    for generation in range(1, 7):
        process = multiprocessing.get_context("fork").Process(
            target=_train_for_ever, args=(tmp_path, generation, start)
        )
        process.start()
        wanted = start + chance.randrange(1, 60)
        while (read_events(tmp_path / "events.jsonl") or [{}])[-1].get("generation", 0) < generation or (
            told(tmp_path).get("first/loss", [(0, 0.0)])[-1][0] < wanted
        ):
            time.sleep(0.005)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        reached = told(tmp_path)["first/loss"][-1][0]
        known = [step for step, _ in shown(tmp_path)["first/loss"]]
        assert reached - 1 <= known[-1] <= reached  # of a record in the making at most
        start = max(0, reached - chance.randrange(30))
    Life(tmp_path, 7, start).train(1)
    assert_whole(tmp_path)


def test_events_that_are_not_as_they_should_be_end_nothing(tmp_path: Path) -> None:
    Life(tmp_path, 1, 0).train(3)
    bad: list[dict[str, Any]] = [
        {"step": -1}, {"step": "4"}, {"step": 2**70}, {"step": None}, {}, {"step": 3, "loss": "nan"},
        {"step": 3, "cities": [1]}, {"step": 3, "cities": {"A": 7}}, {"step": 3, "score": 1e300, "generation": "x"},
        {"step": True, "loss": 1.0}, {"step": 3, "time": 10**400, "loss": 10**400}, {"step": 3, "time": True},
        {"step": 3, "score": True, "cities": {"\ud800": {"score": 0.5}}, "generation": -5},
    ]  # fmt: skip
    with (tmp_path / "events.jsonl").open("a") as file:
        for values in bad:
            for kind in ("step", "validation", "start", "interruption", "refusal", "finish", "leave", "launch"):
                file.write(json.dumps({"time": 1.0, "kind": kind, "stage": "first", **values}) + "\n")
    Life(tmp_path, 9, 3).train(2)
    assert [step for step, _ in shown(tmp_path)["first/loss"]][-2:] == [4, 5]


def texts(run: Path, tag: str) -> dict[int, str]:
    server = ServersAccumulator(str(run / "tensorboard" / "first"), tensor_size_guidance={"text": 0})
    server.Reload()
    return {one.step: one.tensor_proto.string_val[0].decode() for one in server.Tensors(f"first/{tag}")}


def test_starts_and_ends_are_told_with_the_reason(tmp_path: Path) -> None:
    first = Life(tmp_path, 1, 0).train(7)
    first.write("interruption", 7, signal="TERM", saved=6)
    Life(tmp_path, 2, 6).train(4)
    log = {"time": 5.0, "stage": "first", "end": "crashed", "why": "preempted"}
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write(json.dumps({**log, "kind": "leave"}) + "\n")
    life = Life(tmp_path, 3, 10).train(2)
    life.write("refusal", 12, text="<b>no</b> *room*", saved=12)
    Life(tmp_path, 4, 12).train(1).write("finish", 13)
    began, ended = texts(tmp_path, "began"), texts(tmp_path, "ended")
    assert began[0] == r"start 1, from step 0 of 100; 2 x cpu, float32"
    assert began[6].endswith("; the start before ended after step 7: interrupted by TERM, saved up to step 6")
    assert began[10].endswith("after step 10: preempted")
    assert r"&lt;b&gt;no&lt;/b&gt; \*room\*" in began[12]
    assert list(ended) == [6, 10, 12, 13]  # once for each start; that after step 7 was taken back, and is told after it
    assert ended[6] == "after step 7: interrupted by TERM, saved up to step 6"
    assert ended[10] == "after step 10: preempted"
    assert "the stage is finished" in ended[13]


def test_pictures_are_a_run_of_their_own_and_done_again_they_replace_the_old(tmp_path: Path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)

    def write(generation: int, start: int, steps: list[int], shade: int) -> None:
        pictures = Pictures(tmp_path / "tensorboard", "first", start, generation)
        for step in steps:
            pictures.write(step, {"A/one": picture + shade, "A/two": picture})
        pictures.close()

    Life(tmp_path, 1, 0).train(8)
    write(1, 0, [2, 4, 6, 8], 0)
    Life(tmp_path, 2, 4).train(6)
    write(2, 4, [6, 10], 200)
    write(3, 10, [10], 250)  # done again after a restart from this very step
    multiplexer = EventMultiplexer(size_guidance=EVERYTHING).AddRunsFromDirectory(str(tmp_path)).Reload()
    assert set(multiplexer.Runs()) == {"tensorboard/first", "tensorboard/first.tiles"}
    for tag in ("first/A/one", "first/A/two"):
        assert [one.step for one in multiplexer.Images("tensorboard/first.tiles", tag)] == [2, 4, 6, 10]
    assert [one.step for one in multiplexer.Scalars("tensorboard/first", "first/loss")] == list(range(1, 11))
    newest = multiplexer.Images("tensorboard/first.tiles", "first/A/one")[-1]
    assert (newest.width, newest.height) == (30, 20)


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    Scalars(None, "first", 1, tmp_path / "events.jsonl").take("step", step=1, loss=1.0)
    Pictures(None, "first", 0, 1).write(1, {"a": np.zeros((2, 2, 3), np.uint8)})
    assert list(tmp_path.iterdir()) == []


def test_a_start_writes_only_what_is_lacking(tmp_path: Path) -> None:
    for generation, start in enumerate((0, 40, 30, 70), 1):
        Life(tmp_path, generation, start).train(50)
    Life(tmp_path, 5, 120)
    folder = tmp_path / "tensorboard" / "first"
    names = [records.file_name(generation) for generation in range(1, 6)]
    assert sorted(path.name for path in folder.iterdir()) == names
    for name in names[:-1]:
        (folder / name).unlink()
    assert {event.step for event in read_records(folder) if event.HasField("summary")} == {120}


@pytest.mark.parametrize("fast", [False, True])
def test_who_reads_along_sees_the_same_in_the_end(tmp_path: Path, fast: bool) -> None:
    """The servers of TensorBoard, the old one and the fast one, which look at the files while a run goes on."""
    look = _fast_server(tmp_path) if fast else _old_server(tmp_path)
    for generation, start in enumerate((0, 6, 3, 9), 1):
        Life(tmp_path, generation, start).train(7, salt=generation, lost=True)
        if generation % 2:
            cut(newest_file(tmp_path), 5)
        look()
        time.sleep(1.2 if fast else 0)  # it looks once a second
    Life(tmp_path, 5, 15).train(2)
    wanted = told(tmp_path)
    deadline = time.monotonic() + 60
    while (found := look()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    assert found == wanted


def _old_server(run: Path) -> Callable[[], Curves]:
    everything = EventMultiplexer(size_guidance=EVERYTHING)

    def look() -> Curves:
        everything.AddRunsFromDirectory(str(run)).Reload()
        name = "tensorboard/first"
        tags = everything.Runs()[name]["scalars"]
        found = {tag: [(one.step, one.value) for one in everything.Scalars(name, tag)] for tag in tags}
        return {tag: points for tag, points in found.items() if points}

    return look


def _fast_server(run: Path) -> Callable[[], Curves]:
    server = pytest.importorskip("tensorboard.data.server_ingester")
    from tensorboard.context import RequestContext
    from tensorboard.util.grpc_util import ChannelCredsType

    try:
        binary = server.get_server_binary()
    except server.NoDataServerError:
        pytest.skip("there is no fast server for this machine")
    ingester = server.SubprocessServerDataIngester(
        binary, str(run), reload_interval=1, channel_creds_type=ChannelCredsType.LOCAL,
        samples_per_plugin={"scalars": 0},
    )  # fmt: skip
    ingester.start()

    def look() -> Curves:
        runs = ingester.data_provider.read_scalars(
            RequestContext(), experiment_id="", plugin_name="scalars", downsample=10**6
        )
        tags = runs.get("tensorboard/first", {})
        return {tag: [(one.step, one.value) for one in points] for tag, points in tags.items()}

    return look


def test_a_record_that_the_disk_has_spoilt_costs_only_what_comes_after_it_until_it_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far from the end of a file checksums are not looked at."""
    monkeypatch.setattr(records, "_SUSPECT", 0)
    first = Life(tmp_path, 1, 0).train(30)
    first.close()
    path = newest_file(tmp_path)
    content, place = bytearray(path.read_bytes()), 0
    for _ in range(12):
        place += 12 + int.from_bytes(content[place : place + 8], "little") + 4
    content[place + 12 : place + 14] = b"\xff\xff"  # no Event begins so
    path.write_bytes(content)
    assert len(list(read_records(path.parent))) == 12
    Life(tmp_path, 2, 30).train(2)
    assert_whole(tmp_path)


def test_whatever_goes_wrong_is_not_tried_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Life(tmp_path, 1, 0).train(3)
    tried = []

    def broken(folder: Path) -> Any:
        tried.append(folder)
        raise ValueError("strange")

    monkeypatch.setattr(records, "read_records", broken)
    told = Scalars(tmp_path / "tensorboard", "first", 2, tmp_path / "events.jsonl")
    with pytest.raises(ValueError, match="strange"):
        told.take("start", step=3)
    told.take("step", step=4, loss=1.0)
    assert len(tried) == 1


def test_each_end_is_in_the_files_once_and_a_kill_is_told_by_the_start_after_it(tmp_path: Path) -> None:
    Life(tmp_path, 1, 0).train(7).write("interruption", 7, signal="INT", saved=7)
    Life(tmp_path, 2, 7).train(3)  # killed
    Life(tmp_path, 3, 5).train(3).write("interruption", 8, signal="INT", saved=8)
    Life(tmp_path, 4, 8).train(2)
    assert texts(tmp_path, "ended") == {
        5: "after step 10: killed, or its machine failed",
        8: "after step 8: interrupted by INT, saved up to step 8",
    }
    written = [
        one.step
        for one in read_records(tmp_path / "tensorboard" / "first")
        for value in one.summary.value
        if value.tag == "first/ended"
    ]
    assert written == [7, 5, 8], "nothing is told twice, also to who reads the files themselves"
    assert_whole(tmp_path)
