"""The verb, and its quick form before a submission, at a site of shell scripts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agl_core.config import DoctorConfig, TrainConfig
from agl_core.errors import UserError
from agl_core.model.encodercache import SUFFIX
from jobs import train as train_module
from jobs.cluster import ClusterConfig, load_cluster
from jobs.doctor import facts
from jobs.doctor.doctor import before_submission, before_training, doctor
from jobs.doctor.findings import FAILURE, GOOD, WARNING, Finding, tell
from jobs.doctor.software import WEIGHTS_SUFFIX, Torch
from jobs.doctor.wish import Wish, wish_of
from jobs.failure import JobError
from jobs.pipeline import PREPARE, REPORT, STAGE, JobSpec
from tests.jobs.doctor import fake_site
from tests.jobs.doctor.world import tables

KEYS = {"partition": "gpu", "account": "lab", "qos": "normal", "nodes": "2", "cpu_partition": "cpu"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The healthy site; this machine's torch is one for GPUs, and its disk one that nodes see."""
    monkeypatch.setattr("jobs.doctor.software.quick_torch", lambda: Torch("2.9.0+cu126", "12.6"))
    whole = Torch("2.9.0+cu126", "12.6", ("sm_70",), parameters={"efficientnet-b7": 1000})
    monkeypatch.setattr("jobs.doctor.software.whole_torch", lambda *_: whole)
    monkeypatch.setattr("jobs.doctor.place._mounts", lambda: "server:/ / nfs4 rw 0 0\n")
    monkeypatch.delenv("SBATCH_RESERVATION", raising=False)
    return fake_site.install(tmp_path / "site", monkeypatch)


def config(tmp_path: Path, **values: object) -> DoctorConfig:
    data = tmp_path / "data"
    data.mkdir(exist_ok=True)
    return replace(DoctorConfig(quick=True, data=str(data), runs=str(tmp_path / "runs")), **values)  # type: ignore[arg-type]


def wish(tmp_path: Path) -> Wish:
    asked = wish_of(config(tmp_path), KEYS)
    return replace(asked, configs=tuple(replace(each, encoder_weights="none") for each in asked.configs))


def lines(text: str) -> list[tuple[str, str]]:
    return [(words[1], words[2]) for line in text.splitlines() if len(words := line.split()) > 2 and words[0] in "+!x"]


