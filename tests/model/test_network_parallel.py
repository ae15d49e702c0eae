"""Networks in two processes: a parameter that gets no gradient would end the second step."""

import multiprocessing
from pathlib import Path
from typing import Any

import torch

from agl_core.training.parallel import Parallel
from tests.model.networks import BATCH, small, some_loss

DECODERS = [("unet", "scse"), ("unetplusplus", "scse"), ("manet", "none"), ("fpn", "none")]
CASES = [("efficientnet-b0", "unet", "none"), *(("efficientnet-b0", *decoder) for decoder in DECODERS)]
CASES.append(("tu-resnet10t", "unet", "none"))


def _train(rank: int, folder: Path, results: Any) -> None:
    """Two steps of every case, the last with gradient checkpointing; the sum of all weights after them."""
    torch.set_num_threads(1)
    image, city, gsd = BATCH
    mine = image.roll(rank, dims=0)[..., :64], city.roll(rank), gsd.roll(rank)
    sums = []
    with Parallel(rank, 2, rank, f"file://{folder}/meeting") as parallel:
        for encoder, decoder, attention in CASES:
            model = small(decoder, attention, ("gsd", "prior"), encoder).train()
            model.set_gradient_checkpointing(model.has_gradient_checkpointing)
            wrapped = parallel.wrap(model)
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
            for step in range(2):
                torch.manual_seed(2 * step + rank)
                optimizer.zero_grad()
                some_loss(wrapped(*mine)).backward()
                optimizer.step()
            sums.append(float(sum(p.detach().double().abs().sum() for p in model.parameters())))
    results.put((rank, sums))


def test_every_decoder_takes_two_steps_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.preloaded"])
    results = context.Queue()
    processes = [context.Process(target=_train, args=(rank, tmp_path, results)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0, 0]
    found = dict(results.get(timeout=10) for _ in processes)
    assert len(found[0]) == len(CASES)
    assert found[0] == found[1]  # the gradients were averaged: both have the same weights
