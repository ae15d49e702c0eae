"""Whether a copy fits, as the system's own files tell it."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from agl_core.data.stagein import room
from agl_core.data.stagein.room import free_space, in_memory, memory_rooms, shortage

GIB = 1 << 30
MEMORY = "MemTotal:       104857600 kB\nMemFree:         1048576 kB\nMemAvailable:   83886080 kB\n"  # 100 and 80 GiB


def node(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def mounted(folder: Path, kind: str) -> dict[str, str]:
    device = os.stat(folder).st_dev
    lines = [
        "1 0 0:99999 / / rw - ext4 /dev/sda rw",
        f"2 1 {os.major(device)}:{os.minor(device)} / /x\\040y rw shared:1 - {kind} x rw",
    ]
    return {"proc/self/mountinfo": "\n".join(lines)}


def disk(patch: pytest.MonkeyPatch, size: int, free: int) -> None:
    patch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_frsize=4096, f_blocks=size // 4096, f_bavail=free // 4096))


def test_a_twentieth_of_a_disk_but_at_least_a_gibibyte_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = node(tmp_path / "system", mounted(tmp_path, "ext4"))
    for size, free, room_left in ((1000 * GIB, 100 * GIB, 50 * GIB), (4 * GIB, 3 * GIB, 2 * GIB)):
        disk(monkeypatch, size, free)
        assert free_space(tmp_path) == room_left
        assert shortage(tmp_path, room_left, system) is None
        assert shortage(tmp_path, room_left + 1, system) is not None
    disk(monkeypatch, 4 * GIB, 3 * GIB)
    assert shortage(tmp_path, 5_000_000_000, system) == (
        f"5.0 GB more are needed, but only 2.1 GB on the file system of {tmp_path} may be taken (a part must stay free)"
    )
    disk(monkeypatch, GIB // 4, GIB // 4)
    assert (shortage(tmp_path, 5_000_000, system) or "").startswith("5 MB more are needed, but only 0 MB on")


@pytest.mark.parametrize("kind", ["tmpfs", "ramfs"])
def test_what_lies_in_memory_must_leave_the_node_a_share_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    disk(monkeypatch, 0 if kind == "ramfs" else 1000 * GIB, 0 if kind == "ramfs" else 1000 * GIB)
    system = node(tmp_path / "system", {**mounted(tmp_path, kind), "proc/meminfo": MEMORY})
    assert in_memory(tmp_path, system)
    assert shortage(tmp_path, 50 * GIB, system) is None
    refused = shortage(tmp_path, 50 * GIB + 1, system)
    assert refused is not None
    assert "of this node's memory" in refused


def test_on_a_disk_memory_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, 1000 * GIB, 900 * GIB)
    system = node(tmp_path / "system", {**mounted(tmp_path, "xfs"), "proc/meminfo": MEMORY})
    assert shortage(tmp_path, 800 * GIB, system) is None


CACHE = f"anon 5\ninactive_file {2 * GIB}\nactive_file 7\n"
VERSION_2 = {
    "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
    "sys/fs/cgroup/slurm/job_7/memory.max": f"{20 * GIB}\n",
    "sys/fs/cgroup/slurm/job_7/memory.current": f"{8 * GIB}\n",
    "sys/fs/cgroup/slurm/job_7/memory.stat": CACHE,
    "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
    "sys/fs/cgroup/slurm/job_7/step_0/memory.current": f"{8 * GIB}\n",
}
VERSION_1 = {
    "proc/self/cgroup": "4:cpu,memory:/slurm/job_7\n0::/\n",
    "sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes": f"{20 * GIB}\n",
    "sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory/slurm/job_7/memory.stat": CACHE.replace("inactive", "total_inactive"),
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{8 * GIB}\n",
}
CONTAINER = {
    "proc/self/cgroup": "0::/not/seen/from/here\n",
    "sys/fs/cgroup/memory.max": f"{20 * GIB}\n",
    "sys/fs/cgroup/memory.current": f"{8 * GIB}\n",
    "sys/fs/cgroup/memory.stat": CACHE,
}


@pytest.mark.parametrize("files", [VERSION_2, VERSION_1, CONTAINER], ids=["version 2", "version 1", "container"])
def test_the_limit_of_the_job_counts_wherever_above_the_process_it_is_set(
    tmp_path: Path, files: dict[str, str]
) -> None:
    # 20 GiB, of which 6 are in use beside what may be dropped and 6 are left to the training.
    assert memory_rooms(node(tmp_path, files)) == [(8 * GIB, "of this job's memory")]
    both = memory_rooms(node(tmp_path, {"proc/meminfo": MEMORY}))
    assert min(both) == (8 * GIB, "of this job's memory")
    assert len(both) == 2


def test_a_system_that_tells_nothing_has_no_limits(tmp_path: Path) -> None:
    assert memory_rooms(tmp_path) == []
    assert not in_memory(tmp_path, tmp_path)


def test_the_files_of_this_machine_can_be_read(tmp_path: Path) -> None:
    assert free_space(tmp_path) < room.UNLIMITED
    assert all(name for _, name in memory_rooms())
    in_memory(tmp_path)
