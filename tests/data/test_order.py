from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.data.order import Order, SampleKey

orders = st.builds(
    Order,
    seed=st.integers(0, 2**64 - 1),
    stage=st.integers(0, 5),
    n_samples=st.integers(1, 60),
    global_batch=st.integers(1, 48),
)


@settings(deadline=None, derandomize=True)
@given(orders, st.integers(1, 4))
def test_every_sample_comes_once_per_epoch(order: Order, epochs: int) -> None:
    stream = [key for step in range(order.steps(epochs)) for key in order.batch(step)]
    visits = Counter(key for key in stream if key.epoch < epochs)
    assert visits == Counter(SampleKey(epoch, i) for epoch in range(epochs) for i in range(order.n_samples))


@settings(deadline=None, derandomize=True)
@given(orders, st.integers(0, 50))
def test_every_batch_is_full_and_epochs_follow_one_another(order: Order, step: int) -> None:
    batch = order.batch(step)
    assert len(batch) == order.global_batch
    epochs = [key.epoch for key in batch]
    assert epochs == sorted(epochs)
    assert epochs[0] == order.epochs_done(step)
    assert order.steps(epochs[0]) <= step < order.steps(epochs[0] + 1)


@settings(deadline=None, derandomize=True)
@given(st.data(), st.integers(1, 8), st.integers(1, 4), st.integers(1, 5), st.integers(0, 20))
def test_processes_share_the_same_global_batches_out(
    data: st.DataObject, world_size: int, micro_batch: int, spare: int, start: int
) -> None:
    micro_batches = world_size + spare - 1
    order = Order(data.draw(st.integers(0, 99)), 0, data.draw(st.integers(1, 50)), micro_batches * micro_batch)
    alone = list(order.micro_batches(start, start + 3, micro_batch))
    shares = [list(order.micro_batches(start, start + 3, micro_batch, rank, world_size)) for rank in range(world_size)]
    together = sorted((piece for share in shares for piece in share), key=lambda piece: (piece.step, piece.number))
    assert together == alone
    assert [key for piece in alone if piece.step == start for key in piece.samples] == order.batch(start)
    assert all(any(piece.step == start for piece in share) for share in shares)


def test_the_order_from_a_step_on_does_not_depend_on_where_it_was_entered() -> None:
    order = Order(7, 0, 29, 12)
    whole = list(order.micro_batches(0, 20, 4))
    for start in range(20):
        assert list(order.micro_batches(start, 20, 4)) == [piece for piece in whole if piece.step >= start]


def test_epochs_stages_and_seeds_have_orders_of_their_own() -> None:
    base = Order(1, 0, 100, 10)
    others = [
        Order(1, 0, 100, 10).permutation(1),
        Order(1, 1, 100, 10).permutation(0),
        Order(2, 0, 100, 10).permutation(0),
    ]
    for other in others:
        assert not np.array_equal(base.permutation(0), other)
    assert np.array_equal(base.permutation(0), Order(1, 0, 100, 25).permutation(0))


def test_an_order_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="samples"):
        Order(0, 0, 0, 8)
