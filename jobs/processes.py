"""The processes that one command has started, found the way every Unix tells them: with `ps`."""

import os
import signal
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from agl_core.errors import UserError

LISTING = ["ps", "-ww", "-A", "-o", "pid=,ppid=,pgid=,stat=,args="]
CONTROLLER = "jobs.controller"


@dataclass(frozen=True)
class Process:
    """One living process: its id, its parent's, its process group's, and its command line."""

    pid: int
    parent: int
    group: int
    command: str


def parse_listing(text: str) -> list[Process]:
    """The processes in the output of `LISTING`, by id; those that have ended and wait for their parent are left out."""
    found = []
    for line in text.splitlines():
        pid, parent, group, state, *command = line.split(None, 4)
        if not state.startswith("Z"):
            found.append(Process(int(pid), int(parent), int(group), "".join(command)))
    return sorted(found, key=lambda process: process.pid)


def list_processes() -> list[Process]:
    """All living processes of this machine.

    Raises:
        UserError: there is no `ps`.
    """
    try:
        return parse_listing(subprocess.run(LISTING, capture_output=True, text=True, check=True).stdout)
    except FileNotFoundError:
        raise UserError("the command `ps` is not found: install it (procps), the drill finds processes by it") from None


class Family:
    """The command with process id `root`, which leads a process group of its own, and all that it has started.

    A process whose parent has died belongs to nobody's tree any more; it is known by its group, as long as the family
    has been looked at while one of the group was in the tree.
    """

    def __init__(self, root: int) -> None:
        self.root = root
        self._groups = {root}

    def members(self, processes: Iterable[Process]) -> list[Process]:
        """Those of `processes` that belong to the family, by id; remembers their groups."""
        processes = list(processes)
        found: dict[int, Process] = {}
        while True:
            new = [
                process
                for process in processes
                if process.pid not in found
                and (process.pid == self.root or process.parent in found or process.group in self._groups)
            ]
            if not new:
                return [found[pid] for pid in sorted(found)]
            found |= {process.pid: process for process in new}
            # A group is the family's own if its leader is: never one that was there before.
            self._groups |= {process.group for process in new if process.group in found}

    def ranks(self, members: Iterable[Process]) -> list[Process]:
        """The processes that train, in their order: those that a controller has started, or the command itself where
        there is none."""
        members = list(members)
        controllers = {process.pid for process in members if CONTROLLER in process.command.split()}
        started = [process for process in members if process.parent in controllers]
        return started if controllers else [process for process in members if process.pid == self.root]

    def look(self) -> list[Process]:
        """The members that live now."""
        return self.members(list_processes())

    def kill(self) -> None:
        """Kill all members at once: they are stopped first, so that none can start another or see another die."""
        stopped: set[int] = set()
        while new := [process.pid for process in self.look() if process.pid not in stopped]:
            send(new, signal.SIGSTOP)
            stopped |= set(new)
        send(stopped, signal.SIGKILL)


def send(pids: Iterable[int], number: int) -> None:
    """Send a signal to processes; one that has ended meanwhile needs none."""
    for pid in sorted(pids):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
