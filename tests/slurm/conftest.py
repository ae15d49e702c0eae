"""The proof on a real Slurm: run once for all workers, in a process of its own, and looked up by the tests."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.left_out import HERE, needed, reason
from tests.slurm.minislurm import ROOT
from tests.slurm.prove import ended_file, result_file

LIMIT = 900  # seconds for a test, which waits for what all of them need
Result = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come last, so that nobody waits for them who could do something else; without Slurm they are skipped."""
    own = [item for item in items if item.nodeid.startswith(HERE)]
    items[:] = [item for item in items if item not in set(own)] + own
    for item in own:
        item.add_marker(pytest.mark.timeout(LIMIT))
        if (why := reason()) is not None and not needed():
            item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session", autouse=True)
def _slurm_is_there() -> None:
    if (why := reason()) is not None:
        pytest.fail(why)


@pytest.fixture(scope="session")
def result_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Result]]:
    """The result of a scenario or row by its name; waits for it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "slurm"
    names = list(dict.fromkeys(name for item in request.session.items if (name := _name(item)) is not None))
    process = _start(folder, names)
    try:
        yield lambda name: _await(folder, name)
        if process is not None and not request.session.shouldstop:
            process.wait()  # the other workers wait for its results too
    finally:
        if process is not None:
            process.terminate()
            process.wait()


def _name(item: Any) -> str | None:
    """Whose result a test looks at."""
    if "result_of" not in getattr(item, "fixturenames", ()):
        return None
    return str(item.callspec.params["name"])


def _start(folder: Path, names: list[str]) -> "subprocess.Popen[bytes] | None":
    """Start the proof, if no other worker has; it ends with this process, and its clusters with it."""
    with suppress(FileExistsError):
        folder.mkdir()
        command = ["setpriv", "--pdeathsig", "TERM", sys.executable, "-m", "tests.slurm.prove", str(folder), *names]
        with (folder / "prove.log").open("wb") as log:
            return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    return None


def _await(folder: Path, name: str) -> Result:
    path, log = result_file(folder, name), folder / "prove.log"
    while not path.exists():
        if ended_file(folder).exists() and not path.exists():
            pytest.fail(f"there is no result of {name!r}: {log.read_text()[-4000:]}")
        time.sleep(0.1)
    result: Result = json.loads(path.read_text())
    return result
