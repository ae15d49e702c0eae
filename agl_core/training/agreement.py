"""What all processes agree on at the end of every step, in one exchange between CPUs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import xxhash

from agl_core.data.batch import Batch
from agl_core.durable.exits import PeerLostError
from agl_core.model.losses import PARTS
from agl_core.training.parallel import Parallel
from agl_core.training.step import Computed

_HALF = 2**32
SAME_NORM = 1e-3  # relative difference up to which two norms are those of the same gradient


@dataclass(frozen=True)
class Verdict:
    """The same in every process.

    losses: of the whole global batch (`PARTS`), added up in the order of ranks; samples: 64-bit
    digest of its sample keys; finite: losses and gradients are finite everywhere; signal: number of a signal that asks
    some process to leave, 0 for none; seconds_left: until the first of them is killed, inf if nobody is; save: the
    first process wants a checkpoint; waited: seconds that the one which waited longest has waited for its data;
    refused: some process cannot go on for a reason that the user can mend.
    """

    losses: list[float]
    samples: int
    finite: bool
    signal: int
    seconds_left: float
    save: bool
    waited: float = 0.0
    refused: bool = False


def agree(
    parallel: Parallel,
    computed: Computed,
    samples: int,
    signal: int,
    seconds_left: float,
    save: bool,
    waited: float = 0.0,
    refused: bool = False,
) -> Verdict:
    """Exchange what each process has found; every process must call it.

    Raises:
        PeerLostError: another process is gone, or was out of reach when gradients were exchanged.
    """
    high, low = divmod(samples, _HALF)  # a double holds 53 bits
    own = [high, low, computed.finite, signal, seconds_left, save, computed.norm, waited, refused, *computed.losses]
    gathered = [row.tolist() for row in parallel.gather(torch.tensor(own, dtype=torch.float64))]
    rows = [_Row(row[-len(PARTS) :], *row[: -len(PARTS)]) for row in gathered]
    norms, finite = [row.norm for row in rows], all(row.finite for row in rows)
    # An exchange of gradients that was broken off leaves anything in them, and says nothing. GPUs of different kinds
    # may find norms of the same gradients that differ in their last digits.
    if finite and not all(math.isclose(norm, norms[0], rel_tol=SAME_NORM) for norm in norms):
        raise PeerLostError(f"the processes have different gradients (norms {norms})")
    losses = [sum(parts) for parts in zip(*(row.losses for row in rows), strict=True)]
    return Verdict(
        losses=losses,
        samples=sum(int(row.high) * _HALF + int(row.low) for row in rows) % 2**64,
        finite=finite and all(math.isfinite(loss) for loss in losses),
        signal=int(max(row.signal for row in rows)),
        seconds_left=min(row.seconds_left for row in rows),
        save=bool(rows[0].save),
        waited=max(row.waited for row in rows),
        refused=any(row.refused for row in rows),
    )


class _Row(NamedTuple):
    """What one process has sent, as doubles; high and low are the halves of the digest of its samples."""

    losses: list[float]
    high: float
    low: float
    finite: float
    signal: float
    seconds_left: float
    save: float
    norm: float
    waited: float
    refused: float


def samples_digest(numbers: Sequence[int], batches: Sequence[Batch]) -> int:
    """64-bit digest of the samples that were really computed: of micro-batch `numbers[i]` those in `batches[i]`.

    The digests of micro-batches are added up (modulo 2^64), so it does not matter which process computed which.
    """
    total = 0
    for number, batch in zip(numbers, batches, strict=True):
        keys = torch.stack([batch.epoch, batch.sample]).numpy().astype("<i8")
        total += xxhash.xxh3_64_intdigest(np.int64(number).astype("<i8").tobytes() + keys.tobytes())
    return total % 2**64
