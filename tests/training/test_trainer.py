"""A real stage on the CPU: what it leaves, and that interruptions and process counts do not show in the result."""

import dataclasses
from pathlib import Path

import pytest

from agl_core.config import CheckpointConfig, DivergenceConfig
from agl_core.errors import UserError
from agl_core.files import read_json
from agl_core.model.weights import load_weights
from agl_core.reporting.events import EventLog, read_events
from agl_core.reporting.live.seen import Validated
from agl_core.reporting.live.view import LiveView
from tests.training.runs import config, same_bits, train, train_together, weights

STEPS = 4


@pytest.fixture(scope="module")
def undisturbed(
    tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[tuple[int, list[float]]]]:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    return run_dir, train(config(tiny_store), run_dir)


def test_a_stage_leaves_its_weights_its_history_and_its_end(undisturbed: tuple[Path, list]) -> None:
    run_dir, history = undisturbed
    assert [step for step, _ in history] == list(range(1, STEPS + 1))
    done = read_json(run_dir / "stages" / "first.json")
    assert done["finished"]
    assert done["steps"] == STEPS
    events = read_events(run_dir / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "step"] == list(range(1, STEPS + 1))
    validations = [event for event in events if event["kind"] == "validation"]
    assert [event["step"] for event in validations] == [2, 4]
    assert set(validations[0]["cities"]) == {"AAA", "BBB"}
    assert done["score"] == max(event["score"] for event in validations)
    _, metadata = load_weights(run_dir / "weights" / "first" / "best.safetensors")
    assert metadata["score"]["score"] == done["score"]
    assert list((run_dir / "tensorboard" / "first").glob("events*"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", range(1, STEPS))
def test_interrupted_after_any_step_equals_undisturbed_bit_for_bit(
    tiny_store: Path, tmp_path: Path, undisturbed: tuple[Path, list], step: int, workers: int
) -> None:
    run_dir, history = undisturbed
    settings = config(tiny_store, workers=workers)
    before = train(settings, tmp_path, stop_after=step)
    after = train(settings, tmp_path)
    # The interruption comes before the checkpoint of its step, so that step is done twice, with the same result.
    assert before == history[:step]
    assert after == history[step - 1 :]
    for which in ("last", "best"):
        assert same_bits(weights(tmp_path, which=which), weights(run_dir, which=which))
    events = read_events(tmp_path / "events.jsonl")
    assert [event["step"] for event in events if event["kind"] == "step"] == list(range(1, STEPS + 1))


def test_what_was_best_before_is_told_to_the_view_of_a_later_start(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(tiny_store)
    train(settings, tmp_path, stop_after=STEPS - 1)
    told: list[Validated] = []
    monkeypatch.setattr(LiveView, "best", lambda self, validated: told.append(validated))
    train(settings, tmp_path)
    events = read_events(tmp_path / "events.jsonl")
    begun = [event["step"] for event in events if event["kind"] == "start"][-1]
    scores = [event["score"] for event in events if event["kind"] == "validation" and event["step"] <= begun]
    assert scores
    assert [validated.score for validated in told] == [max(scores)]


def test_many_interruptions_with_rare_checkpoints_end_the_same(
    tiny_store: Path, tmp_path: Path, undisturbed: tuple[Path, list]
) -> None:
    settings = config(tiny_store, checkpoint=CheckpointConfig(every="2 steps"))
    for step in (1, 3, 3, 4):
        train(settings, tmp_path, stop_after=step)
    train(settings, tmp_path)
    assert same_bits(weights(tmp_path), weights(undisturbed[0]))


def test_a_stage_killed_after_its_last_checkpoint_is_finished_without_another_step(
    tiny_store: Path, tmp_path: Path, undisturbed: tuple[Path, list]
) -> None:
    train(config(tiny_store), tmp_path)
    (tmp_path / "stages" / "first.json").unlink()
    (tmp_path / "weights" / "first" / "last.safetensors").unlink()
    assert train(config(tiny_store), tmp_path) == []
    assert same_bits(weights(tmp_path), weights(undisturbed[0]))
    assert read_json(tmp_path / "stages" / "first.json") == read_json(undisturbed[0] / "stages" / "first.json")


def test_a_damaged_checkpoint_costs_a_step_and_not_a_bit(
    tiny_store: Path, tmp_path: Path, undisturbed: tuple[Path, list], capfd: pytest.CaptureFixture[str]
) -> None:
    train(config(tiny_store), tmp_path, stop_after=4)
    newest = sorted((tmp_path / "checkpoints" / "first").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"")
    assert train(config(tiny_store), tmp_path)[0][0] == 3
    assert f"skipped checkpoint {newest.name}" in capfd.readouterr().err
    assert same_bits(weights(tmp_path), weights(undisturbed[0]))


def test_the_second_stage_starts_from_the_weights_of_the_first(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, steps=2)
    with pytest.raises(UserError, match=r"weights .*first/last\.safetensors do not exist"):
        train(settings, tmp_path, "second")
    train(settings, tmp_path)
    history = train(settings, tmp_path, "second")
    fresh = dataclasses.replace(
        settings, stages={**settings.stages, "second": dataclasses.replace(settings.stages["second"], start="encoder")}
    )
    assert history[0][1] != train(fresh, tmp_path / "fresh", "second")[0][1]
    assert read_json(tmp_path / "stages" / "second.json")["finished"]


def test_events_of_an_incarnation_that_was_replaced_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    old, new = EventLog(path, "first", 1), EventLog(path, "first", 2)
    old.write("start", step=0)
    old.write("step", step=1, loss=1.0)
    new.write("start", step=1)
    old.write("step", step=2, loss=2.0)
    new.write("step", step=2, loss=3.0)
    assert [event["loss"] for event in read_events(path) if event["kind"] == "step"] == [1.0, 3.0]


def test_without_a_fold_the_last_weights_are_the_best(tiny_store: Path, tmp_path: Path) -> None:
    train(config(tiny_store, steps=1, fold=-1), tmp_path)
    assert same_bits(weights(tmp_path, which="best"), weights(tmp_path))


def test_two_processes_run_the_optimisation_of_one(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, steps=20)
    alone = train(settings, tmp_path / "one")
    first, second = train_together(settings, tmp_path / "two", 2)
    assert first == second
    assert first[0][1] == pytest.approx(alone[0][1], rel=1e-6)
    for (_, one), (_, two) in zip(alone, first, strict=True):
        assert two[0] == pytest.approx(one[0], rel=0.01)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in one:
        if name.endswith("running_mean"):
            assert (one[name] - two[name]).abs().max() < 0.05 * one[name].abs().max() + 0.05


def test_three_processes_interrupted_equal_three_undisturbed_bit_for_bit(tiny_store: Path, tmp_path: Path) -> None:
    """Three, since the sum of two does not depend on their order; of four micro-batches, so they are uneven."""
    settings = config(tiny_store, steps=3, encoder="tu-resnet10t")
    undisturbed = train_together(settings, tmp_path / "whole", 3)
    train_together(settings, tmp_path / "parts", 3, stop_after=2)
    rest = train_together(settings, tmp_path / "parts", 3)
    assert rest[0] == undisturbed[0][1:]
    assert same_bits(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


def test_a_run_goes_on_with_another_number_of_processes(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store)
    alone = train(settings, tmp_path / "one")
    train(settings, tmp_path / "two", stop_after=3)
    both = train_together(settings, tmp_path / "two", 2)
    assert [step for step, _ in both[0]] == [3, 4]
    assert both[0][0][1] == pytest.approx(alone[2][1], rel=1e-6)


def test_bad_settings_are_refused_in_one_sentence(tiny_store: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"fold": 99}, "fold 99 of 4 leaves"),
        ({"store": str(tmp_path / "absent")}, "prepare"),
        ({"precision": "float16"}, "float16 needs a GPU"),
        ({"encoder": "resnet19"}, "unknown encoder 'resnet19'"),
    ):
        with pytest.raises(UserError, match=message):
            train(config(tiny_store, **changes), tmp_path)


def test_a_run_does_not_continue_on_other_tiles(tiny_store: Path, tmp_path: Path) -> None:
    train(config(tiny_store), tmp_path, stop_after=2)
    with pytest.raises(UserError, match="started with other tiles"):
        train(config(tiny_store, fold=1), tmp_path)


def test_a_stage_that_stays_not_finite_goes_back_and_then_stops(tiny_store: Path, tmp_path: Path) -> None:
    settings = config(tiny_store, steps=9, divergence=DivergenceConfig(max_skips=2, max_rollbacks=1))
    settings.stages["first"].optimizer.lr = 1e30
    settings.checkpoint.every = "7 steps"
    with pytest.raises(UserError, match=r"stage first diverges: 2 losses .* at step 6, after going back 1 time; lower"):
        train(settings, tmp_path)
    events = [(event["kind"], event["step"]) for event in read_events(tmp_path / "events.jsonl")]
    assert [event for event in events if event[0] in ("skip", "rollback")] == [
        ("skip", 2), ("skip", 3), ("rollback", 3), ("skip", 5), ("skip", 6),
    ]  # fmt: skip


def test_more_processes_than_micro_batches_are_refused(tiny_store: Path, tmp_path: Path) -> None:
    from agl_core.model.precision import Precision
    from agl_core.training.build import Origin
    from agl_core.training.parallel import Parallel
    from agl_core.training.step import OptimizerStep

    settings = config(tiny_store)
    parallel = Parallel(world_size=5)
    precision = Precision.choose("auto", parallel.device)
    state, _, _ = Origin(settings, "first", tmp_path, ["AAA", "BBB"], "", precision, Parallel()).build()
    with pytest.raises(UserError, match=r"4 micro-batches a step .* for 5 processes"):
        OptimizerStep(state, settings.stages["first"], 0, 0, precision, parallel)
