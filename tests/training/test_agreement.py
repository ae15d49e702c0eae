"""What the processes of a stage agree on, and the digest of what they have computed."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.data.batch import Batch
from agl_core.durable.exits import PeerLostError
from agl_core.model.losses import PARTS
from agl_core.training.agreement import Verdict, agree, samples_digest
from agl_core.training.parallel import Parallel
from agl_core.training.step import NOTHING, Computed

Said = tuple[Computed, int, int, float, bool]
SILENT: Said = (NOTHING, 0, 0, math.inf, False)


@dataclass
class Group(Parallel):
    """A process whose peers have said `others` already."""

    others: list[torch.Tensor] = field(default_factory=list)

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        rows = list(self.others)
        rows.insert(self.rank, values)
        return rows


class Heard(Exception):  # noqa: N818  (not an error)
    pass


class Ear(Parallel):
    """Takes down what a process would send."""

    def gather(self, values: torch.Tensor) -> list[torch.Tensor]:
        raise Heard(values)


def row(said: Said) -> torch.Tensor:
    with pytest.raises(Heard) as heard:
        agree(Ear(), *said)
    sent: torch.Tensor = heard.value.args[0]
    return sent


def verdicts(*said: Said) -> list[Verdict]:
    """What each of the processes concludes when process i says `said[i]`."""
    rows = [row(one) for one in said]
    return [agree(Group(rank, len(said), others=rows[:rank] + rows[rank + 1 :]), *one) for rank, one in enumerate(said)]


def test_all_processes_conclude_the_same() -> None:
    said: list[Said] = [
        (Computed([0.1 * rank, *[0.2] * (len(PARTS) - 1)], 1.0, True), 11 * rank, rank * 3, 30.0 - rank, rank == 0)
        for rank in range(4)
    ]
    first, *others = verdicts(*said)
    assert others == [first] * 3
    assert first.signal == 9
    assert first.seconds_left == 27.0
    assert first.save


def test_losses_are_added_up_in_the_order_of_ranks() -> None:
    """0.1 + 0.2 + 0.3 in another order is another double."""
    parts = [(Computed([value] * len(PARTS), 1.0, True), 0, 0, math.inf, False) for value in (0.1, 0.2, 0.3)]
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1
    for verdict in verdicts(*parts):
        assert verdict.losses == [0.1 + 0.2 + 0.3] * len(PARTS)


def test_a_step_is_finite_only_if_it_is_in_every_process() -> None:
    bad = (Computed([1.0] * len(PARTS), 1.0, False), 0, 0, math.inf, False)
    assert [verdict.finite for verdict in verdicts(SILENT, SILENT)] == [True, True]
    assert [verdict.finite for verdict in verdicts(SILENT, bad)] == [False, False]
    assert [verdict.finite for verdict in verdicts(bad, SILENT)] == [False, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e308])
def test_losses_that_add_up_to_no_number_are_not_finite(value: float) -> None:
    said: Said = (Computed([*[1.0] * (len(PARTS) - 1), value], 1.0, True), 0, 0, math.inf, False)
    assert [verdict.finite for verdict in verdicts(said, said)] == [False, False]


def test_a_step_is_not_taken_if_the_processes_have_different_gradients() -> None:
    """As after an exchange on GPUs that was broken off, which raises nothing."""
    parts: list[Said] = [(Computed([1.0] * len(PARTS), norm, True), 0, 0, math.inf, False) for norm in (2.0, 2.1)]
    with pytest.raises(PeerLostError, match=r"different gradients \(norms \[2\.0, 2\.1\]\)"):
        verdicts(*parts)
    alike: list[Said] = [(Computed([1.0] * len(PARTS), norm, True), 0, 0, math.inf, False) for norm in (2.0, 2.0000001)]
    assert all(verdict.finite for verdict in verdicts(*alike))
    skipped: list[Said] = [
        (Computed([1.0] * len(PARTS), norm, False), 0, 0, math.inf, False) for norm in (math.nan, math.inf)
    ]
    assert not any(verdict.finite for verdict in verdicts(*skipped))


def test_one_signal_asks_all_and_the_least_time_left_counts() -> None:
    for warned in range(3):
        said = [SILENT] * 3
        said[warned] = (NOTHING, 0, 15, 12.5, False)
        assert {(verdict.signal, verdict.seconds_left) for verdict in verdicts(*said)} == {(15, 12.5)}
    both = verdicts((NOTHING, 0, 10, 20.0, False), (NOTHING, 0, 15, 25.0, False))
    assert {(verdict.signal, verdict.seconds_left) for verdict in both} == {(15, 20.0)}
    assert {(verdict.signal, verdict.seconds_left) for verdict in verdicts(SILENT, SILENT)} == {(0, math.inf)}


def test_only_the_first_process_asks_for_a_checkpoint() -> None:
    asks = (NOTHING, 0, 0, math.inf, True)
    assert [verdict.save for verdict in verdicts(asks, SILENT)] == [True, True]
    assert [verdict.save for verdict in verdicts(SILENT, asks)] == [False, False]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5))
def test_no_bit_of_a_samples_digest_is_lost_on_the_way(digests: list[int]) -> None:
    for verdict in verdicts(*[(NOTHING, digest, 0, math.inf, False) for digest in digests]):
        assert verdict.samples == sum(digests) % 2**64


def batch(keys: list[tuple[int, int]]) -> Batch:
    """A micro-batch of (epoch, sample) keys; pixels are of no account."""
    epoch, sample = torch.tensor(keys, dtype=torch.int64).unbind(1)
    nothing = torch.zeros(len(keys))
    return Batch(nothing, nothing, nothing, nothing, nothing, nothing, epoch, sample)


Step = list[list[tuple[int, int]]]
STEPS = st.integers(1, 3).flatmap(
    lambda each: st.lists(
        st.lists(st.tuples(st.integers(0, 2**40), st.integers(0, 2**40)), min_size=each, max_size=each),
        min_size=1,
        max_size=6,
    )
)


def digest(step: Step, world_size: int) -> int:
    total = 0
    for rank in range(world_size):
        mine = range(rank, len(step), world_size)
        total += samples_digest(mine, [batch(step[number]) for number in mine])
    return total % 2**64


@settings(deadline=None)
@given(STEPS, st.integers(1, 4))
def test_the_digest_does_not_depend_on_who_computes_which_micro_batch(step: Step, world_size: int) -> None:
    assert digest(step, world_size) == digest(step, 1)


@settings(deadline=None)
@given(STEPS, st.data())
def test_any_changed_sample_or_epoch_is_another_digest(step: Step, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(step) - 1))
    place = data.draw(st.integers(0, len(step[number]) - 1))
    epoch, sample = step[number][place]
    for other in ((epoch + 1, sample), (epoch, sample + 1)):
        changed = [list(keys) for keys in step]
        changed[number][place] = other
        assert digest(changed, 1) != digest(step, 1)


def test_the_same_samples_in_another_place_are_another_digest() -> None:
    one, two = [(0, 1), (0, 2)], [(0, 3), (0, 4)]
    assert digest([one, two], 1) != digest([two, one], 1)
    assert digest([one, two], 1) != digest([one[::-1], two], 1)
    assert digest([[(0, 1)], [(1, 0)]], 1) != digest([[(1, 0)], [(0, 1)]], 1)
    assert digest([one], 1) != digest([one, one], 1)
    assert samples_digest([0], [batch(one)]) != samples_digest([1], [batch(one)])


def test_nothing_computed_is_no_digest() -> None:
    assert samples_digest([], []) == 0
