import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from agl_core.model import tensors
from agl_core.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, verify_checkpoint


def state(step: int) -> Checkpoint:
    flat = torch.arange(6.0) + step
    model = {"weight": flat[:4].view(2, 2).t(), "running_mean": flat[4:], "count": torch.tensor(step)}
    return Checkpoint(step, model, {"step/weight": torch.tensor(float(step))}, {"best_score": 0.5, "scaler": {}})


def equal(first: Checkpoint, second: Checkpoint) -> bool:
    return (first.step, first.state) == (second.step, second.state) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in ((first.model, second.model), (first.optimizer, second.optimizer))
    )


def test_the_newest_checkpoint_comes_back_whole(tmp_path: Path) -> None:
    for step in (9, 10, 11):
        save_checkpoint(tmp_path, state(step), keep=2)
    loaded, skipped = load_checkpoint(tmp_path)
    assert loaded is not None
    assert equal(loaded, state(11))
    assert skipped == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000011"]


def test_a_damaged_later_checkpoint_does_not_crowd_out_a_new_one(tmp_path: Path) -> None:
    for step in (800, 900):
        damaged = save_checkpoint(tmp_path, state(step))
        (damaged / "model.safetensors").write_bytes(b"")
    saved = save_checkpoint(tmp_path, state(300), keep=1)
    loaded, skipped = load_checkpoint(tmp_path)
    assert loaded is not None
    assert equal(loaded, state(300))
    assert skipped == []
    assert list(tmp_path.iterdir()) == [saved]


def test_files_have_the_mode_of_the_users_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        saved = save_checkpoint(tmp_path, state(1))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in saved.iterdir()} == {0o640}


def test_a_full_disk_is_the_operating_systems_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(tmp_path, state(1))
    assert caught.value.errno == errno.ENOSPC
    assert load_checkpoint(tmp_path) == (None, [])


def test_nothing_is_loaded_from_nothing(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "absent") == (None, [])


def test_saving_a_step_again_replaces_it_and_clears_what_a_killed_save_left(tmp_path: Path) -> None:
    left = tmp_path / ".step_00000003.part"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"torn")
    save_checkpoint(tmp_path, state(3))
    save_checkpoint(tmp_path, state(3))
    loaded, _ = load_checkpoint(tmp_path)
    assert loaded is not None
    assert equal(loaded, state(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_checkpoint_is_skipped_with_the_reason_and_an_older_one_is_used(
    tmp_path: Path, name: str, damage: str
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step))
    path = tmp_path / "step_00000002" / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    elif damage == "truncate":
        path.write_bytes(bytes(content[:-3]))
    else:
        path.unlink()
    loaded, skipped = load_checkpoint(tmp_path)
    assert loaded is not None
    assert equal(loaded, state(1))
    assert len(skipped) == 1
    assert skipped[0].startswith("step_00000002: ")


def test_a_manifest_that_leaves_a_file_out_does_not_vouch_for_it(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, state(1))
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["optimizer.safetensors"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    assert verify_checkpoint(path) == "optimizer.safetensors is not in the manifest"
