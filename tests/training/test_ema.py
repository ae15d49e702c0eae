"""The average of the weights: its formula, that no interruption shows in it, and that the better of the two is kept."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agl_core.config import (
    CheckpointConfig,
    DivergenceConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from agl_core.data.split import Split
from agl_core.data.store import Store
from agl_core.durable.chain import StateEntry, first_difference, read_chain, read_chains
from agl_core.durable.checkpoint import load_checkpoint
from agl_core.durable.exits import PEER_LOST, InterruptedRunError, PeerLostError
from agl_core.durable.retention import checkpoint_step
from agl_core.files import read_json
from agl_core.inference.predictor import NotFiniteError, Predictor
from agl_core.model.network import GeoposeNet
from agl_core.model.weights import load_weights
from agl_core.scoring.score import Score
from agl_core.training import trainer as trainer_module
from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.ema import Average, decay_at
from agl_core.training.endings import save_what_stands
from agl_core.training.optimizer import build_optimizer
from agl_core.training.parallel import Parallel
from agl_core.training.state import TrainingState
from agl_core.training.trainer import StageTrainer
from agl_core.training.validation import validate
from tests.training import incarnations
from tests.training.faults import Poison, disturb, kinds, rescored, small, train
from tests.training.incarnations import Strike, live
from tests.training.runs import InterruptionError, same_bits, train_together, weights

ENCODER = "tu-test_efficientnet"
DECAY = 0.9
WHICH = ("last", "best", "last-ema")
CITIES = ("AAA", "BBB")


def network(encoder: str = ENCODER) -> GeoposeNet:
    torch.manual_seed(0)
    return GeoposeNet(encoder, CITIES, ModelConfig(decoder_channels=[16, 16, 8, 8, 8]))


def averaging(store: Path, steps: int = 4, **changes: Any) -> TrainConfig:
    made = small(store, steps=steps, **{"validate": True, "encoder": ENCODER, **changes})
    for stage in made.stages.values():
        stage.ema = DECAY
    return made


def moved(model: GeoposeNet, step: int) -> None:
    """Live values after another step."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape, generator=generator)
            else:
                value += 1


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train(averaging(tiny_store), run_dir)
    return run_dir


def assert_same(run_dir: Path, whole: Path) -> None:
    assert first_difference(read_chains(run_dir, "first"), read_chains(whole, "first")[0]) is None
    for which in WHICH:
        assert same_bits(weights(run_dir, which=which), weights(whole, which=which)), which
    assert read_json(run_dir / "stages" / "first.json") == read_json(whole / "stages" / "first.json")


# The formula


