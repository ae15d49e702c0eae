"""`launch.py` as a user sees it: exit codes, one sentence, no traceback."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

import launch
from agl_core.errors import UserError
from jobs.cli import Request
from jobs.failure import JobError
from jobs.snapshot import ROOT


def ends_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    def carry_out(request: Request) -> None:
        raise error

    monkeypatch.setattr(launch, "carry_out", carry_out)
    return launch.main(["world", "--out", "x"])


ENDS = [
    (UserError("tile x: no"), 2, "error: tile x: no\n"),
    (UserError(""), 2, ""),
    (JobError("rank 1 ended"), 1, "error: rank 1 ended\n"),
    (KeyboardInterrupt(), 130, ""),
    (OSError(errno.ENOSPC, "No space left on device", "/data/x"), 2, "error: /data/x: No space left on device; free"),
    (PermissionError(errno.EACCES, "Permission denied", "/data/x"), 2, "error: /data/x: Permission denied; choose"),
]


@pytest.mark.parametrize(("error", "code", "words"), ENDS, ids=lambda value: repr(value)[:40])
def test_what_goes_wrong_becomes_an_exit_code_and_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str
) -> None:
    assert ends_with(monkeypatch, error) == code
    said = capsys.readouterr().err
    assert said.startswith(words) if words else said == ""
    assert said.count("\n") <= 1


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ends_with(monkeypatch, ZeroDivisionError())
    with pytest.raises(OSError, match="strange"):
        ends_with(monkeypatch, OSError(errno.EIO, "strange"))


def run(*words: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_it_works_from_any_folder(tmp_path: Path) -> None:
    helped = run("evaluate", "--help", cwd=tmp_path)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("python launch.py evaluate --predictions")
    refused = run("--recipe", "nothing", cwd=tmp_path)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: unknown recipe 'nothing'")
    assert refused.stderr.count("\n") == 1


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys, launch; code = launch.main(['--help']); sys.exit(code or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0


def test_a_reader_that_leaves_early_is_no_error() -> None:
    program = f"{sys.executable} launch.py --help | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_launch_is_short() -> None:
    assert len((ROOT / "launch.py").read_text().splitlines()) < 100
