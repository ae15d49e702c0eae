import torch
from torch import nn

from agl_core.training.batchnorm import RunningStatistics
from agl_core.training.parallel import Parallel


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
    statistics.reduce(Parallel())
    statistics.finish_step(1)
