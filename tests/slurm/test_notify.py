"""A run on a real Slurm whose owner is told: of its preemption and of its good end, once each, by its own command."""

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from agl_core.files import read_json
from jobs.runs import Run
from tests.slurm.minislurm import ROOT, MiniSlurm
from tests.slurm.strikes import Blow, preempt
from tests.slurm.tiny import CLUSTER, Workplace, write_yaml
from tests.slurm.watch import Watch, freeze

PATIENCE = 120.0
TELL = """
import json, os, sys, helper
line = json.dumps({**json.load(sys.stdin), "folder": os.getcwd()}) + "\\n"
os.write(os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT), line.encode())
"""


def test_a_preemption_and_the_end_are_told_once_each(tmp_path: Path) -> None:
    workplace = Workplace(tmp_path)
    workplace.build()
    write_yaml(tmp_path / "site.yaml", CLUSTER)
    (tmp_path / "tell.py").write_text(TELL)
    (tmp_path / "helper.py").touch()
    run, heard = Run(workplace.runs / "first"), tmp_path / "heard"
    words = [
        "run=first", "cluster=site.yaml", "recipe=one.yaml", "until=train", "notify.mail=me@site",
        f"runs={workplace.runs}", f"store={workplace.store}", "notify.events=[interruption, stage, end]",
        f"notify.command=[{sys.executable}, tell.py, {heard}]",
    ]  # fmt: skip
    with MiniSlurm(tmp_path / "slurm") as slurm, ExitStack() as after:
        done = subprocess.run(
            [sys.executable, str(ROOT / "launch.py"), *words], cwd=tmp_path, text=True, capture_output=True,
            env={**slurm.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        id = str(read_json(run.submitted)["train"])
        assert slurm.job(id)["MailUser"] == "me@site"
        assert set(slurm.job(id)["MailType"].split(",")) == {"END", "REQUEUE"}
        watch = Watch(slurm, run, "train", id)
        slurm.until(lambda: watch.step >= 5, lambda: f"it does not train: {watch.facts()}", PATIENCE)
        freeze(family := watch.family())
        preempt(Blow(watch, ROOT, after, family))
        slurm.until(lambda: watch.facts()["Restarts"] == "1", lambda: f"it does not come back: {watch.facts()}")
        slurm.wait(id, ["COMPLETED"], 1, PATIENCE)
    told = [json.loads(line) for line in heard.read_text().splitlines()]
    assert [(each["event"], each["why"], each["restarts"]) for each in told] == [
        ("interruption", "preempted", 0), ("stage", "", 1), ("end", "", 1),
    ]  # fmt: skip
    assert "train was interrupted at step " in told[0]["text"]
    assert told[0]["deed"] == "requeue"
    assert {each["folder"] for each in told} == {str(run.path)}
    assert (run.jobs / "notify.log").read_text().count(": told (") == 3
