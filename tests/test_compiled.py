"""Machine code where it can be kept, and where it cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agl_core.compiled import machine_code


def add(a: int, b: int) -> int:
    return a + b


def test_a_compiled_function_does_what_the_plain_one_does() -> None:
    assert machine_code(add)(2, 3) == 5


def test_a_machine_on_which_nothing_can_be_kept_compiles_each_time() -> None:
    """Source without a folder that can be written to, no home and no cache folder, as in an archive."""
    script = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "from agl_core.data.augment import splat\n"
        "import numpy as np\n"
        "agl = np.zeros((3, 3), np.uint16)\n"
        "splat.to_centimetres(np.full((3, 3), 7, np.float32), 2.0, False, agl)\n"
        "print(agl.sum())\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == f"{9 * 14}\n", done.stderr


USE = (
    "import numpy as np\n"
    "from agl_core.data.augment import splat\n"
    "agl = np.zeros((3, 3), np.uint16)\n"
    "splat.to_centimetres(np.full((3, 3), 7, np.float32), 2.0, False, agl)\n"
    "print(agl.sum(), splat.to_centimetres.stats.cache_hits)\n"
)


def use(cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NUMBA_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("suffix", "length"), [(".nbc", 100), (".nbi", 0), (".nbi", 30)])
def test_files_that_were_cut_off_are_made_anew(tmp_path: Path, suffix: str, length: int) -> None:
    assert use(tmp_path) == "126 {}\n".format("Counter()")
    assert "1" in use(tmp_path).removeprefix("126")
    (file,) = tmp_path.rglob(f"*to_centimetres*{suffix}")
    os.truncate(file, length)
    assert use(tmp_path).startswith("126 ")
    assert "1" in use(tmp_path).removeprefix("126")


def test_a_disk_without_room_for_it_does_not_end_the_program(tmp_path: Path) -> None:
    """The folder exists and looks as if it could be written to, but nothing can be kept there."""
    script = (
        "import numba.core.caching as caching\n"
        "def full(*_):\n    raise OSError(28, 'No space left on device')\n"
        "caching.IndexDataCacheFile.save = full\n" + USE
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("126 "), done.stderr
