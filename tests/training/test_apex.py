"""Whether NVIDIA's apex is there, and what is said where it is not."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from agl_core.errors import UserError
from agl_core.training import apex
from agl_core.training.apex import choose, missing
from agl_core.training.parallel import Parallel
from tests.training.fake_apex import FusedAdam, install

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _without_apex(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("apex", "amp_C")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(apex, "KIND", "cpu")


def place(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "") -> None:
    """Install a package called apex that is another one."""
    (folder / "apex").mkdir()
    (folder / "apex" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


def test_it_is_used_if_it_can_take_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    assert missing(CPU) == ""
    assert choose("auto", Parallel()) == choose("apex", Parallel()) == ("apex", "")


@pytest.mark.parametrize("name", ["adamw", "adamw-plain"])
def test_who_asks_for_another_one_gets_that(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(monkeypatch)
    assert choose(name, Parallel()) == (name, "")


def test_without_it_auto_is_adamw_and_says_why() -> None:
    assert choose("auto", Parallel()) == ("adamw", "apex is not installed")


def test_who_asks_for_it_where_it_is_missing_is_told_how_it_is_built() -> None:
    with pytest.raises(UserError) as refusal:
        choose("apex", Parallel())
    told = str(refusal.value)
    assert told.startswith("optimizer.name is apex, but apex is not installed: build it with `git clone ")
    assert "APEX_CUDA_EXT=1 pip install" in told
    assert told.endswith("or give optimizer.name=adamw")


def test_it_is_not_looked_for_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(apex, "KIND", "cuda")
    assert choose("auto", Parallel()) == ("adamw", "apex needs a GPU, and this is a cpu")


@pytest.mark.parametrize("text", ["", "import toolkit_for_web_applications", "print 'Python 2'", "optimizers = 1"])
def test_another_package_of_the_name_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    place(tmp_path, monkeypatch, text)
    reason = missing(CPU)
    assert "is not NVIDIA's" in reason
    assert reason.endswith("PyPI's is for web applications")
    assert "\n" not in reason


def test_without_its_cuda_extension_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, extension=False)
    assert "without its CUDA extension amp_C" in missing(CPU)


class Broken(FusedAdam):
    def __init__(self, *args: Any, **more: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")


class Idle(FusedAdam):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(("kind", "words"), [(Broken, "no kernel image is available"), (Idle, "does nothing")])
def test_one_that_does_not_work_here_is_not_used(monkeypatch: pytest.MonkeyPatch, kind: Any, words: str) -> None:
    """Such as one that was built for other GPUs."""
    install(monkeypatch, kind)
    reason = missing(CPU)
    assert words in reason
    assert "\n" not in reason


def test_all_processes_use_it_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Group(Parallel):
        def any_text(self, text: str) -> str:
            return text or "apex is not installed"  # there

    install(monkeypatch)
    assert choose("auto", Group()) == ("adamw", "apex is not installed")
    with pytest.raises(UserError, match="apex is not installed"):
        choose("apex", Group())


@pytest.mark.parametrize("scaled", [True, False])
def test_it_gets_gradients_that_are_not_scaled_any_more(scaled: bool) -> None:
    """As a step has it: unscale, clip, step; an infinite gradient is left out by the scaler."""
    parameter = nn.Parameter(torch.ones(3))
    optimizer = FusedAdam([parameter], lr=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
    for factor in (1.0, math.inf) if scaled else (1.0,):
        (scaler.scale(parameter.sum()) * factor).backward()
        scaler.unscale_(optimizer)
        if factor == 1.0:
            assert parameter.grad is not None
            assert parameter.grad.tolist() == [1.0] * 3
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert parameter.detach().allclose(torch.full((3,), 0.5))
    assert optimizer.param_groups[0]["step"] == 1
