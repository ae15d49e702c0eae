import json
from pathlib import Path

import pytest

from agl_core.config import TrainConfig
from agl_core.config.stage import StageConfig
from agl_core.errors import UserError
from agl_core.reporting.goodput.account import ITEMS, Account, Life
from jobs.planning import sacct
from jobs.planning.sacct import parse
from jobs.planning.site import observed, read_known

DAY = 86400.0
TRAIN = TrainConfig(stages={"train": StageConfig()})


def life(number: int, launched: float, ended: float | None, **values: object) -> Life:
    given: dict[str, object] = {
        "number": number, "job": "train", "id": "7", "restart": 0, "attempt": 0, "host": "n0", "queued": None,
        "launched": launched, "started": launched + 5, "ended": ended, "from_step": 0, "reached": 9, "kept": 9,
        "lost": 0, "end": "interrupted", "why": "", "deed": "", "text": "",
    }  # fmt: skip
    return Life(**{**given, **values})  # type: ignore[arg-type]


def account(*lives: Life, end: float = 10 * DAY) -> Account:
    return Account(0.0, end, (), lives, dict.fromkeys(ITEMS, 0.0), 0, 0, 0)


def test_what_ended_a_start_is_told_by_what_it_cost() -> None:
    found = observed(
        [
            (
                account(
                    life(1, 0.0, DAY, why="preempted", queued=-60.0),
                    life(2, 2 * DAY, 3 * DAY, restart=1, end="crashed", deed="again", lost=30, queued=DAY),
                    life(3, 3 * DAY, 4 * DAY, restart=1, attempt=1, end="crashed", deed="again"),
                    life(4, 4 * DAY, 5 * DAY, restart=1, attempt=2, end="", lost=4),
                    life(5, 5.5 * DAY, 6 * DAY, restart=2, why="time limit"),
                    life(6, 6 * DAY, 7 * DAY, restart=3, why="cancelled"),
                    life(7, 7 * DAY, 8 * DAY, id="8", end="crashed", deed="give up"),
                    life(8, 8 * DAY, 9 * DAY, id="9", end="done"),
                    life(9, 9 * DAY, 10 * DAY, id="9", job="report"),
                    life(10, 9 * DAY, 9.5 * DAY, id="pid 5", deed="leave"),  # Ctrl-C
                    life(11, 9.5 * DAY, 10 * DAY, id="pid 6", deed="leave", lost=2),
                ),
                TRAIN,
            )
        ],
        "here",
    )
    assert found.days == 8.5
    assert {kind: count for kind, count in found.counts.items() if count} == {
        "preempt": 1, "crash": 1, "rank": 1, "node": 1,
    }  # fmt: skip
    assert found.waits == (60.0, DAY)


def test_a_start_that_goes_on_counts_until_now() -> None:
    assert observed([(account(life(1, 0.0, None)), TRAIN)], "here").days == 10


def test_sacct_tells_waits_and_interruptions_of_each_time_that_a_job_ran() -> None:
    text = """\
PREEMPTED|2026-03-01T10:00:00|2026-03-01T10:05:00|2026-03-01T22:05:00|43200|gpu
REQUEUED|2026-03-01T22:08:00|2026-03-01T23:08:00|2026-03-02T11:08:00|43200|gpu
NODE_FAIL|2026-03-02T11:10:00|2026-03-02T11:10:00|2026-03-03T11:10:00|86400|gpu
CANCELLED by 1000|2026-03-03T11:10:00|None|2026-03-03T11:10:00|0|gpu
PENDING|Unknown|Unknown|Unknown|0|gpu
COMPLETED|Unknown|2026-03-03T12:00:00|2026-03-04T12:00:00|86400|gpu
a line of something else
"""
    found = parse(text)
    assert found.days == 3
    assert (found.counts["preempt"], found.counts["node"]) == (2, 1)
    assert found.waits == (0.0, 300.0, 3600.0)
    assert not found.held


def test_a_site_without_accounts_gets_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "sacct"
    script.write_text(
        "#!/bin/sh\nprintf 'sacct: error: so\\nsacct: fatal: Slurm accounting storage is disabled\\n' >&2\nexit 1\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(
        UserError, match=r"no accounts of jobs can be read here \(Slurm accounting storage is disabled\): give --inter"
    ):
        sacct.ask()
    script.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(UserError, match="there is none of sacct, your jobs of the last 30 days in gpu that has run"):
        sacct.ask(["gpu"])
    script.write_text(
        f'#!/bin/sh\necho "$*" > {tmp_path}/asked\necho "PREEMPTED|Unknown|2026-03-01T10:05:00|x|86400|gpu"\n'
    )
    assert sacct.ask(["gpu", "fat"]).counts["preempt"] == 1
    assert "--partition gpu,fat" in (tmp_path / "asked").read_text()


def test_known_events_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "known.json"
    path.write_text(
        json.dumps({"events": [{"at": 9.5, "kind": "node"}, {"at": 2, "kind": "preempt", "back": 7}], "queue": [3, 1]})
    )
    strikes, waits = read_known(path)
    assert [(one.at, one.kind, one.back) for one in strikes] == [
        (2 * 10**9, "preempt", 7 * 10**9), (9500000000, "node", None),
    ]  # fmt: skip
    assert waits == (1.0, 3.0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("nonsense", "cannot be read"),
        ("[]", "holds no list of events"),
        ('{"events": 3}', "holds no list of events"),
        ('{"events": [4]}', "event 1 is 4: give at"),
        ('{"events": [{"at": -1, "kind": "node"}]}', "event 1 is"),
        ('{"events": [{"at": NaN, "kind": "node"}]}', "event 1 is"),
        ('{"events": [{"at": true, "kind": "node"}]}', "event 1 is"),
        ('{"events": [{"at": 1, "kind": "fire"}]}', "one of preempt, rank, crash"),
        ('{"events": [{"at": 1, "kind": "node", "back": "soon"}]}', "event 1 is"),
        ('{"events": [], "queue": 3}', "queue is 3: give a list of seconds"),
    ],
)
def test_a_file_of_something_else_is_refused_in_one_sentence(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "known.json"
    path.write_text(content)
    with pytest.raises(UserError, match=said) as refused:
        read_known(path)
    assert "\n" not in str(refused.value)
