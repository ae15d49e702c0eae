"""What Slurm says about a site."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jobs.doctor.wish import Wish
from jobs.scontrol import parse_duration

UNUSABLE = (
    *("DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "INVAL", "NOT_RESPONDING", "NO_RESPOND", "UNKNOWN"),
    *("MAINT", "MAINTENANCE", "FUTURE", "REBOOT"),
)
"""States of a node on which no job starts now."""
QOS_COLUMNS = (
    *("Name", "MaxWall", "MaxJobsPU", "MaxSubmitPU", "MaxTRESPU", "MaxTRES", "PreemptMode", "GraceTime", "Flags"),
)
ASSOC_COLUMNS = ("Account", "Partition", "QOS", "MaxWall", "MaxJobs", "MaxSubmit", "DefaultQOS", "Cluster")
UNSURE = re.compile(
    r"timed out|temporarily|unable to contact|connection (refused|reset)|communications? (connection )?fail"
    r"|zero bytes|standby mode|try again|sleeping and retrying",
    re.IGNORECASE,
)
"""What sbatch says where it is not the job that is refused: the controller is busy or away."""


@dataclass(frozen=True)
class Partition:
    """A partition, with all that scontrol says of it; lists are empty where all are allowed."""

    name: str
    state: str = "UP"
    default: bool = False
    max_time: float | None = None
    """Longest time limit, seconds; None: none."""
    max_nodes: int | None = None
    preempt_mode: str = "OFF"
    grace_time: float = 0.0
    allow_accounts: tuple[str, ...] = ()
    deny_accounts: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] = ()
    deny_qos: tuple[str, ...] = ()
    root_only: bool = False
    reservation_only: bool = False
    qos: str = ""
    """Whose limits count for all jobs in it."""


@dataclass(frozen=True)
class Node:
    """A node. gpus: their number by type, which is empty where the site names none; states without signs."""

    name: str
    partitions: tuple[str, ...] = ()
    cpus: int = 0
    memory_mb: int = 0
    gpus: Mapping[str, int] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    states: tuple[str, ...] = ("IDLE",)
    address: str = ""
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether jobs start on it."""
        return not any(state in UNUSABLE for state in self.states)


@dataclass(frozen=True)
class Qos:
    """A quality of service: times in seconds, None for no limit. gpus_of_user, gpus_of_job: the most at once by type of
    GPU, with "" for those of all types together; flags: in lower case."""

    name: str
    max_wall: float | None = None
    max_jobs: int | None = None
    max_submit: int | None = None
    gpus_of_user: Mapping[str, int] = field(default_factory=dict)
    gpus_of_job: Mapping[str, int] = field(default_factory=dict)
    preempt_mode: str = ""
    grace_time: float = 0.0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Association:
    """What the user may charge on a cluster: an account, perhaps in one partition only, with these qualities of
    service."""

    account: str
    partition: str = ""
    qos: tuple[str, ...] = ()
    max_wall: float | None = None
    max_jobs: int | None = None
    max_submit: int | None = None
    default_qos: str = ""
    cluster: str = ""


@dataclass(frozen=True)
class Trial:
    """What `sbatch --test-only` says about the job."""

    accepted: bool
    text: str = ""

    @property
    def unsure(self) -> bool:
        """Whether it was refused for a reason that is not the job's and may be gone the next time."""
        return not self.accepted and UNSURE.search(self.text) is not None


@dataclass(frozen=True)
class Site:
    """A site. answers: whether slurmctld does; config: of `scontrol show config`; qos and associations are None where
    Slurm keeps no accounts; clock: its time minus this machine's, seconds; test: None if it could not be asked."""

    answers: bool = False
    version: str = ""
    config: Mapping[str, str] = field(default_factory=dict)
    partitions: Mapping[str, Partition] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    qos: Mapping[str, Qos] | None = None
    associations: tuple[Association, ...] | None = None
    clock: float | None = None
    test: Trial | None = None

    def number(self, name: str, default: float) -> float:
        """A number of the configuration, such as 'KillWait = 30 sec'."""
        found = re.match(r"\d+(\.\d+)?", self.config.get(name, ""))
        return float(found[0]) if found else default

    def enforces(self, *what: str) -> bool:
        """Whether the controller enforces any of this (associations, limits, qos, safe) on jobs; a database that only
        keeps books says nothing about what may run."""
        enforced = {word.strip().lower() for word in self.config.get("AccountingStorageEnforce", "").split(",")}
        return bool(enforced & {*what, "all"})

    @property
    def enforces_accounts(self) -> bool:
        """Whether a job needs an account that its user may charge."""
        return self.enforces("associations", "limits", "qos", "safe")

    @property
    def enforces_limits(self) -> bool:
        """Whether the limits of accounts and of qualities of service count."""
        return self.enforces("limits", "safe")

    @property
    def plugins(self) -> bool:
        """Whether the site's own code may change what a job asks for when it is submitted."""
        return self.config.get("JobSubmitPlugins", "").lower() not in ("", "(null)", "none")

    @property
    def taken(self) -> bool:
        """Whether sbatch takes the very job, or the site's own code may see to that: what its tables say against the
        job is no reason to refuse it then."""
        test = self.test
        return test.accepted if test is not None and not test.unsure else self.plugins

    def partition(self, wish: Wish) -> Partition | None:
        """That of the job; None if there is no such one."""
        if wish.partition:
            return self.partitions.get(wish.partition)
        return next((each for each in self.partitions.values() if each.default), None)

    def nodes_of(self, partition: str) -> list[Node]:
        """The nodes of a partition."""
        return [node for node in self.nodes if partition in node.partitions]


