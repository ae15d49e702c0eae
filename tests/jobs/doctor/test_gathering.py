"""What is learnt from files, commands and events."""

import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from agl_core.config import ModelConfig
from jobs.cluster import load_cluster
from jobs.doctor import gpus, place
from jobs.doctor.asking import run, side_by_side
from jobs.doctor.measured import Measured, measure, measured_by
from jobs.doctor.place import Quota, held_bytes, look, mount_of, parse_quota, try_lock, try_writing
from jobs.doctor.site import parse_node, parse_partition
from jobs.doctor.slurm import questions
from jobs.doctor.software import Torch, quick_torch, store_facts, whole_torch
from tests.jobs.doctor.healthy import Change, wish

MOUNTS = "/dev/sda1 / ext4 rw 0 0\nserver:/h /home nfs4 rw 0 0\ntmp /home/me/my\\040own tmpfs rw 0 0\n"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/usr/bin", "ext4"), ("/home", "nfs4"), ("/home/me", "nfs4"), ("/homes", "ext4"), ("/home/me/my own/x", "tmpfs")],
)
def test_a_path_lies_on_the_innermost_file_system(path: str, kind: str) -> None:
    assert mount_of(Path(path), MOUNTS)[0] == kind


def test_a_folder_that_does_not_exist_yet_lies_where_its_parent_does(tmp_path: Path) -> None:
    found = look(tmp_path / "a" / "b", "x / nfs4 rw 0 0\n")
    assert (found.exists, found.kind) == (False, "nfs4")
    assert found.path == str(tmp_path / "a" / "b")
    assert found.free is not None


