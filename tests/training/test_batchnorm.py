from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from agl_core.config import ModelConfig, StageConfig
from agl_core.errors import UserError
from agl_core.model.encoders import build_encoder
from agl_core.model.network import GeoposeNet
from agl_core.model.precision import Precision
from agl_core.training.batchnorm import RunningStatistics, convert_batchnorm, synchronised
from agl_core.training.parallel import Parallel
from agl_core.training.step import OptimizerStep
from tests.training.faults import small, train


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, momentum=0.01)
    ).train()


BATCHES = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * (seed + 1) for seed in range(4)]


def buffers(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.named_buffers()}


def test_one_micro_batch_a_step_is_pytorchs_own_rule() -> None:
    ours, theirs = model(), model()
    statistics = RunningStatistics(ours)
    for batch in BATCHES:
        ours(batch)
        statistics.add_forward()
        statistics.reduce(Parallel())
        statistics.finish_step(1)
        theirs(batch)
    for name, value in buffers(theirs).items():
        torch.testing.assert_close(buffers(ours)[name], value, rtol=1e-5, atol=1e-6)


def test_the_order_of_micro_batches_within_a_step_does_not_matter() -> None:
    results = []
    for order in (BATCHES, BATCHES[::-1]):
        net = model()
        statistics = RunningStatistics(net)
        for batch in order:
            net(batch)
            statistics.add_forward()
        statistics.reduce(Parallel())
        statistics.finish_step(4)
        results.append(buffers(net))
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-5, atol=1e-6)


def test_a_step_moves_the_statistics_once_towards_the_mean_of_its_micro_batches() -> None:
    net = model()
    statistics = RunningStatistics(net)
    features = [net[0](batch).detach() for batch in BATCHES]
    for batch in BATCHES:
        net(batch)
        statistics.add_forward()
    statistics.reduce(Parallel())
    statistics.finish_step(4)
    mean = torch.stack([feature.mean((0, 2, 3)) for feature in features]).mean(0)
    variance = torch.stack([feature.var((0, 2, 3)) for feature in features]).mean(0)
    torch.testing.assert_close(net[1].running_mean, 0.1 * mean)
    torch.testing.assert_close(net[1].running_var, 0.9 + 0.1 * variance)
    assert int(net[1].num_batches_tracked) == 1


def test_loaded_statistics_are_the_ones_that_move() -> None:
    net = model()
    statistics = RunningStatistics(net)
    state = {n: torch.full_like(v, 3) if n in buffers(net) else v for n, v in net.state_dict().items()}
    net.load_state_dict(state)
    statistics.reload()
    net(BATCHES[0])
    statistics.add_forward()
    statistics.reduce(Parallel())
    statistics.finish_step(1)
    assert ((net[4].running_mean - 3).abs() > 0).all()
    assert ((net[4].running_mean - 3).abs() < 0.1).all()
    assert int(net[4].num_batches_tracked) == 4


def test_a_forward_pass_that_does_not_count_leaves_no_trace() -> None:
    net = model()
    statistics = RunningStatistics(net)
    before = buffers(net)
    net(BATCHES[0])
    assert not torch.equal(buffers(net)["1.running_mean"], before["1.running_mean"])
    statistics.forget_step()
    assert all(torch.equal(value, before[name]) for name, value in buffers(net).items())


def test_what_was_finished_is_known_by_name_while_a_forward_pass_overwrites_the_buffers() -> None:
    net = model()
    statistics = RunningStatistics(net)
    net(BATCHES[0])
    statistics.add_forward()
    statistics.reduce(Parallel())
    statistics.finish_step(1)
    after = buffers(net)
    net(BATCHES[1])
    assert not torch.equal(buffers(net)["1.running_mean"], after["1.running_mean"])
    finished = statistics.finished()
    assert finished.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in finished.items())


def test_a_network_without_batch_norm_has_no_statistics() -> None:
    statistics = RunningStatistics(nn.Linear(2, 2))
    statistics.add_forward()
    # GPUs would refuse to exchange what lies on the CPU, empty or not.
    statistics.reduce(cast(Any, None))
    statistics.finish_step(1)


def timms() -> nn.Module:
    """With layers that are batch norm and activation in one."""
    torch.manual_seed(0)
    return build_encoder("tu-mobilenetv3_small_050", "none").train()


def test_a_synchronised_network_has_the_same_tensors_by_the_same_names() -> None:
    net = GeoposeNet("resnet18", ("A",), ModelConfig(decoder_channels=[8, 8, 8, 8, 8]))
    before = dict(net.state_dict(keep_vars=True))
    converted = convert_batchnorm(net)
    assert converted is net
    after = converted.state_dict(keep_vars=True)
    assert list(after) == list(before)
    assert all(after[name] is value for name, value in before.items())
    norms = [layer for layer in converted.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(layer, nn.SyncBatchNorm) for layer in norms)


@pytest.mark.parametrize("training", [True, False])
def test_a_synchronised_network_computes_the_same_where_there_is_one_process(training: bool) -> None:
    """Also where the activation is part of the layer."""
    image = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    plain, converted = timms().train(training), convert_batchnorm(timms()).train(training)
    for one, other in zip(plain(image), converted(image), strict=True):
        assert torch.equal(one, other)


def test_running_statistics_are_kept_for_synchronised_layers_too() -> None:
    results = []
    for net in (timms(), convert_batchnorm(timms())):
        statistics = RunningStatistics(net)
        for _ in range(2):
            for seed in range(2):
                net(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
                statistics.add_forward()
            statistics.reduce(Parallel())
            statistics.finish_step(2)
        results.append((buffers(net), statistics.finished()))
    (plain, finished), (synchronised_ones, synchronised_finished) = results
    assert plain.keys() == synchronised_ones.keys()
    assert finished.keys() == synchronised_finished.keys()
    assert all(torch.equal(synchronised_ones[name], value) for name, value in plain.items())
    assert all(torch.equal(synchronised_finished[name], value) for name, value in finished.items())


def test_synchronised_norms_need_a_gpu_and_others_to_be_in_step_with() -> None:
    with pytest.raises(UserError, match=r"stages\.a\.sync_batchnorm is true, which needs GPUs, and this is a cpu: "):
        synchronised(model(), Parallel(), "a")
    parallel = Parallel()
    parallel.device = torch.device("cuda")
    net = model()
    assert synchronised(net, parallel, "a") is net
    assert type(net[1]) is nn.BatchNorm2d  # as it was: there is nobody to be in step with
    parallel.world_size = 2
    assert isinstance(cast(nn.Sequential, synchronised(net, parallel, "a"))[1], nn.SyncBatchNorm)


def test_a_stage_that_asks_for_synchronised_norms_is_refused_on_a_cpu(tiny_store: Path, tmp_path: Path) -> None:
    config = small(tiny_store)
    config.stages["first"].sync_batchnorm = True
    with pytest.raises(UserError, match=r"stages\.first\.sync_batchnorm is true, which needs GPUs"):
        train(config, tmp_path)


def test_with_synchronised_norms_all_processes_must_have_as_many_micro_batches() -> None:
    """One that has another forward pass to do would wait in it for the others for ever."""
    stage = StageConfig(batch=8, micro_batch=2, sync_batchnorm=True)
    state: Any = None  # it is not looked at before that
    with pytest.raises(
        UserError, match=r"there are 4 micro-batches a step .* for 3 processes, and with sync_batchnorm"
    ):
        OptimizerStep(state, stage, 0, 0, Precision.choose("auto", torch.device("cpu")), Parallel(0, 3))
