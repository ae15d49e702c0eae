import random
from itertools import product

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agl_core.data.seeding import (
    WorkerInit,
    forward_seed,
    initial_seed,
    order_generator,
    sample_generator,
    worker_sequence,
)

RANKS, WORKERS, EPOCHS, GPUS_PER_NODE = 8, 4, 5, 4


def reference_seed(base: int, world_size: int, rank: int, worker: int) -> int:
    """What the reference seeds numpy with in a worker: one word of the process's state, the world size, the worker
    and the *local* rank. Every process of a run starts from the same state, and so does every epoch."""
    return base + world_size * worker + rank % GPUS_PER_NODE


def test_the_reference_formula_repeats_streams_over_epochs_and_nodes_and_ours_does_not() -> None:
    addresses = list(product(range(EPOCHS), range(RANKS), range(WORKERS)))
    theirs = {reference_seed(12345, RANKS, rank, worker) for _, rank, worker in addresses}
    assert len(theirs) == GPUS_PER_NODE * WORKERS  # a tenth of what it should be
    ours = {tuple(worker_sequence(12345, 0, *address).generate_state(8)) for address in addresses}
    assert len(ours) == len(addresses)


@settings(deadline=None, derandomize=True)
@given(st.lists(st.tuples(*(st.integers(0, 2**32 - 1) for _ in range(3))), min_size=2, max_size=2, unique=True))
def test_no_two_samples_share_a_stream(addresses: list[tuple[int, int, int]]) -> None:
    first, second = (sample_generator(3, *address).integers(2**63, size=4) for address in addresses)
    assert not np.array_equal(first, second)


def test_streams_for_different_purposes_differ_at_the_same_address() -> None:
    values = {
        int(order_generator(1, 0, 0).integers(2**63)),
        int(sample_generator(1, 0, 0, 0).integers(2**63)),
        forward_seed(1, 0, 0, 0),
        initial_seed(1, 0),
    }
    assert len(values) == 4


def test_philox_streams_of_neighbours_do_not_overlap() -> None:
    """The neighbour's counter differs above 2^128, so a long draw from one never runs into the next."""
    here = sample_generator(1, 0, 0, 0).integers(2**63, size=100_000)
    there = sample_generator(1, 0, 0, 1).integers(2**63, size=100_000)
    assert not np.isin(there[:100], here).any()


def global_draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(1))


def test_worker_init_seeds_all_three_global_generators_for_its_own_address() -> None:
    init = WorkerInit(seed=5, stage=0, epoch=2, rank=1)
    init(3)
    first = global_draws()
    init(3)
    assert global_draws() == first
    others = [WorkerInit(6, 0, 2, 1), WorkerInit(5, 1, 2, 1), WorkerInit(5, 0, 3, 1), WorkerInit(5, 0, 2, 2)]
    draws = []
    for other in others:
        other(3)
        draws.append(global_draws())
    init(2)
    draws.append(global_draws())
    for position in range(3):
        assert len({first[position], *(draw[position] for draw in draws)}) == 6
