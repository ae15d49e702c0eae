"""AdamW by its three makers: the same state by name, the same bits after an interruption, and one after the other."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agl_core.config import OptimizerConfig, TrainConfig
from agl_core.durable.chain import first_difference, read_chains
from agl_core.durable.checkpoint import load_checkpoint
from agl_core.errors import UserError
from agl_core.model.precision import Precision
from agl_core.training.build import Origin
from agl_core.training.optimizer import build_optimizer, load_optimizer_state, optimizer_name, optimizer_state
from agl_core.training.parallel import Parallel
from tests.training import faults
from tests.training.fake_apex import FusedAdam, install
from tests.training.faults import Poison, kinds, small
from tests.training.runs import same_bits, train, weights

NAMES = ["adamw", "adamw-plain", "apex"]


@pytest.fixture(autouse=True)
def _apex(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    # No bias before the norm: its gradient is nothing but rounding, of which AdamW makes steps of full length.
    convolution = nn.Conv2d(3, 4, 3, bias=False)
    net = nn.Sequential(convolution, nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3), nn.Conv2d(2, 1, 1))
    net[3].requires_grad_(False)
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        batch = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        net(batch).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def made(name: str, net: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(net, OptimizerConfig(name=name, lr=1e-2, weight_decay=0.1))


@pytest.mark.parametrize("name", NAMES)
def test_weight_decay_is_for_what_has_two_or_more_dimensions(name: str) -> None:
    net = network()
    matrices, others = made(name, net).param_groups
    assert matrices["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert [id(p) for p in matrices["params"]] == [id(net[0].weight), id(net[2].weight)]
    assert [p.ndim for p in others["params"]] == [1] * 3  # biases and norms; nothing of what is frozen


def test_each_name_is_what_it_says() -> None:
    net = network()
    assert [optimizer_name(made(name, net)) for name in NAMES] == NAMES
    assert isinstance(made("apex", net), FusedAdam)
    assert made("adamw", net).defaults["fused"] is True
    assert made("adamw-plain", net).defaults["fused"] is None
    with pytest.raises(ValueError, match="there is no optimiser auto"):
        made("auto", net)


@pytest.mark.parametrize("name", NAMES)
def test_the_state_has_the_same_names_and_forms_whoever_made_it(name: str) -> None:
    net = network()
    optimizer = made(name, net)
    assert optimizer_state(net, optimizer) == {}
    steps(net, optimizer, range(3))
    state = optimizer_state(net, optimizer)
    own = {n: p.shape for n, p in net.named_parameters() if p.requires_grad}
    assert set(state) == {f"{kind}/{n}" for kind in ("step", "exp_avg", "exp_avg_sq") for n in own}
    for key, value in state.items():
        kind, parameter = key.split("/")
        assert value.dtype == torch.float32
        assert value.shape == (() if kind == "step" else own[parameter])
        assert kind != "step" or float(value) == 3


@pytest.mark.parametrize("later", NAMES)
@pytest.mark.parametrize("earlier", NAMES)
def test_each_goes_on_with_the_state_of_each(earlier: str, later: str) -> None:
    whole, torn = network(), network()
    steps(whole, made("adamw", whole), range(6))
    first = made(earlier, torn)
    steps(torn, first, range(3))
    saved = {key: value.clone() for key, value in optimizer_state(torn, first).items()}
    second = made(later, torn)
    load_optimizer_state(torn, second, saved)
    assert optimizer_state(torn, second).keys() == saved.keys()
    steps(torn, second, range(3, 6))
    for one, other in zip(whole.parameters(), torn.parameters(), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert float(optimizer_state(torn, second)["step/0.weight"]) == 6


@pytest.mark.parametrize("name", NAMES)
def test_without_a_state_it_is_as_new(name: str) -> None:
    fresh, used = network(), network()
    optimizer = made(name, used)
    steps(used, optimizer, range(3))
    used.load_state_dict(fresh.state_dict())
    load_optimizer_state(used, optimizer, {})
    steps(used, optimizer, range(3))
    steps(fresh, made(name, fresh), range(3))
    assert same_bits(used.state_dict(), fresh.state_dict())


def configured(store: Path, name: str, **changes: Any) -> TrainConfig:
    config = small(store, **changes)
    for stage in config.stages.values():
        stage.optimizer = OptimizerConfig(name=name, lr=1e-3)
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_is_interrupted_has_the_same_bits_with_each(tiny_store: Path, tmp_path: Path, name: str) -> None:
    config = configured(tiny_store, name, steps=4)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "torn", stop_after=3)  # the checkpoint of step 2 is there
    train(config, tmp_path / "torn")
    assert same_bits(weights(tmp_path / "torn"), weights(tmp_path / "whole"))
    (whole,) = read_chains(tmp_path / "whole", "first")
    assert first_difference(read_chains(tmp_path / "torn", "first"), whole) is None
    assert [event["optimizer"] for event in kinds(tmp_path / "torn", "start")] == [name] * 2


def test_a_run_goes_from_one_to_the_other(tiny_store: Path, tmp_path: Path) -> None:
    whole = train(configured(tiny_store, "adamw", steps=4), tmp_path / "whole")
    for name in ("auto", "adamw-plain"):
        train(configured(tiny_store, name, steps=4), tmp_path / "mixed", stop_after=2)
    mixed = train(configured(tiny_store, "adamw", steps=4), tmp_path / "mixed")
    events = kinds(tmp_path / "mixed", "start")
    assert [event["optimizer"] for event in events] == ["apex", "adamw-plain", "adamw"]
    assert [step for step, _ in mixed] == [2, 3, 4]
    for (_, one), (_, other) in zip(whole[1:], mixed, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    last, _ = load_checkpoint(tmp_path / "mixed" / "checkpoints" / "first")
    assert last is not None
    assert {float(value) for key, value in last.optimizer.items() if key.startswith("step/")} == {4.0}


def continued(store: Path, **changes: Any) -> TrainConfig:
    config = small(store, steps=3, **changes)
    config.stages["second"].optimizer = OptimizerConfig(lr=1e-3, resume=True)  # the stages share theirs
    config.stages["second"].length = "4 steps"
    return config


@pytest.fixture(scope="module")
def first_done(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("first")
    train(continued(tiny_store), run_dir)
    return run_dir


@pytest.fixture
def copied(first_done: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: shutil.copytree(first_done, tmp_path / name)


def built(config: TrainConfig, run_dir: Path, cities: tuple[str, ...] = ("AAA", "BBB")) -> dict[str, torch.Tensor]:
    """The optimiser's state that the second stage begins with."""
    origin = Origin(config, "second", run_dir, cities, "", Precision.choose("auto", torch.device("cpu")), Parallel())
    state, _, _ = origin.build()
    return optimizer_state(state.model, state.optimizer)


