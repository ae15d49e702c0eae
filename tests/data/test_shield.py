"""Workers that outlive a warning but not their parent."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from agl_core.data.shield import WARNINGS, end_workers, shield_worker, worker_fork

ROOT = Path(__file__).parents[2]
FORK = multiprocessing.get_context("fork")


def echo(connection: Connection) -> None:
    shield_worker()
    connection.send("ready")
    while True:
        connection.send(connection.recv())


def test_a_worker_is_deaf_to_every_warning() -> None:
    here, there = FORK.Pipe()
    worker = FORK.Process(target=echo, args=(there,), daemon=True)
    worker.start()
    there.close()  # so that its death is the end of the connection
    assert here.recv() == "ready"
    assert worker.pid is not None
    for number in WARNINGS:
        os.kill(worker.pid, number)
    here.send("next batch")
    assert here.recv() == "next batch"
    end_workers([worker])
    assert worker.exitcode == -signal.SIGKILL


def sleep(connection: Connection) -> None:
    shield_worker()
    connection.send("ready")
    time.sleep(30)


def test_a_hung_worker_is_ended_by_its_parent() -> None:
    here, there = FORK.Pipe()
    worker = FORK.Process(target=sleep, args=(there,), daemon=True)
    worker.start()
    assert here.recv() == "ready"
    worker.terminate()  # what multiprocessing would do, and wait for ever
    end_workers([worker])
    assert worker.exitcode == -signal.SIGKILL
    assert multiprocessing.active_children() == []


def output(script: str, kill: bool = False) -> str:
    """What a script and all that it leaves behind print until the last of them has ended."""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    if kill:
        process.kill()
    rest = process.stdout.read()  # ends when the worker has let go of its standard output, that is, of its life
    process.wait()
    return first + rest


TRAINER = """
import multiprocessing, os, time
from agl_core.data.shield import shield_worker

def work(ready):
    shield_worker()
    ready.set()
    time.sleep(15)
    print("orphan", flush=True)

fork = multiprocessing.get_context("fork")
ready = fork.Event()
fork.Process(target=work, args=(ready,), daemon=True).start()
ready.wait()
print("ready", flush=True)
time.sleep(600)
"""


def test_a_killed_parent_leaves_no_worker_behind() -> None:
    assert output(TRAINER, kill=True) == "ready\n"


LATE = """
import os, time
from agl_core.data.shield import shield_worker

trainer = os.fork()
if trainer == 0:
    trainer = os.getpid()
    if os.fork() == 0:
        while os.getppid() == trainer:
            time.sleep(0.001)
        print("orphan before the shield", flush=True)
        shield_worker(trainer)
        print("orphan after the shield", flush=True)
    os._exit(0)
os.waitpid(trainer, 0)
"""


def test_a_worker_whose_parent_was_quicker_to_die_ends_too() -> None:
    assert output(LATE) == "orphan before the shield\n"


class Numbers(Dataset[int]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        return index


def shield(worker: int) -> None:
    shield_worker()


def test_a_loader_delivers_every_sample_while_its_workers_are_warned_from_birth() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with worker_fork():
        batches = iter(DataLoader(Numbers(), batch_size=4, num_workers=2, worker_init_fn=shield))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    seen: list[int] = []
    while len(seen) < 40:
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            for number in WARNINGS:
                os.kill(worker.pid, number)
        seen += torch.as_tensor(next(batches)).tolist()
    assert seen == list(range(40))
    del batches
    assert multiprocessing.active_children() == []


OPENCV = """
import os, sys
import cv2
import numpy as np
from agl_core.data.shield import worker_fork

picture = np.zeros((2000, 2000, 3), np.uint8)
cv2.setNumThreads(4)
cv2.GaussianBlur(picture, (9, 9), 0)  # somebody else's, with threads
with worker_fork():
    child = os.fork()
if child == 0:
    from agl_core.opencv import cv2

    cv2.GaussianBlur(picture, (9, 9), 0)
    os._exit(cv2.getNumThreads() + 40)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_worker_can_use_opencv_though_its_parent_has_used_it_with_threads() -> None:
    done = subprocess.run([sys.executable, "-c", OPENCV], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 41
