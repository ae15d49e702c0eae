"""How far a job has come, from what is on disk."""

from pathlib import Path

import pytest

from agl_core.config import TrainConfig
from agl_core.durable.chain import ChainLog
from agl_core.files import write_text
from jobs import progress
from jobs.pipeline import ENSEMBLE, EVALUATE, PREDICT, PREPARE, REPORT, STAGE
from jobs.progress import kept, reached
from jobs.runs import Run
from jobs.settings import to_yaml


@pytest.fixture
def run(tmp_path: Path) -> Run:
    path = tmp_path / "first"
    (path / "chain").mkdir(parents=True)
    return Run(path)


def chain(run: Run, generation: int, stage: str = "pretrain") -> ChainLog:
    return ChainLog(run.path / "chain" / f"{stage}.{generation}.jsonl")


def steps(log: ChainLog, *numbers: int, samples: int = 1) -> None:
    for number in numbers:
        log.step(number, 1, [0.1] * samples)


def save(run: Run, *numbers: int, stage: str = "pretrain") -> None:
    for number in numbers:
        (run.checkpoints(stage) / f"step_{number:08d}").mkdir(parents=True)


def test_a_stage_that_has_not_begun_is_at_step_0(run: Run) -> None:
    assert kept(run, "pretrain", STAGE) == 0
    assert reached(run, "pretrain", STAGE) == 0


def test_what_is_kept_is_the_newest_checkpoint_of_the_stage(run: Run) -> None:
    save(run, 20, 100, 99)
    save(run, 300, stage="finetune")
    (run.checkpoints("pretrain") / ".step_00000500.part").mkdir()
    assert kept(run, "pretrain", STAGE) == 100
    assert reached(run, "pretrain", STAGE) == 100


def test_what_is_reached_is_the_last_step_in_the_chain(run: Run) -> None:
    save(run, 2)
    steps(chain(run, 1), 1, 2, 3)
    steps(chain(run, 1, "finetune"), 1, 2, 3, 4, 5)
    assert reached(run, "pretrain", STAGE) == 3
    assert kept(run, "pretrain", STAGE) == 2


def test_a_step_that_was_torn_has_not_been_reached(run: Run) -> None:
    steps(chain(run, 1), 1, 2)
    path = run.path / "chain" / "pretrain.1.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step": 3, "samples": "00", "losses": ["0x')
    assert reached(run, "pretrain", STAGE) == 2
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0])  # all of a line but its end
    assert reached(run, "pretrain", STAGE) == 1
    path.write_bytes(b'{"step": 1, "sam')
    assert reached(run, "pretrain", STAGE) == 0


def test_what_is_no_step_says_nothing_about_it(run: Run) -> None:
    log = chain(run, 1)
    steps(log, 1, 2, 3)
    log.state(2, {"model": "00", "optimizer": "00"})
    log.rollback(3, 1)
    assert reached(run, "pretrain", STAGE) == 3
    with (run.path / "chain" / "pretrain.1.jsonl").open("a") as file:
        file.write('not json\n[]\n{"step": "many", "losses": []}\n')
    assert reached(run, "pretrain", STAGE) == 3


def test_what_the_newest_incarnation_has_reached_counts_and_not_what_an_earlier_one_has_lost(run: Run) -> None:
    save(run, 2)
    steps(chain(run, 1), 1, 2, 3, 4, 5)
    steps(chain(run, 2), 3, 4)
    assert reached(run, "pretrain", STAGE) == 4
    steps(chain(run, 10), 3)
    assert reached(run, "pretrain", STAGE) == 3
    save(run, 8)
    assert reached(run, "pretrain", STAGE) == 8


def test_a_step_of_a_large_batch_is_found_at_the_end_of_a_long_chain(run: Run) -> None:
    steps(chain(run, 1), *range(1, 60), samples=1024)
    assert reached(run, "pretrain", STAGE) == 59


def test_the_size_of_the_store_shows_that_its_preparation_comes_on(run: Run, tmp_path: Path) -> None:
    assert kept(run, "prepare", PREPARE) == 0  # no configuration yet
    store = tmp_path / "store"
    write_text(run.config_file, to_yaml(TrainConfig(store=str(store))))
    assert kept(run, "prepare", PREPARE) == 0
    store.mkdir()
    (store / "data.mdb").write_bytes(b"x" * 5000)
    small = kept(run, "prepare", PREPARE)
    (store / "data.mdb").write_bytes(b"x" * 500000)
    assert reached(run, "prepare", PREPARE) == kept(run, "prepare", PREPARE) > small > 0


@pytest.mark.parametrize("kind", [PREDICT, ENSEMBLE])
def test_predictions_are_counted(run: Run, kind: str) -> None:
    assert kept(run, kind, kind) == 0
    run.predictions.mkdir()
    for name in ("a_VFLOW.json", "b_VFLOW.json", "b_AGL.tif", "about.json", ".c.part"):
        (run.predictions / name).touch()
    assert kept(run, kind, kind) == reached(run, kind, kind) == 2


@pytest.mark.parametrize("kind", [EVALUATE, REPORT])
def test_short_jobs_keep_nothing(run: Run, kind: str) -> None:
    assert kept(run, kind, kind) is None
    assert reached(run, kind, kind) is None


def test_a_disk_that_is_away_ends_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(path: Path) -> list[Path]:
        raise OSError(116, "Stale file handle")

    steps(chain(run, 1), 1, 2)
    monkeypatch.setattr(progress, "list_checkpoints", away)
    assert kept(run, "pretrain", STAGE) is None
    assert reached(run, "pretrain", STAGE) == 2


def test_a_chain_that_cannot_be_listed_ends_nobody(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> list[Path]:
        raise OSError(116, "Stale file handle")

    save(run, 2)
    monkeypatch.setattr(progress, "chain_files", away)
    assert reached(run, "pretrain", STAGE) is None
    assert kept(run, "pretrain", STAGE) == 2