def test_the_average_is_that_of_a_plain_loop_and_begins_at_the_weights_of_the_start() -> None:
    model = network()
    frozen = next(model.parameters())
    frozen.requires_grad_(False)
    average = Average(model, 0.6)
    assert same_bits(average.weights(), model.state_dict())
    expected = {name: value.double() for name, value in model.state_dict().items()}
    for step in range(1, 8):
        moved(model, step)
        average.update(step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = {
            name: decay * old + (1 - decay) * model.state_dict()[name].double() for name, old in expected.items()
        }
    found, now = average.weights(), model.state_dict()
    apart = 0
    for name, value in found.items():
        if value.is_floating_point() and now[name].data_ptr() != frozen.data_ptr():
            assert value.dtype == torch.float32
            assert torch.allclose(value.double(), expected[name], rtol=1e-5, atol=1e-6), name
            apart += not torch.equal(value, now[name])
        else:  # what no gradient reaches, and what is counted
            assert torch.equal(value, now[name]), name
    assert apart > 20
    assert any(name.endswith("running_var") for name in average.tensors())


def test_the_decay_grows_to_what_was_asked_for() -> None:
    assert [decay_at(0.99, step) for step in (1, 8, 10**6)] == [2 / 11, 0.5, 0.99]


@pytest.mark.parametrize("encoder", [ENCODER, "efficientnet-b0", "tu-resnet10t", "mobilenet_v2"])
def test_the_network_of_the_average_is_one_of_its_own(encoder: str) -> None:
    model = network(encoder)
    RunningStatistics(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = Average(model, 0.0)
    rgb = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)

    def answers() -> Iterator[list[int]]:
        for each in (model, average.network):
            yield Predictor(each, {"default": 600.0}).predict(rgb, "AAA", 0.5).agl_cm.ravel().tolist()

    raw, own = answers()
    assert raw == own
    with torch.no_grad():
        model.agl_head.bias += 3
        next(model.encoder.parameters()).mul_(1.5)
    changed, same = answers()
    assert changed != raw
    assert same == own
    average.update(1)  # with a decay of 0 the average is the newest weights
    assert not average.network.training
    again, followed = answers()
    assert again == followed == changed
    strides = [{name: value.stride() for name, value in each.state_dict().items()} for each in (model, average.network)]
    assert strides[0] == strides[1]


# Checkpoints


def state_of(ema: bool) -> TrainingState:
    model = network()
    optimizer = build_optimizer(model, OptimizerConfig())
    state = TrainingState(model, optimizer, torch.amp.GradScaler("cpu", enabled=False), RunningStatistics(model))
    if ema:
        state.average = Average(model, DECAY)
    return state


def test_a_state_with_an_average_is_put_back_bit_for_bit() -> None:
    state, other = state_of(True), state_of(True)
    for step in (1, 2):
        moved(state.model, step)
        state.statistics.reload()
        assert state.average is not None
        state.average.update(step)
    state.best_ema = True
    saved = state.checkpoint({})
    assert saved.average.keys() < saved.model.keys()
    other.restore(saved)
    assert other.average is not None
    assert same_bits(other.average.weights(), state.average.weights())
    assert same_bits(other.checkpoint({}).average, saved.average)
    assert other.best_ema
    moved(state.model, 3)
    state.average.update(3)
    moved(other.model, 3)
    other.average.update(3)
    assert same_bits(other.average.weights(), state.average.weights())


def test_without_an_average_a_checkpoint_is_what_it_was() -> None:
    state = state_of(False)
    saved = state.checkpoint({})
    assert saved.average == {}
    assert set(saved.state) == {
        "best_score", "best_step", "validated", "skips", "rollbacks", "anchor", "link", "scaler"
    }  # fmt: skip


def test_from_a_checkpoint_without_one_the_average_begins_at_its_weights() -> None:
    before, state = state_of(False), state_of(True)
    moved(before.model, 1)
    before.statistics.reload()
    state.restore(before.checkpoint({}))
    assert state.average is not None
    assert same_bits(state.average.weights(), before.model.state_dict())
    assert not state.best_ema


def test_only_with_an_average_there_is_a_file_of_it_and_a_digest(tiny_store: Path, tmp_path: Path, whole: Path) -> None:
    plain = averaging(tiny_store)
    plain.stages["first"].ema = 0.0
    train(plain, tmp_path)
    for run_dir, more in ((whole, {"average"}), (tmp_path, set())):
        newest = sorted((run_dir / "checkpoints" / "first").iterdir())[-1]
        parts = {"model", "optimizer"} | more
        assert {path.name for path in newest.iterdir()} == (
            {f"{part}.safetensors" for part in parts} | {"state.json", "manifest.json"}
        )
        assert ("best_ema" in read_json(newest / "state.json")) == bool(more)
        entries = [entry for entry in read_chain(next((run_dir / "chain").iterdir())) if isinstance(entry, StateEntry)]
        assert entries
        assert all(dict(entry.state).keys() == parts for entry in entries)
    assert not (tmp_path / "weights" / "first" / "last-ema.safetensors").exists()
    assert "ema_score" not in kinds(tmp_path, "validation")[0]
    assert same_bits(weights(tmp_path), weights(whole))  # to train, the average makes no difference


def test_a_damaged_average_is_a_damaged_checkpoint(tiny_store: Path, tmp_path: Path, whole: Path) -> None:
    with pytest.raises(InterruptionError):
        train(averaging(tiny_store), tmp_path, lambda step: disturb("kill") if step == 4 else None)
    # The last one may not have been published when the process was killed.
    *older, newest = sorted((tmp_path / "checkpoints" / "first").glob("step_*"))
    content = bytearray((newest / "average.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "average.safetensors").write_bytes(content)
    before = checkpoint_step(older[-1].name) if older else 0
    assert before is not None
    assert train(averaging(tiny_store), tmp_path)[0] == before + 1
    assert_same(tmp_path, whole)


# Interruptions


@pytest.mark.parametrize("how", ["kill", "signal", "peer"])
def test_an_interruption_after_any_step_does_not_show(tiny_store: Path, tmp_path: Path, whole: Path, how: str) -> None:
    for at in (1, 3):
        with pytest.raises((InterruptionError, InterruptedRunError, PeerLostError)):
            train(averaging(tiny_store), tmp_path, lambda step, at=at: disturb(how) if step == at else None)  # type: ignore[misc]
    train(averaging(tiny_store), tmp_path)
    assert_same(tmp_path, whole)


def test_two_processes_interrupted_equal_two_undisturbed(tiny_store: Path, tmp_path: Path) -> None:
    settings = averaging(tiny_store, steps=3)
    train_together(settings, tmp_path / "whole", 2)
    train_together(settings, tmp_path / "parts", 2, stop_after=2)
    train_together(settings, tmp_path / "parts", 2)
    assert_same(tmp_path / "parts", tmp_path / "whole")


@pytest.fixture(scope="module")
def whole_of_two(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole_of_two")
    assert live(incarnation(tiny_store, "1 step"), run_dir).codes == [0, 0]
    return run_dir


def incarnation(store: Path, every: str) -> TrainConfig:
    made = incarnations.config(store, every=every)
    made.stages["first"].ema = DECAY
    return made


# The first process predicts two tiles with the weights, then the same with their average. The last number is the step
# that the next incarnation continues from.
STRIKES = [
    (Strike("validation", 3), "100 steps", 2),
    (Strike("validation", 4, victims="all"), "1 step", 1),
    (Strike("commit", 3), "100 steps", 3),
    (Strike("best", 1), "100 steps", 2),
    (Strike("finish"), "100 steps", 4),
]


@pytest.mark.parametrize(("strike", "every", "step"), STRIKES, ids=str)
def test_a_kill_in_validation_and_after_it_costs_no_bit(
    tiny_store: Path, tmp_path: Path, whole_of_two: Path, strike: Strike, every: str, step: int
) -> None:
    life = live(incarnation(tiny_store, every), tmp_path, strike)
    assert life.struck == 1
    assert life.codes == [-signal.SIGKILL, -signal.SIGKILL if strike.victims == "all" else PEER_LOST], life.logs
    after = live(incarnation(tiny_store, every), tmp_path)
    assert (after.codes, after.begun) == ([0, 0], [step, step]), life.logs + after.logs
    assert_same(tmp_path, whole_of_two)


def test_a_signal_while_the_average_is_scored_leaves_the_weights_alone(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    real, calls = Predictor.predict, []

    def predict(predictor: Predictor, *args: Any) -> Any:
        calls.append(predictor)
        if predictor is not calls[0] and len(calls) == calls.count(calls[0]) + 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(predictor, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", predict)
        with pytest.raises(InterruptedRunError):
            train(averaging(tiny_store), tmp_path)
    assert calls[-1] is not calls[0]
    (saved,) = kinds(tmp_path, "interruption")
    assert (saved["step"], saved["saved"]) == (2, 2)
    assert kinds(tmp_path, "validation") == []
    assert train(averaging(tiny_store), tmp_path) == [3, 4]
    assert_same(tmp_path, whole)


def test_what_a_survivor_saves_while_the_average_is_scored_is_the_state_of_the_step(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    """And so is what the watchdog's thread would save."""
    settings = averaging(tiny_store, checkpoint=CheckpointConfig(every="100 steps", interval="never"))
    benches, saved = [], []
    init, real = StageTrainer.__init__, Predictor.predict

    def made(trainer: StageTrainer, bench: Any) -> None:
        benches.append(bench)
        init(trainer, bench)

    def predict(predictor: Predictor, *args: Any) -> Any:
        answer = real(predictor, *args)
        if predictor is benches[0].predictors[1] and benches[0].state.step == 2:
            saved.append(save_what_stands(benches[0]))
            disturb("kill")
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(StageTrainer, "__init__", made)
        patch.setattr(Predictor, "predict", predict)
        with pytest.raises(InterruptionError):
            train(settings, tmp_path)
    assert saved == [2]
    assert train(settings, tmp_path) == [3, 4]
    assert_same(tmp_path, whole)


# Skipped steps and going back


def test_a_skipped_step_is_not_averaged_and_going_back_takes_the_average_along(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = averaging(
        tiny_store, 6, validate=False, divergence=DivergenceConfig(max_skips=2),
        checkpoint=CheckpointConfig(every="2 steps", interval="never", keep=9),
    )  # fmt: skip
    updates: list[int] = []
    real_update, real_load = Average.update, Average.load

    def update(average: Average, step: int) -> None:
        updates.append(step)
        real_update(average, step)

    loaded: list[dict[str, torch.Tensor]] = []

    def load(average: Average, tensors: dict[str, torch.Tensor]) -> None:
        real_load(average, tensors)
        loaded.append({name: value.clone() for name, value in average.tensors().items()})

    monkeypatch.setattr(Average, "update", update)
    monkeypatch.setattr(Average, "load", load)
    Poison(monkeypatch, {4, 5})
    train(settings, tmp_path / "whole")
    assert updates == [1, 2, 3, 6]
    assert [event["to"] for event in kinds(tmp_path / "whole", "rollback")] == [2]
    folder = tmp_path / "whole" / "checkpoints" / "first"
    checkpoint, _ = load_checkpoint(folder, lambda known: known["step"] == 2)
    assert checkpoint is not None
    assert same_bits(loaded[0], checkpoint.average)
    for at in (3, 5):
        with pytest.raises(InterruptedRunError):
            train(settings, tmp_path / "parts", lambda step, at=at: disturb("signal") if step == at else None)  # type: ignore[misc]
    train(settings, tmp_path / "parts")
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_back_at_the_beginning_the_average_begins_anew(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = averaging(
        tiny_store, 3, validate=False, divergence=DivergenceConfig(max_skips=2),
        checkpoint=CheckpointConfig(every="100 steps", interval="never"),
    )  # fmt: skip
    real, anew = Average.restart, []

    def restart(average: Average) -> None:
        real(average)
        anew.append({name: value.clone() for name, value in average.weights().items()})

    monkeypatch.setattr(Average, "restart", restart)
    Poison(monkeypatch, {2, 3})
    train(settings, tmp_path / "back")
    settings.stages["first"].length = "1 step"
    settings.stages["first"].optimizer.lr = 0.0
    settings.stages["first"].schedule = ScheduleConfig(name="constant")
    Poison(monkeypatch, set())
    train(settings, tmp_path / "start")
    start = weights(tmp_path / "start")
    trained = [name for name in start if "running" not in name and "num_batches" not in name]
    assert len(anew) == 1
    assert all(torch.equal(anew[0][name], start[name]) for name in trained)


# What comes of it


def test_both_are_scored_and_the_saved_average_has_the_score_that_was_told(
    tiny_store: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    events = kinds(whole, "validation")
    assert [event["step"] for event in events] == [2, 4]
    assert all(event["ema_cities"].keys() == event["cities"].keys() == {"AAA", "BBB"} for event in events)
    assert all(event["ema_score"] != event["score"] for event in events)
    settings, store = averaging(tiny_store), Store(tiny_store)
    for which, score in (("last", events[-1]["score"]), ("last-ema", events[-1]["ema_score"])):
        model, metadata = load_weights(whole / "weights" / "first" / f"{which}.safetensors")
        assert metadata["ema"] == (which == "last-ema")
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        predictor = Predictor(model, settings.max_agl, precision="auto")
        result = validate(predictor, store, Split.of(store, settings, "first").validation, Parallel())
        assert result is not None
        assert result.score == score


def test_the_line_of_a_validation_tells_both_scores(
    tiny_store: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(averaging(tiny_store, 2), tmp_path)
    (event,) = kinds(tmp_path, "validation")
    line = next(line for line in capfd.readouterr().err.splitlines() if "step 2, score" in line)
    assert f"score {event['score']:.4f} (AAA" in line
    assert f"), average {event['ema_score']:.4f} (AAA" in line


# Scores of the weights and of their average after steps 2 and 4, and which weights of which step are the best then.
CHOICES = [
    ((0.1, 0.2, 0.3, 0.4), 4, True),
    ((0.1, 0.2, 0.4, 0.3), 4, False),
    ((0.1, 0.5, 0.4, 0.3), 2, True),
    ((0.6, 0.5, 0.4, 0.6), 2, False),
    ((0.3, 0.3, 0.1, 0.2), 2, False),
]


@pytest.mark.parametrize(("scores", "step", "ema"), CHOICES)
@pytest.mark.parametrize("parts", [False, True])
def test_the_better_of_the_two_is_the_best_so_far(
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: tuple[float, ...],
    step: int,
    ema: bool,
    parts: bool,
) -> None:
    given = iter(scores)
    monkeypatch.setattr(trainer_module, "validate", lambda *args: rescored(validate(*args), next(given)))
    held: dict[int, tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]] = {}
    real: Callable[..., Any] = StageTrainer._scores

    def judged(trainer: StageTrainer, *args: Any) -> Any:
        state = trainer.bench.state
        assert state.average is not None
        pair = (state.model.state_dict(), state.average.weights())
        raw, average = ({name: value.clone() for name, value in each.items()} for each in pair)
        held[state.step] = raw, average
        return real(trainer, *args)

    monkeypatch.setattr(StageTrainer, "_scores", judged)
    settings = averaging(tiny_store)
    if parts:  # the state knows what was the best
        with pytest.raises(InterruptionError):
            train(settings, tmp_path, lambda step: disturb("kill") if step == 4 else None)
    train(settings, tmp_path)
    assert same_bits(weights(tmp_path, which="best"), held[step][ema])
    _, metadata = load_weights(tmp_path / "weights" / "first" / "best.safetensors")
    assert (metadata["step"], metadata["ema"], metadata["score"]["score"]) == (step, ema, max(scores))
    assert read_json(tmp_path / "stages" / "first.json")["score"] == max(scores)
    newest = sorted((tmp_path / "checkpoints" / "first").iterdir())[-1]
    known = read_json(newest / "state.json")
    assert (known["best_step"], known["best_ema"], known["best_score"]) == (step, ema, max(scores))
    assert same_bits(weights(tmp_path), held[4][0])
    assert same_bits(weights(tmp_path, which="last-ema"), held[4][1])


def test_an_average_without_a_finite_answer_leaves_the_score_of_the_weights(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def judged(*args: Any) -> Score | None:
        calls.append(1)
        if len(calls) == 2:
            raise NotFiniteError("the network's answer is not finite")
        return validate(*args)

    monkeypatch.setattr(trainer_module, "validate", judged)
    train(averaging(tiny_store), tmp_path)
    first, second = kinds(tmp_path, "validation")
    assert (first["step"], second["step"]) == (2, 4)
    assert "ema_score" not in first
    assert "ema_score" in second
    assert "no score of the average after step 2" in kinds(tmp_path, "warning")[0]["text"]


def test_a_network_without_batch_norm_and_frozen_parameters_is_averaged_too() -> None:
    torch.manual_seed(0)
    config = ModelConfig(decoder="fpn", decoder_channels=[16, 64, 8, 8, 8])
    model = GeoposeNet("tu-convnext_atto", CITIES, config)
    statistics, average = RunningStatistics(model), Average(model, DECAY)
    assert not statistics.finished()
    moved(model, 1)
    average.update(1)
    kept = {name: value.clone() for name, value in average.weights().items()}
    average.restart()
    assert same_bits(average.weights(), dict(model.state_dict()))
    average.load(kept)
    assert same_bits(average.weights(), kept)


def test_without_a_fold_the_last_average_is_the_best(tiny_store: Path, tmp_path: Path) -> None:
    train(averaging(tiny_store, 2, validate=False), tmp_path)
    assert same_bits(weights(tmp_path, which="best"), weights(tmp_path, which="last-ema"))
    assert not same_bits(weights(tmp_path, which="best"), weights(tmp_path))
    assert load_weights(tmp_path / "weights" / "first" / "best.safetensors")[1]["ema"]


def test_a_stage_starts_from_the_average_of_an_earlier_one(tiny_store: Path, tmp_path: Path) -> None:
    settings = averaging(tiny_store, 2, validate=False)
    still = OptimizerConfig(lr=0.0, weight_decay=0.0)
    settings.stages["second"] = dataclasses.replace(
        settings.stages["second"], start="first/last-ema", length="1 step", optimizer=still,
        schedule=ScheduleConfig(name="constant"),
    )  # fmt: skip
    train(settings, tmp_path)
    train(settings, tmp_path, stage="second")
    before, after = weights(tmp_path, which="last-ema"), weights(tmp_path, "second")
    trained = [name for name in before if "running" not in name and "num_batches" not in name]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    assert not all(torch.equal(weights(tmp_path)[name], after[name]) for name in trained)
    own = weights(tmp_path, "second", "last-ema")  # it too begins there
    assert all(torch.equal(before[name], own[name]) for name in trained)


def test_scalars_and_events_of_the_average_have_names_of_their_own(whole: Path) -> None:
    content = b"".join(path.read_bytes() for path in (whole / "tensorboard" / "first").iterdir())
    for name in ("score", "ema_score", "agl_r2/AAA", "ema_agl_r2/AAA", "ema_score/AAA"):
        assert f"first/{name}".encode() in content
    assert json.loads((whole / "events.jsonl").read_text().splitlines()[-1])["kind"] == "finish"
