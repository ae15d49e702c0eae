"""Machine code on disk must never be older than any source it was made of."""

import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from agl_core.world import compiled as module


def test_the_digest_covers_every_module_with_compiled_functions() -> None:
    folder = Path(module.__file__).parent
    users = {path.name for path in folder.glob("*.py") if "import compiled" in path.read_text()}
    assert users == set(module.SOURCES)


def test_machine_code_is_kept_until_any_source_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kernel_of_the_test.py").write_text("def double(x):\n    return 2 * x\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    kernel = importlib.import_module("kernel_of_the_test")

    def loaded_from_disk(function: Callable[[int], int]) -> bool:
        dispatcher = module.compiled(function)
        assert dispatcher(21) == 42
        return bool(dispatcher.stats.cache_hits)  # type: ignore[attr-defined]

    assert not loaded_from_disk(kernel.double)
    assert loaded_from_disk(kernel.double)
    with monkeypatch.context() as other:
        other.setattr(module, "_DIGEST", "the digest of other sources")
        assert not loaded_from_disk(kernel.double)
    assert loaded_from_disk(kernel.double)