def parse_config(text: str) -> dict[str, str]:
    """What `scontrol show config` prints."""
    pairs = (line.split("=", 1) for line in text.splitlines() if " = " in line or re.match(r"\w+\s*=", line))
    return {name.strip(): value.strip() for name, value in pairs}


def parse_partition(line: str) -> Partition | None:
    """A line of `scontrol show partition -o`."""
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    if "PartitionName" not in fields:
        return None
    return Partition(
        fields["PartitionName"],
        fields.get("State", "UP").upper(),
        fields.get("Default") == "YES",
        parse_duration(fields.get("MaxTime", "")),
        _number(fields.get("MaxNodes", "")),
        fields.get("PreemptMode", "OFF").upper(),
        float(_number(fields.get("GraceTime", "")) or 0),
        _list(fields.get("AllowAccounts", "")),
        _list(fields.get("DenyAccounts", "")),
        _list(fields.get("AllowGroups", "")),
        _list(fields.get("AllowQos", "")),
        _list(fields.get("DenyQos", "")),
        fields.get("RootOnly") == "YES",
        fields.get("ReqResv") == "YES",
        "" if fields.get("QoS", "N/A") == "N/A" else fields["QoS"],
    )


def parse_node(line: str) -> Node | None:
    """A line of `scontrol show node -o`."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", line):
        fields.setdefault(name, value)  # what comes last is a reason, which may hold anything
    if "NodeName" not in fields:
        return None
    gpus: dict[str, int] = {}
    for type_, count in re.findall(r"(?:^|,)gpu(?::([^:,(]*[^:,(\d][^:,(]*))?:(\d+)", fields.get("Gres", "")):
        gpus[type_.lower()] = gpus.get(type_.lower(), 0) + int(count)
    reason = re.search(r"\bReason=(.*)$", line)
    return Node(
        fields["NodeName"],
        _list(fields.get("Partitions", "")),
        _number(fields.get("CPUEfctv", "")) or _number(fields.get("CPUTot", "")) or 0,
        _number(fields.get("RealMemory", "")) or 0,
        gpus,
        _list(fields.get("AvailableFeatures", "")),
        tuple(re.sub(r"[^A-Z_]", "", state) for state in fields.get("State", "").upper().split("+")),
        fields.get("NodeAddr", ""),
        reason[1].strip() if reason else "",
    )


def parse_qos(text: str) -> dict[str, Qos]:
    """What `sacctmgr show qos` prints with `QOS_COLUMNS`, by name in lower case."""
    found = {}
    for cells in _rows(text, len(QOS_COLUMNS)):
        name, wall, jobs, submit, per_user, per_job, mode, grace, flags = cells
        found[name.lower()] = Qos(
            name, parse_duration(wall), _number(jobs), _number(submit), _gpus(per_user), _gpus(per_job), mode.upper(),
            parse_duration(grace) or 0.0, _list(flags.lower()),
        )  # fmt: skip
    return found


def _gpus(tres: str) -> dict[str, int]:
    """The GPUs of a list of resources such as cpu=40,gres/gpu=8,gres/gpu:v100=4, by type."""
    found = re.findall(r"(?:^|,)gres/gpu(?::([^=,]+))?=(\d+)", tres.lower())
    return {type_: int(count) for type_, count in found}


def parse_associations(text: str) -> tuple[Association, ...]:
    """What `sacctmgr show assoc` prints with `ASSOC_COLUMNS`."""
    return tuple(
        Association(
            account, partition, _list(qos), parse_duration(wall), _number(jobs), _number(submit), default, cluster
        )
        for account, partition, qos, wall, jobs, submit, default, cluster in _rows(text, len(ASSOC_COLUMNS))
    )


def parse_lines(text: str, parse: Any) -> list[Any]:
    """What the lines of a text describe."""
    return [each for line in text.splitlines() if (each := parse(line)) is not None]


def _rows(text: str, columns: int) -> list[list[str]]:
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()]
    return [cells for cells in rows if len(cells) == columns and cells[0]]


def _list(text: str) -> tuple[str, ...]:
    return () if text.upper() in ("", "ALL", "NONE", "(NULL)", "N/A") else tuple(text.split(","))


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