def test_what_one_process_cannot_begin_with_is_refused_in_all(tiny_store: Path, tmp_path: Path) -> None:
    class Group(Parallel):
        def any_text(self, text: str) -> str:
            return text or "the weights are not on that node"  # in another process

    config = small(tiny_store)
    origin = Origin(config, "first", tmp_path, ("AAA",), "", Precision.choose("auto", torch.device("cpu")), Group())
    with pytest.raises(UserError, match="not on that node"):
        origin.build()


def test_a_stage_goes_on_with_the_moments_of_the_stage_before_if_it_is_to(
    tiny_store: Path, copied: Callable[[str], Path]
) -> None:
    run_dir, config = copied("run"), continued(tiny_store)
    last, _ = load_checkpoint(run_dir / "checkpoints" / "first")
    assert last is not None
    assert last.step == 3
    assert last.optimizer
    assert same_bits(built(config, run_dir), last.optimizer)
    config.stages["second"].optimizer.resume = False
    assert built(config, run_dir) == {}


def test_moments_that_are_gone_are_refused(tiny_store: Path, copied: Callable[[str], Path]) -> None:
    run_dir = copied("run")
    shutil.rmtree(run_dir / "checkpoints" / "first" / "step_00000003")
    with pytest.raises(
        UserError,
        match=r"stages\.second\.optimizer\.resume is true, but the checkpoint of the end of stage first is not in .*: "
        r"start a new --run with stages\.second\.optimizer\.resume=false",
    ):
        built(continued(tiny_store), run_dir)


def test_a_continued_stage_has_the_same_bits_after_an_interruption(
    tiny_store: Path, copied: Callable[[str], Path]
) -> None:
    whole, torn, config = copied("whole"), copied("torn"), continued(tiny_store)
    train(config, whole, "second")
    train(config, torn, "second", stop_after=2)
    shutil.rmtree(torn / "checkpoints" / "first")  # needed at its beginning only
    train(config, torn, "second")
    assert same_bits(weights(torn, "second"), weights(whole, "second"))
    fresh, config = copied("fresh"), continued(tiny_store)
    config.stages["second"].optimizer.resume = False
    train(config, fresh, "second")
    assert not same_bits(weights(fresh, "second"), weights(whole, "second"))


def test_who_goes_back_to_the_beginning_has_the_moments_of_the_stage_before_again(
    tiny_store: Path, copied: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir, config = copied("run"), continued(tiny_store)
    config.divergence.max_skips = 2
    config.checkpoint.every = "100 steps"
    seen: list[dict[str, torch.Tensor]] = []
    real = Origin.roll_back

    def roll_back(origin: Origin, state: Any) -> int:
        step = real(origin, state)
        seen.append({key: value.clone() for key, value in optimizer_state(state.model, state.optimizer).items()})
        return step

    monkeypatch.setattr(Origin, "roll_back", roll_back)
    Poison(monkeypatch, [2, 3])
    faults.train(config, run_dir, stage="second")
    last, _ = load_checkpoint(run_dir / "checkpoints" / "first")
    assert last is not None
    assert len(seen) == 1
    assert same_bits(seen[0], last.optimizer)
