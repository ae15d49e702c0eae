"""The report of a run is made of its folder alone, whatever state that is in."""

import errno
import fcntl
import html
import json
import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agl_core.config import ReportConfig, StageConfig, TrainConfig
from agl_core.data.tiles import write_agl, write_vflow
from agl_core.errors import UserError
from agl_core.files import write_json
from agl_core.geometry import Pose
from agl_core.reporting.events import EventLog
from agl_core.reporting.pictures.tiles import Tile, write_tiles
from agl_core.reporting.report import Gallery, Report
from jobs import survey
from jobs.cluster import load_cluster
from jobs.gallery import gallery
from jobs.history import History
from jobs.many import EnsembleFile, create_ensemble
from jobs.reportfacts import cluster_facts, read_settings
from jobs.reports import config_digest, read_report, report, report_run
from jobs.runs import Run, create, run_of
from jobs.settings import to_yaml
from jobs.standing import assess


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run of two stages that was interrupted in the first."""
    stages = {"a": StageConfig(), "b": StageConfig(start="a/last")}
    config = TrainConfig(run="first", runs=str(tmp_path), data="/data|set", stages=stages)
    found = run_of(config)
    create(found, config)
    log = EventLog(found.events, "a")
    log.write("start", step=0, steps=20, epochs=4, world_size=1, device="cpu", precision="float32")
    log.write("validation", step=5, epoch=1, score=0.5, cities={"X": {"score": 0.5}})
    log.close()
    history = History(found.history)
    history.begin("a", "17", step=0)
    history.end("a", "17", step=12, end="interrupted", why="preempted", deed="requeue", text="step 12 is saved")
    history.begin("a", "17", restart=1, step=12)
    return found


def finished(run: Run, launched: float) -> None:
    """Both stages are done, and the job `report` of the run was launched."""
    launch = {"time": launched, "kind": "launch", "restart": 0, "attempt": 0, "host": "n1"}
    events = []
    for number, stage in enumerate("ab"):
        at, who = launched - 1000 + 400 * number, {"stage": stage, "id": str(17 + number)}
        begun = {"time": at, "stage": stage, "generation": number + 1}
        events += [
            launch | who | {"time": at},
            begun | {"kind": "start", "step": 0, "steps": 20, "epochs": 4},
            begun | {"kind": "step", "time": at + 300, "step": 20, "epoch": 4, "loss": 1.0, "seconds": 290.0},
            begun | {"kind": "finish", "time": at + 301, "step": 20},
            launch | who | {"kind": "leave", "time": at + 302, "end": "done", "why": "", "deed": "done", "text": ""},
        ]
        write_json(run.stage_record(stage), {"finished": True, "steps": 20, "score": 0.5})
    events.append(launch | {"stage": "report", "id": f"pid {os.getpid()}"})
    run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
    History(run.history).begin("report", f"pid {os.getpid()}")


def test_the_job_that_makes_the_report_is_told_as_that_and_is_no_interruption(run: Run) -> None:
    run.stage_record("a").parent.mkdir()
    finished(run, time.time() - 65)
    with run.lock.open("w") as file:
        file.write(f"pid {os.getpid()} on host {socket.gethostname()}")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        report_run(run)
        own = html.unescape(re.sub(r"<[^>]+>", "|", run.report_file.read_text()))
        by_hand = told(run)
    for page, words in ((own, "▸ makes this report"), (by_hand, "▸ still at work")):
        assert page.count(words) == 2, "below the timeline, and among all starts"
        assert "killed" not in page
        assert "Nothing has interrupted it." in page
        row = page[page.index("Every start and its end") :]
        assert re.search(r"report\|+pid\s\d+\|+n1\|+1 min \d+ s\|", row), "how long it has run until now"
        assert re.search(r"other jobs\|+1 min \d+ s", page)


def test_a_report_made_by_hand_tells_a_start_that_runs_from_one_that_was_killed(run: Run) -> None:
    standing = assess(survey.read(run), None, {}, NOW)
    found = read_report(run, NOW, standing, Gallery())
    newest = found.account.lives[-1]  # type: ignore[union-attr]
    assert (newest.end, newest.restart, newest.number) == ("", 1, found.alive)
    gone = replace(standing, jobs=tuple(replace(job, state="lost") for job in standing.jobs))
    assert read_report(run, NOW, gone, Gallery()).alive == 0


@pytest.mark.parametrize(
    ("text", "advised"),
    [
        ("the store is damaged: make it again", ["continues it, when that is mended"]),
        ("the loss is not finite: lower the learning rate, and start a new --run", []),
    ],
)
def test_after_a_refusal_it_is_not_advised_to_go_on_as_if_nothing_was(run: Run, text: str, advised: list[str]) -> None:
    History(run.history).end("a", "17", restart=1, step=12, end="refused", deed="give up", text=text)
    advice = read(run).now.advice
    assert [what for command, what in advice if " resume " in command] == advised
    assert any(" logs " in command for command, _ in advice)


NOW = 2e9


def read(run: Run, now: float = NOW) -> Report:
    return read_report(run, now, assess(survey.read(run), None, {}, now), Gallery())


def told(run: Run, *further: str, **options: object) -> str:
    names = ",".join([run.name, *further])
    report(ReportConfig(run=names, runs=str(run.path.parent), **options))  # type: ignore[arg-type]
    return html.unescape(re.sub(r"<[^>]+>", "|", run.report_file.read_text())) if not further else ""


def test_every_start_is_told_with_its_end_and_the_report_s_own_job_is_no_news(run: Run, capsys) -> None:
    History(run.history).begin("report", "18")
    page = told(run)
    assert capsys.readouterr().out == f"{run.report_file}\n"
    assert "preempted: another job needed its place" in page
    assert "step 12 is saved" in page
    assert read(run).now.job == "a"


def test_the_page_of_a_run_that_is_not_finished_says_how_far_it_is_and_how_to_go_on(run: Run) -> None:
    page = told(run)
    assert "stage a (1 of 2), epoch 1 of 4, step 5 of 20" in page
    assert "<title>Run first</title>" in run.report_file.read_text()
    assert "/data|set" in html.unescape(run.report_file.read_text())
    assert "python launch.py resume first" in page
    assert "Score of the test images" not in page


def test_a_finished_run_says_so_and_has_nothing_to_go_on_with(run: Run) -> None:
    run.stage_record("a").parent.mkdir()
    for stage in ("a", "b"):
        write_json(run.stage_record(stage), {"finished": True, "steps": 20, "score": 0.5})
    found = read(run).now
    assert (found.state, found.job, found.advice) == ("finished", "", [])
    assert "✓ finished" in told(run)


@pytest.mark.parametrize(
    ("tiles", "words"),
    [
        ({"tiles": 32}, ["It will end about"]),
        ({}, ["Stage a will be done about", "the rest is not known yet"]),  # how many steps b has depends on the tiles
    ],
)
def test_a_run_that_runs_says_where_and_when_it_will_end(run: Run, tiles: dict[str, int], words: list[str]) -> None:
    pid, now = os.getpid(), time.time()
    began = {"time": now - 1000, "stage": "a", "generation": 1}
    lines = [began | {"kind": "start", "step": 0, "steps": 2000, "epochs": 4, "world_size": 1, "device": "cpu"} | tiles]
    lines += [
        began | {"kind": "step", "time": now - 1000 + n, "step": n, "epoch": n // 500, "seconds": 10.0, "lr": 0.1}
        for n in range(10, 1000, 10)
    ]
    run.events.write_text("".join(json.dumps(line) + "\n" for line in lines))
    History(run.history).begin("a", f"pid {pid}", restart=2)
    with run.lock.open("w") as file:
        file.write(f"pid {pid} on host {socket.gethostname()}")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        page = told(run)
    assert "▸ running" in page
    assert (
        f"It is at stage a (1 of 2), epoch 1 of 4, step 990 of 2\u202f000 on {socket.gethostname()} (pid {pid})" in page
    )
    assert all(word in page for word in words)
    assert "python launch.py watch first" in page


def test_a_run_that_failed_tells_what_its_processes_printed_last(run: Run) -> None:
    traceback = "Traceback (most recent call last):\nValueError: <b>7</b>"
    History(run.history).end(
        "a", "17", restart=1, step=12, end="crashed", deed="give up", text="rank 1 failed", traceback=traceback
    )
    page = told(run)
    assert "rank 1 failed" in page
    assert "ValueError: <b>7</b>" in page
    assert "<b>7" not in run.report_file.read_text()


def test_a_run_in_which_nothing_was_started_yet_has_a_report(tmp_path: Path) -> None:
    config = TrainConfig(run="new", runs=str(tmp_path), stages={"a": StageConfig()})
    create(run_of(config), config)
    page = told(run_of(config))
    assert "Nothing of it was started yet." in page
    assert "What differs from the recipe" in page


@pytest.mark.parametrize("file", ["events.jsonl", "config.yaml", "cluster.yaml", "score.json", "stages/a.json"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\x00{", b'{"score": ', b"[]", b'{"score": {"a": []}, "cities": 7}\n7\nnull\n']
)
def test_damaged_files_are_told_of_or_left_out_and_never_end_the_report(run: Run, file: str, content: bytes) -> None:
    path = run.path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert "first" in told(run)


def test_torn_events_and_those_of_another_kind_leave_the_rest_readable(run: Run) -> None:
    with run.events.open("ab") as file:
        file.write(
            b'{"time": 5, "kind": "step", "st\n{"time": "x", "kind": 7}\n{"kind": "step"}\n[1]\n{"time": 1e400}\n'
        )
        file.write(b'{"time": 3, "kind": "start", "stage": ["a"], "step": "x"}\n{"torn')
    assert "stage a (1 of 2), epoch 1 of 4, step 5 of 20" in told(run)


@pytest.mark.parametrize("content", ['{"score": ', "[]"])
def test_a_score_that_cannot_be_read_is_left_out(run: Run, content: str) -> None:
    run.score_file.write_text(content)
    assert read(run).score is None
    write_json(run.score_file, {"score": 0.5, "cities": {}})
    assert read(run).score == {"score": 0.5, "cities": {}}


def test_an_ensemble_names_its_runs(run: Run) -> None:
    folder = Run(run.path.parent / "both")
    folder.path.mkdir()
    create_ensemble(folder, EnsembleFile(["first", "second"], ["/p/first", "/p/second"], "/data", "cm"))
    page = told(folder)
    assert "<title>Ensemble both</title>" in folder.report_file.read_text()
    assert "first, second" in page


def test_a_run_that_is_not_there_is_answered_with_those_that_are(run: Run) -> None:
    with pytest.raises(UserError, match=r"no run 'second' in .*: there are first"):
        report(ReportConfig(run="second", runs=str(run.path.parent)))
    with pytest.raises(UserError, match=r"no run 'second' in .*: there are first"):
        report(ReportConfig(run="first,second", runs=str(run.path.parent)))


def test_the_file_goes_where_it_is_wanted_whole_or_not_at_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run.path.parent / "pages" / "x.html"
    told_of = ReportConfig(run="first", runs=str(run.path.parent), out=str(out))
    report(told_of)
    assert not run.report_file.exists()
    before = out.read_text()
    with pytest.raises(UserError, match="is a folder: give the name of a file with --out"):
        report(replace(told_of, out=str(out.parent)))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("agl_core.files.fsync_file", full)
    with pytest.raises(OSError, match="No space"):
        report(told_of)
    assert out.read_text() == before
    assert [path.name for path in out.parent.iterdir()] == ["x.html"]


def test_several_runs_have_one_file_named_after_them(run: Run) -> None:
    config = replace(run.config(), run="second", seed=7)
    create(run_of(config), config)
    report(ReportConfig(run="first,second,first", runs=str(run.path.parent)))
    page = (run.path.parent / "report-first-second.html").read_text()
    assert "2 runs compared" in page
    assert page.count('class="run"') == 2
    with pytest.raises(UserError, match="--predictions and --truth are of one run"):
        report(ReportConfig(run="first,second", runs=str(run.path.parent), truth="x"))


def test_settings_are_compared_with_the_recipe_and_one_that_is_gone_with_the_defaults(run: Run) -> None:
    config = replace(run.config(), recipe="demo", seed=77, stages=dict(run.config().stages))
    found = {setting.key: setting for setting in read_settings(config)}
    assert found["seed"].differs
    assert found["seed"].identity
    assert not found["data"].differs, "every run has its own"
    assert not found["stages.a.crop"].differs, "the recipe has no such stage"
    gone = {setting.key: setting for setting in read_settings(replace(config, recipe="/gone/x.yaml"))}
    assert gone["seed"].usual == str(TrainConfig().seed)


def test_the_tiles_are_those_that_cost_most_and_least(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "predicted"
    truth = data / "test_truth"
    truth.mkdir(parents=True)
    out.mkdir()
    for number, image in enumerate("abcde"):
        agl = np.full((40, 40), 100, np.uint16)
        agl[:20] = 3000
        write_agl(truth / f"X_{image}_AGL.tif", agl, "cm")
        write_agl(out / f"X_{image}_AGL.tif", agl + 100 * number, "cm")
        for folder in (truth, out):
            write_vflow(folder / f"X_{image}_VFLOW.json", Pose(1.0, 1.0), "cm")
    (data / "metadata.csv").write_text("id,city,gsd\n" + "".join(f"X_{image},X,0.5\n" for image in "abcde"))
    config = TrainConfig(run="r", runs=str(tmp_path / "runs"), data=str(data), stages={"a": StageConfig()})
    create(run_of(config), config)
    found = gallery(run_of(config), 2, str(out))
    assert [tile.id for tile in found.worst] == ["X_e", "X_d"]
    assert [tile.id for tile in found.best] == ["X_a", "X_b"]
    assert found.worst[0].rgb is None
    out.rename(run_of(config).predictions)
    lost = {f"X_{image}": {"lost": float(number == 2)} for number, image in enumerate("abcde")}
    write_json(run_of(config).score_file, {"images": lost})
    assert [tile.id for tile in gallery(run_of(config), 1).worst] == ["X_c"], "as score.json says"
    page = told(run_of(config), tiles=1)
    assert "X_c" in page
    assert "data:image/webp;base64," in run_of(config).report_file.read_text()
    assert gallery(run_of(config), 0) == Gallery()
    plain = "import sys; from jobs.gallery import _size; from pathlib import Path; print(_size(Path(sys.argv[1])))"
    some = str(run_of(config).predictions / "X_a_AGL.tif")
    done = subprocess.run([sys.executable, "-c", plain, some], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(40, 40)\n", ""), "tiles need no georeference"
    (run_of(config).predictions / "X_c_VFLOW.json").write_bytes(b"torn")
    assert "X_c cannot be shown" in gallery(run_of(config), 1).note
    with pytest.raises(UserError, match="is not a folder"):
        gallery(run_of(config), 1, str(tmp_path / "none"))


def test_a_run_that_has_not_predicted_shows_the_tiles_of_training(run: Run) -> None:
    heights = np.zeros((8, 8), np.uint16)
    tile = Tile("t", "X", None, heights, heights, None, Pose(1, 1))
    write_tiles(run.path / "tiles" / "a", [tile, tile])
    found = gallery(run, 4)
    assert [one.id for one in found.fixed] == ["t", "t"]
    assert "of a" in found.note


def test_the_digest_stands_for_what_makes_a_run_another_one(run: Run) -> None:
    config = run.config()
    own = config_digest(config)
    assert config_digest(replace(config, data="/elsewhere", workers=7, until="train")) == own
    assert config_digest(replace(config, seed=1)) != own
    assert config_digest(replace(config, stages=dict(reversed(config.stages.items())))) != own


def test_one_damaged_start_costs_only_itself(run: Run) -> None:
    whole = told(run)
    good = run.events.read_text()
    head = {"time": 5.0, "kind": "start", "stage": "a", "steps": 20}
    for damage in ({"generation": "x", "step": 0}, {}, {"step": "x"}, {"step": 0, "time": 10**400}):
        run.events.write_text(good + json.dumps({**head, **damage}) + "\n")
        assert "stage a (1 of 2), epoch 1 of 4, step 5 of 20" in told(run)
    assert "stage a (1 of 2), epoch 1 of 4, step 5 of 20" in whole


def test_events_that_defeat_the_account_are_told_of_in_a_report_of_the_rest(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("of nothing")

    monkeypatch.setattr("agl_core.reporting.live.tracker.account", fail)
    page = told(run)
    assert "events.jsonl could not be read in all respects (ZeroDivisionError: of nothing)" in page
    assert "step 5 of 20" in page


SECRETS = ("sk-12345678", "hf_ABCDEFGH", "T0P/SECRET", "hunter22")


def with_secrets(run: Run, hook: str = SECRETS[2]) -> None:
    config = replace(
        run.config(), notify=replace(run.config().notify, command=["curl", "-d", "@-", f"https://x/{hook}"])
    )
    run.config_file.write_text(to_yaml(config))
    run.cluster_file.write_text(
        to_yaml(
            replace(
                load_cluster("slurm"),
                environment={"WANDB_API_KEY": SECRETS[0], "HF_TOKEN": SECRETS[1]},
                setup=["module load cuda", f"export MY_TOKEN={SECRETS[3]}"],
                wrapper=["apptainer", "exec", "--env", f"KEY={SECRETS[3]}"],
                sbatch={"comment": "of the group"},
            )
        )
    )


def test_a_page_that_may_be_passed_on_holds_no_secret(run: Run) -> None:
    with_secrets(run)
    found = {setting.key: setting.value for setting in read_settings(run.config())}
    assert found["notify.command"] == "curl and 3 more words"
    facts = cluster_facts(run)
    assert facts["environment"] == "WANDB_API_KEY, HF_TOKEN"
    assert facts["setup"] == "2 lines"
    assert facts["wrapper"] == "apptainer and 3 more words"
    assert facts["sbatch.comment"] == "of the group"
    told(run)
    page = run.report_file.read_text()
    assert not [secret for secret in SECRETS if secret in page]
    assert "curl and 3 more words" in page


def test_runs_that_differ_in_a_secret_are_compared_without_it(run: Run) -> None:
    config = replace(run.config(), run="second")
    create(run_of(config), config)
    with_secrets(run)
    with_secrets(run_of(config), "OTHER-ONE")
    report(ReportConfig(run="first,second", runs=str(run.path.parent)))
    page = (run.path.parent / "report-first-second.html").read_text()
    assert page.count("curl and 3 more words (differs)") == 2
    assert not [secret for secret in (*SECRETS, "OTHER-ONE") if secret in page]
    with_secrets(run_of(config))
    report(ReportConfig(run="first,second", runs=str(run.path.parent)))
    assert "(differs)" not in (run.path.parent / "report-first-second.html").read_text()
