"""Ten kills of `prepare`, and that the judge of a hundred would see what is wrong."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import PrepareConfig
from agl_core.data.prepare.ingest import prepare
from agl_core.data.store import StoreWriter
from agl_core.data.store.layout import StoreEntry, subtile_key
from tests.data.prepare.prepare_kills import NotWholeError, contents, judge, rehearse
from tests.data.prepare.test_ingest import TILES, make_data


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, bytes]:
    return contents(prepare(PrepareConfig(data=str(make_data(tmp_path_factory.mktemp("data"))), workers=1)))


def test_ten_kills_at_drawn_moments_lose_double_and_corrupt_nothing(tmp_path: Path) -> None:
    tally = rehearse(tmp_path, kills=10, seed=1)
    assert sum(tally.kills.values()) == 10


def test_a_good_store_passes(store: dict[bytes, bytes]) -> None:
    assert sorted(judge(store)) == sorted(TILES)
    assert judge({}) == {}


def test_a_writer_that_commits_a_record_before_its_values_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PrepareConfig(data=str(make_data(tmp_path)), workers=1)
    write = StoreWriter.write_encoded

    def torn(self: StoreWriter, entry: StoreEntry, values: list[bytes], provenance: Any) -> None:
        write(self, entry, values, provenance)
        self._writing().delete(subtile_key(entry.id, 0, 0))
        self._commit()
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(StoreWriter, "write_encoded", torn)
        prepare(config)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    with pytest.raises(NotWholeError, match="ARG_a is done, but sub-tile 0, 0 is missing"):
        judge(contents(tmp_path / "store"))


def test_the_judge_misses_nothing(store: dict[bytes, bytes]) -> None:
    value = next(key for key in store if key.startswith(b"tile/ARG_b"))
    other = next(key for key in store if key.startswith(b"tile/JAX_d"))
    record = json.loads(store[b"done/ARG_b"])
    wrong = {
        "missing": {key: kept for key, kept in store.items() if key != value},
        "another checksum": {**store, value: store[value][:-1] + bytes([store[value][-1] ^ 1])},
        "not what its record says": {**store, value: store[other]},
        "values without a record": {key: kept for key, kept in store.items() if key != b"done/ARG_b"},
        "is the record of": {**store, b"done/ARG_c": json.dumps(record).encode()},
        "the seal names other tiles": {
            key: kept for key, kept in store.items() if not key.startswith((b"done/ARG_b", b"tile/ARG_b"))
        },
    }
    for sentence, content in wrong.items():
        with pytest.raises(NotWholeError, match=sentence):
            judge(content)