def test_the_quick_form_is_silent_on_a_healthy_site_and_writes_nothing(site: Path, tmp_path: Path, capsys) -> None:
    asked = wish(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    before_submission(asked)
    assert capsys.readouterr() == ("", "")
    new = [path for path in sorted(tmp_path.rglob("*")) if path not in before]
    assert new == [site / "asked", site / "script"]


def test_sbatch_is_asked_with_all_options_of_the_real_job_and_only_asked(site: Path, tmp_path: Path) -> None:
    before_submission(wish(tmp_path))
    assert [words for words in fake_site.asked(site) if words.startswith("sbatch")] == ["sbatch --test-only"]
    script = (site / "script").read_text()
    for line in ("--nodes=2", "--gpus-per-node=4", "--partition=gpu", "--time=1440", "--signal=USR2@180", "--requeue"):
        assert f"#SBATCH {line}" in script


def test_what_fails_is_refused_in_a_sentence_with_the_remedy_and_the_way_past(site: Path, tmp_path: Path) -> None:
    fake_site.plant(site, "partitions", "2-00:00:00", "12:00:00")
    (site / "refusal").write_text("allocation failure: Requested time limit is invalid\n")
    with pytest.raises(UserError) as refusal:
        before_submission(wish(tmp_path))
    assert str(refusal.value) == (
        "time limit: 24 h is above that of partition gpu, 12 h; set time_hours to 12: a job that reaches it comes back "
        "and goes on (and 1 more: see the verb doctor); or submit all the same with --doctor none"
    )


def test_what_sbatch_takes_is_told_and_submitted(site: Path, tmp_path: Path, capsys) -> None:
    fake_site.plant(site, "partitions", "2-00:00:00", "12:00:00")
    before_submission(wish(tmp_path))
    assert lines(capsys.readouterr().err) == [(WARNING, "time")]


def test_hidden_partitions_are_looked_for_too(site: Path, tmp_path: Path) -> None:
    before_submission(wish(tmp_path))
    shown = [words for words in fake_site.asked(site) if "show partition" in words or "show node" in words]
    assert len(shown) == 2
    assert all("--all" in words for words in shown)


def test_what_may_bite_is_told_and_submitted(site: Path, tmp_path: Path, capsys) -> None:
    fake_site.plant(site, "partitions", "PreemptMode=REQUEUE", "PreemptMode=GANG,SUSPEND")
    before_submission(wish(tmp_path))
    told = capsys.readouterr().err
    assert lines(told) == [(WARNING, "preemption")]


def test_a_site_that_hangs_is_a_warning(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    (site / "hanging").touch()
    monkeypatch.setattr(facts, "SLURM", {True: 0.4})
    monkeypatch.setattr(facts, "QUICK", 1.0)
    before_submission(wish(tmp_path))
    assert lines(capsys.readouterr().err)[0] == (WARNING, "slurm")
    assert not [words for words in fake_site.asked(site) if words.startswith("sbatch")]


def test_where_slurm_does_not_answer_sbatch_has_the_last_word(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr("jobs.doctor.software.quick_torch", lambda: Torch("2.13.0+cpu"))
    with pytest.raises(UserError, match=r"torch: 2\.13\.0"):
        before_submission(wish(tmp_path))
    (site / "config").unlink()
    before_submission(wish(tmp_path))
    assert (FAILURE, "torch") in lines(capsys.readouterr().err)


@pytest.mark.parametrize(("cluster", "doctor"), [("slurm", "none"), ("local", "quick"), ("debug", "quick")])
def test_nothing_is_checked_where_nothing_is_submitted_or_nobody_wants_it(
    cluster: str, doctor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jobs.doctor.doctor.before_submission", lambda wish: pytest.fail("it was checked"))
    before_training([TrainConfig(doctor=doctor)], load_cluster(cluster))


def test_training_asks_before_it_creates_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(configs: list[TrainConfig], cluster: ClusterConfig, jobs: list[JobSpec]) -> None:
        assert [job.kind for job in jobs] == [PREPARE, *[STAGE] * len(configs[0].stages), REPORT]
        raise UserError("not here")

    monkeypatch.setattr(train_module, "before_training", refuse)
    for name in ("check_place", "check_data", "check_inputs", "enter"):
        monkeypatch.setattr(train_module, name, lambda *_: None)
    stages = wish_of(DoctorConfig(recipe="demo"), {}).configs[0].stages
    asked = TrainConfig(run="r", runs=str(tmp_path / "runs"), encoder="resnet18", stages=stages)
    with pytest.raises(UserError, match="not here"):
        train_module.train(asked, load_cluster("slurm"))
    assert list(tmp_path.iterdir()) == []


def test_the_verb_prints_a_line_for_each_check_and_sums_up(site: Path, tmp_path: Path, capsys) -> None:
    fake_site.plant(site, "nodes", "State=IDLE", "State=IDLE+DRAIN")
    fake_site.plant(site, "nodes", "State=MIXED", "State=DOWN")
    with pytest.raises(JobError, match="checks failed: cpu_partition"):
        doctor(config(tmp_path, quick=False, data=tables(tmp_path / "world", 40)), {**KEYS, "cpu_partition": "x"})
    out = capsys.readouterr().out
    told = lines(out)
    assert (WARNING, "nodes") in told
    assert (FAILURE, "cpu_partition") in told
    assert (GOOD, "slurm") in told
    assert out.splitlines()[-1].endswith("1 failure")


def test_the_verb_gives_json(site: Path, tmp_path: Path, capsys) -> None:
    (site / "refusal").write_text("sbatch: error: Socket timed out on send/recv operation\n")
    with pytest.raises(JobError):
        doctor(config(tmp_path, json=True), {**KEYS, "partition": "nope"})
    found = json.loads(capsys.readouterr().out)
    assert found["failure"] == 1
    bad = [each for each in found["findings"] if each["level"] == FAILURE]
    assert bad == [{
        "level": FAILURE, "about": "partition", "text": "there is no partition 'nope' (there are cpu, gpu)",
        "remedy": "give another partition in the cluster configuration",
    }]  # fmt: skip


def test_no_probe_is_sent_where_checks_fail(site: Path, tmp_path: Path, capsys) -> None:
    (site / "refusal").write_text("allocation failure: Invalid partition name specified\n")
    with pytest.raises(JobError):
        doctor(config(tmp_path, probe=True), {**KEYS, "partition": "nope"})
    assert (WARNING, "probe") in lines(capsys.readouterr().out)
    assert fake_site.asked(site) == [words for words in fake_site.asked(site) if "parsable" not in words]


def test_a_probe_needs_a_cluster(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="probe is for clusters with Slurm"):
        doctor(config(tmp_path, cluster="local", probe=True), {})


def test_what_others_have_said_cannot_play_with_the_terminal(capsys) -> None:
    import sys

    tell([Finding(FAILURE, "sbatch", "no \x1b[2J[bold]\n way", "do \x07it")], sys.stdout)
    out = capsys.readouterr().out
    assert out.splitlines() == [
        "x failure sbatch  no [2J[bold] way", "                  do it", "0 good, 0 warnings, 1 failure",
    ]  # fmt: skip


def test_the_weights_are_looked_for_under_the_name_that_the_cache_gives_them() -> None:
    assert WEIGHTS_SUFFIX == SUFFIX


def test_a_job_that_such_a_site_would_hold_for_ever_is_refused(site: Path, tmp_path: Path) -> None:
    fake_site.plant(site, "partitions", "2-00:00:00", "12:00:00")
    with (site / "config").open("a") as file:
        file.write("EnforcePartLimits       = NO\n")
    with pytest.raises(UserError, match="above that of partition gpu"):
        before_submission(wish(tmp_path))


def test_a_data_set_that_training_would_refuse_is_a_failure(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    asked = {"cluster": "debug", "recipe": "demo", "encoder": "tu-resnet10t"}
    with pytest.raises(JobError, match="data"):
        doctor(DoctorConfig(**asked, data=tables(tmp_path / "few", 3)), {})
    assert "3 place(s) cannot fill 10 folds" in capsys.readouterr().out
    doctor(DoctorConfig(**asked, data=tables(tmp_path / "enough", 10)), {})
    assert "enough: tiles, folds and cities go together" in capsys.readouterr().out


def test_a_run_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run 'nope', and none at all in"):
        doctor(DoctorConfig(cluster="debug", run="nope", runs=str(tmp_path)), {})
