"""A byte of the store that was changed behind its back ends a run everywhere with the sentence that names the tile."""

import re
import shutil
from pathlib import Path
from typing import Any

import lmdb
import pytest
import torch

from agl_core.config import CheckpointConfig, TrainConfig
from agl_core.data.order import Order
from agl_core.data.split import Split
from agl_core.data.store import Store
from agl_core.data.store.layout import subtile_key
from agl_core.durable.retention import checkpoint_step, list_checkpoints
from agl_core.errors import UserError
from agl_core.training.parallel import Parallel
from agl_core.training.trainer import train_stage
from tests.training.faults import PROCESSES, assert_same_result, kinds, small, train

pytestmark = pytest.mark.usefixtures("threads_end")
SEE = 2
"""The step, from 0, that is the first to need the damaged tile."""


def settings_for(store: Path, **changes: Any) -> TrainConfig:
    return small(store, checkpoint=CheckpointConfig(every="100 steps", interval="never"), **changes)


@pytest.fixture
def broken(tiny_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_store, tmp_path / "store"))


def damage(path: Path, tile: int) -> str:
    """Flip a bit in the middle of the first value of a tile; the sentence that must be told."""
    store = Store(path)
    name = store.entries[tile].id
    store.close()
    with (
        lmdb.open(str(path), readonly=True, lock=False, create=False) as environment,
        environment.begin() as transaction,
    ):
        value = transaction.get(subtile_key(name, 0, 0))
    content = bytearray((path / "data.mdb").read_bytes())
    assert content.count(value) == 1
    content[content.index(value) + len(value) // 2] ^= 16
    (path / "data.mdb").write_bytes(content)
    return rf"^store {re.escape(str(path))} is damaged at tile {name} \(sub-tile 0, 0\): [^\n]*$"


def first_seen(store: Path) -> int:
    """A tile that no step before `SEE` needs, and that step does."""
    config = settings_for(store)
    order = Order(config.seed, 0, len(Store(store).entries), config.stages["first"].batch)
    before = {key.sample for step in range(SEE) for key in order.batch(step)}
    return next(key.sample for key in order.batch(SEE) if key.sample not in before)


def saved(run_dir: Path) -> list[int]:
    return [checkpoint_step(path.name) for path in list_checkpoints(run_dir / "checkpoints" / "first")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_tile_ends_the_stage_after_the_last_step_that_does_not_need_it(
    tiny_store: Path, broken: Path, tmp_path: Path, undisturbed: Path, workers: int
) -> None:
    sentence = damage(broken, first_seen(broken))
    settings = settings_for(broken, workers=workers)
    steps: list[int] = []
    with pytest.raises(UserError, match=sentence) as refused:
        train(settings, tmp_path / "run", steps.append)
    assert steps == [1, 2]
    assert saved(tmp_path / "run") == [SEE]
    refusals = [(event["step"], event["saved"], event["text"]) for event in kinds(tmp_path / "run", "refusal")]
    assert refusals == [(SEE, SEE, str(refused.value))]
    shutil.copy(tiny_store / "data.mdb", broken / "data.mdb")
    assert train(settings, tmp_path / "run") == [3, 4, 5]
    assert_same_result(tmp_path / "run", undisturbed)


def test_a_tile_that_the_first_step_needs_ends_the_stage_before_it(broken: Path, tmp_path: Path) -> None:
    config = settings_for(broken)
    first = Order(config.seed, 0, len(Store(broken).entries), 4).batch(0)[1].sample
    with pytest.raises(UserError, match=damage(broken, first)):
        train(config, tmp_path / "run")
    assert saved(tmp_path / "run") == []


def _one_of_two(settings: TrainConfig, run_dir: Path, rank: int, ends: Any) -> None:
    torch.set_num_threads(1)
    try:
        with Parallel(rank, 2, rank, f"file://{run_dir}/rendezvous") as parallel:
            train_stage(settings, "first", run_dir, parallel)
        ends.put((rank, "", ""))
    except Exception as error:
        ends.put((rank, type(error).__name__, str(error)))


@pytest.mark.parametrize("where", ["training", "validation"])
@pytest.mark.parametrize("other", [0, 1])
def test_all_processes_tell_of_a_tile_that_one_of_them_could_not_read(
    broken: Path, tmp_path: Path, where: str, other: int
) -> None:
    """`other`: which of a step's micro-batches or of the validated images, and so whose, it is."""
    settings = settings_for(broken, validate=where == "validation", encoder="tu-resnet10t")
    if where == "validation":
        validation = Split.of(Store(broken), settings).validation
        assert len(validation) > 1
        sentence = damage(broken, validation[other])
    else:
        order = Order(settings.seed, 0, len(Store(broken).entries), 4)
        before = {key.sample for step in range(SEE) for key in order.batch(step)}
        mine = [key.sample for key in order.batch(SEE)[2 * other : 2 * other + 2] if key.sample not in before]
        sentence = damage(broken, mine[0])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    ends = PROCESSES.Queue()
    processes = [PROCESSES.Process(target=_one_of_two, args=(settings, run_dir, rank, ends)) for rank in (0, 1)]
    for process in processes:
        process.start()
    told = {rank: (kind, text) for rank, kind, text in (ends.get(timeout=240) for _ in processes)}
    for process in processes:
        process.join()
    assert told[0] == told[1]
    assert told[0][0] == "UserError"
    assert re.match(sentence, told[0][1])
    assert saved(run_dir) == [SEE]
