"""Two incarnations of one run: the earlier one writes nothing any more."""

from pathlib import Path

import pytest

from agl_core.durable.exits import PeerLostError
from agl_core.durable.lease import Lease, LeaseLostError
from tests.training.faults import (
    assert_same_result,
    disturb,
    published,
    scored,
    small,
    train,
)

pytestmark = pytest.mark.usefixtures("threads_end")


@pytest.mark.parametrize(("how", "at"), [("nothing", 2), ("signal", 2), ("peer", 2), ("nothing", 5)])
def test_who_has_lost_the_run_to_another_incarnation_writes_nothing_any_more(
    tiny_store: Path, tmp_path: Path, undisturbed: Path, how: str, at: int
) -> None:
    before: list[set[str]] = []

    def watch(step: int) -> None:
        if step == at:
            Lease.take(tmp_path, "another")
            before.append(published(tmp_path))
            disturb(how)

    expected = PeerLostError if how == "peer" else LeaseLostError
    with pytest.raises(expected, match="there was nothing to save" if how == "peer" else "has taken this run over"):
        train(small(tiny_store), tmp_path, watch)
    assert before == [published(tmp_path)]
    assert not {"stages/first.json", "weights/first/last.safetensors"} & before[0]
    train(small(tiny_store), tmp_path)
    assert_same_result(tmp_path, undisturbed)


def test_the_best_weights_of_an_incarnation_that_lost_the_run_are_not_written(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored(monkeypatch, {2: 0.5, 4: 0.9})
    end = tmp_path / "weights" / "first" / "best.safetensors"
    contents: list[bytes] = []

    def watch(step: int) -> None:
        if step == 4:
            contents.append(end.read_bytes())
            Lease.take(tmp_path, "another")

    with pytest.raises(LeaseLostError):
        train(small(tiny_store, validate=True), tmp_path, watch)
    assert [end.read_bytes()] == contents