def test_writing_leaves_nothing_behind_and_sees_its_lock(tmp_path: Path) -> None:
    found = try_writing(tmp_path / "not" / "yet")
    assert (found.error, found.lock) == ("", "taken")
    assert abs(found.skew) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_says_why(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert "Not a directory" in try_writing(file).error
    assert [*tmp_path.iterdir()] == [file]


def test_a_lock_that_does_nothing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.touch()
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert try_lock(path) == "free"


def test_the_quota_of_the_file_system_counts_and_else_the_tightest_with_doubt() -> None:
    text = "Filesystem blocks quota limit grace files quota limit grace\n"
    text += "nas:/home 900 1000 2000 - 5 100 200 -\nnas:/data 900* 0 1000 6days 5 0 0 -\n"
    assert parse_quota(text, ["/home", "nas:/home"]) == Quota(1100 * 1024, 195)
    assert parse_quota(text, ["/data", "nas:/data"]) == Quota(100 * 1024, None)
    assert parse_quota(text, ["/", "/dev/sda", ""]) == Quota(100 * 1024, 195, sure=False)
    assert parse_quota("/scratch 10 0 0 - 5 0 0 -\n", ["/scratch"]) == Quota(None, None)
    assert parse_quota("quota: no such user\n", ["/"]) is None


def test_checkpoints_that_are_there_are_counted(tmp_path: Path) -> None:
    for name, size in {"a/step-1/state": 1000, "a/step-2/state": 100, "b/step-1/state": 10}.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert held_bytes([tmp_path / "a", tmp_path / "none"]) == 1100


CODE = [
    (["sm_70"], 70, True), (["sm_75", "sm_80"], 70, False), (["sm_80"], 86, True), (["sm_86"], 80, False),
    (["compute_80"], 90, True), (["sm_90a"], 90, True), (["sm_90a"], 100, False), (["sm_90"], 100, False),
    ([], 70, False),
]  # fmt: skip


@pytest.mark.parametrize(("architectures", "capability", "runs"), CODE)
def test_code_runs_on_later_gpus_of_its_kind_and_ptx_on_all_later(
    architectures: list[str], capability: int, runs: bool
) -> None:
    assert gpus.runs_on(architectures, capability) is runs


@pytest.mark.parametrize(
    ("name", "capability"),
    [("v100", 70), ("Tesla V100-SXM2-32GB", 70), ("nvidia_a100_80gb_pcie", 80), ("NVIDIA H100 80GB HBM3", 90),
     ("rtx3090", 86), ("gpu", None), ("ib", None)],
)  # fmt: skip
def test_types_of_gpu_are_known_by_their_words(name: str, capability: int | None) -> None:
    assert gpus.capability(name) == capability


def test_a_node_is_read_with_its_gpus_states_and_reason() -> None:
    node = parse_node(
        "NodeName=n1 CPUTot=8 AvailableFeatures=a,b Gres=gpu:v100:4(S:0-1),gpu:a100:2,nvme:1 RealMemory=100 "
        "State=IDLE*+DRAIN Partitions=x,y Reason=State=IDLE fan [root@2030-01-01T00:00:00]"
    )
    assert node is not None
    assert node.gpus == {"v100": 4, "a100": 2}
    assert (node.cpus, node.memory_mb, node.partitions, node.features) == (8, 100, ("x", "y"), ("a", "b"))
    assert not node.usable
    assert node.reason.startswith("State=IDLE fan")
    bare = parse_node("NodeName=n2 CPUTot=8 Gres=gpu:4 State=ALLOCATED")
    assert bare is not None
    assert bare.gpus == {"": 4}
    assert bare.usable


def test_a_partition_without_limits_has_none() -> None:
    found = parse_partition("PartitionName=p MaxTime=UNLIMITED MaxNodes=UNLIMITED AllowAccounts=ALL State=UP")
    assert found is not None
    assert (found.max_time, found.max_nodes, found.allow_accounts) == (None, None, ())
    assert parse_partition("Slurm is away") is None


def events() -> list[dict[str, Any]]:
    def event(time: float, kind: str, **values: Any) -> dict[str, Any]:
        return {"time": time, "kind": kind, "stage": "a", **values}

    return [
        event(0, "start", step=0), event(30, "startup", step=1, total=31.5), event(40, "step", step=10),
        event(50, "step", step=20), event(51, "checkpoint", step=20, stall=0.1, seconds=4.0, bytes=100),
        event(90, "validation", step=20), event(91, "step", step=21), event(101, "step", step=31),
        event(102, "checkpoint", step=31, stall=0.1, seconds=6.0, bytes=120), event(9000, "start", step=31),
        event(9100, "step", step=41), event(9101, "checkpoint", step=41, seconds="?"),
    ]  # fmt: skip


def test_times_are_those_of_steps_alone() -> None:
    assert measure("r", events()) == Measured("r", step=1.0, save=6.0, startup=31.5, bytes=120)
    assert measure("r", []) == Measured("r")


def test_the_newest_run_that_has_measured_anything_counts(tmp_path: Path) -> None:
    import json

    for age, (name, content) in enumerate({"new": [], "old": events(), "older": events()}.items()):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "events.jsonl"
        path.write_text("".join(json.dumps(event) + "\n" for event in content))
        os.utime(path, (1e9 - age, 1e9 - age))
    assert measured_by(tmp_path).run == "old"
    assert measured_by(tmp_path, "older").run == "older"
    assert measured_by(tmp_path, "new") == Measured("new")
    assert measured_by(tmp_path / "nowhere") == Measured()
    assert measured_by(tmp_path, "", ["older"]).run == "older"
    assert measured_by(tmp_path, "", ["new", "unknown"]).run == "old"


STRANGE = [
    '{"time": 1, "kind": "start", "stage": "a", "generation": "x", "step": 1}',
    '{"time": 1, "kind": "start", "stage": "a", "generation": 2}',
    '{"time": 1, "kind": "checkpoint", "stage": "a", "bytes": Infinity, "seconds": NaN}',
    '{"time": 1, "kind": "checkpoint", "stage": "a", "step": "b", "bytes": 1e400, "seconds": 1' + "0" * 400 + "}",
    '{"time": 1, "kind": "start", "stage": "a", "generation": 2, "step": [1]}',
]


@pytest.mark.parametrize("line", STRANGE)
def test_what_others_have_written_into_their_events_is_borne(line: str, tmp_path: Path) -> None:
    import json

    for age, (name, further) in enumerate({"strange": line, "whole": ""}.items()):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "events.jsonl"
        path.write_text("".join(json.dumps({**event, "generation": 1}) + "\n" for event in events()) + further + "\n")
        os.utime(path, (1e9 - age, 1e9 - age))
    found = measured_by(tmp_path)
    assert (found.step, found.save, found.bytes) == (1.0, 6.0, 120)


def test_a_reader_that_fails_on_a_run_goes_to_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = {"a": TypeError("no"), "b": KeyError("step"), "c": OverflowError("no"), "d": AttributeError("no")}

    def read(path: Path) -> list[dict[str, Any]]:
        if path.parent.name in errors:
            raise errors[path.parent.name]
        return events()

    monkeypatch.setattr("jobs.doctor.measured.read_events", read)
    assert measured_by(tmp_path, "", [*errors, "e"]).run == "e"


def test_a_user_without_a_name_is_no_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    asked = questions(wish(Change()), 1.0)
    assert "associations" not in asked
    assert {"config", "partitions", "nodes", "qos"} <= set(asked)


def test_what_hangs_is_left_behind_and_what_is_refused_is_no_answer() -> None:
    never = threading.Event()

    def refuse() -> None:
        raise PermissionError("no")

    answers = side_by_side({"hangs": never.wait, "answers": lambda: 5, "refuses": refuse}, 0.3)
    never.set()
    assert answers == {"answers": 5}
    with pytest.raises(ZeroDivisionError):
        side_by_side({"defect": lambda: 1 / 0}, 5.0)


def test_a_command_that_hangs_or_does_not_exist_has_no_answer() -> None:
    assert run(["sleep", "60"], 0.2) is None
    assert run(["no-such-command"]) is None
    answer = run(["cat"], stdin="x")
    assert answer is not None
    assert answer.out == "x"


def test_torch_says_the_same_of_itself_loaded_and_not() -> None:
    quick = quick_torch()
    whole = whole_torch(load_cluster("debug"), ["resnet18", "resnet17"], None)
    assert quick is not None
    assert whole is not None
    assert (quick.version, quick.cuda) == (whole.version, whole.cuda)
    assert set(whole.parameters) == {"resnet18"}
    assert 11_000_000 < whole.parameters["resnet18"] < 25_000_000
    assert set(whole.unknown) == {"resnet17"}
    assert isinstance(whole, Torch)


def test_parameters_are_those_of_the_network() -> None:
    from agl_core.model.network import GeoposeNet
    from agl_core.training.selfcheck import parameters

    network = GeoposeNet("tu-test_efficientnet", ["a"], ModelConfig())
    assert parameters("tu-test_efficientnet", ModelConfig()) == sum(
        each.numel() for each in network.state_dict().values()
    )


def test_a_store_is_known_by_what_it_says(tiny_store: Path, tmp_path: Path) -> None:
    found = store_facts(tiny_store, None, True)
    assert (found.exists, found.sealed, found.tiles) == (True, True, 13)
    assert found.bytes > 0
    assert not store_facts(tmp_path / "none", None, True).exists
    (tmp_path / "file").touch()
    assert store_facts(tmp_path / "file", None, False).problem


def test_this_machine_s_own_mounts_are_read() -> None:
    assert place.look(Path("/")).kind
