"""Machine code where it can be kept, and where it cannot."""

import subprocess
import sys
from pathlib import Path

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
