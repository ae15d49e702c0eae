"""A site on which all is well, as its commands describe it, and what is to be run there."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from agl_core.config import DoctorConfig
from jobs.cluster import ClusterConfig, load_cluster
from jobs.doctor.asking import Answer
from jobs.doctor.facts import PYTHON, RUNS, STORE, WEIGHTS, Facts
from jobs.doctor.measured import Measured
from jobs.doctor.place import Folder, Quota, Written
from jobs.doctor.site import Trial, parse_config
from jobs.doctor.slurm import site_of
from jobs.doctor.software import StoreFacts, Torch
from jobs.doctor.wish import Wish, wish_of

_NODE = (
    "NodeName={name} Arch=x86_64 CoresPerSocket=20 CPUAlloc=0 CPUEfctv=40 CPUTot=40 AvailableFeatures=v100,ib "
    "ActiveFeatures=v100,ib Gres=gpu:v100:4(S:0-1) NodeAddr=10.0.0.1 NodeHostName={name} RealMemory=190000 "
    "State={state} Partitions=gpu CfgTRES=cpu=40,mem=190000M,billing=40,gres/gpu=4"
)
TEXTS: Mapping[str, str] = {
    "version": "slurm 22.05.8\n",
    "config": "Configuration data as of 2030-01-01T00:00:00\n"
    "AccountingStorageEnforce = associations,limits,qos\nClusterName             = Mini\n"
    "AuthInfo                = (null)\nGresTypes               = gpu\nJobRequeue              = 1\n"
    "KillWait                = 30 sec\nPreemptMode             = REQUEUE\n"
    "PreemptType             = preempt/partition_prio\n"
    "JobSubmitPlugins        = (null)\nRequeueExitHold         = (null)\nSlurmctldParameters     = (null)\n",
    "partitions": "PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES QoS=N/A GraceTime=60 "
    "MaxNodes=UNLIMITED MaxTime=2-00:00:00 RootOnly=NO ReqResv=NO PreemptMode=REQUEUE State=UP\n"
    "PartitionName=cpu AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=NO QoS=N/A GraceTime=0 "
    "MaxNodes=UNLIMITED MaxTime=UNLIMITED RootOnly=NO ReqResv=NO PreemptMode=OFF State=UP\n",
    "nodes": "\n".join(
        _NODE.format(name=f"g{number}", state=state) for number, state in enumerate(["IDLE", "MIXED", "ALLOCATED"])
    ),
    "qos": "normal|2-00:00:00|10|20|gres/gpu=16||cluster|00:00:00|\nlow||||||||\n",
    "associations": "lab||low,normal||||normal|mini\n",
}
CLUSTER = {"nodes": "2", "account": "lab", "qos": "normal", "partition": "gpu", "cpu_partition": "cpu"}
NFS = Folder("/home/me/place", True, "nfs4", "/home", 5_000_000_000_000, 9_000_000_000_000, 1_000_000)
LUSTRE = replace(NFS, path="/scratch/me", kind="lustre", mount="/scratch")


@dataclass(frozen=True)
class Change:
    """What is not as on the healthy site. texts: of commands, as (which, what is there, what is instead); the others:
    values of keys of the cluster configuration, of fields of the facts and of the configuration, of the environment;
    run: whose times were asked for."""

    texts: tuple[tuple[str, str, str], ...] = ()
    cluster: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    run: str = ""
    clock: float = 0.0
    trial: Trial | None = Trial(True)


@cache
def _asked(keys: tuple[tuple[str, str], ...]) -> Wish:
    return wish_of(
        DoctorConfig(cluster="slurm", recipe="kbrodt", store="/scratch/me/store", runs="/home/me/runs"),
        {**CLUSTER, **dict(keys)},
    )


def wish(change: Change) -> Wish:
    """What is to be run."""
    asked = _asked(tuple(change.cluster.items()))
    configs = tuple(replace(config, **change.config) for config in asked.configs)
    return replace(asked, configs=configs, outside=dict(change.outside), run=change.run)


def answers(change: Change) -> dict[str, Any]:
    """What Slurm answers; a command whose text is emptied does not."""
    texts = dict(TEXTS)
    for which, old, new in change.texts:
        assert old in texts[which], f"{old!r} is not in what {which} says"
        texts[which] = texts[which].replace(old, new) if old else new
    found: dict[str, Any] = {name: Answer(text) for name, text in texts.items() if text}
    found["config"] = (parse_config(texts["config"]), change.clock) if texts["config"] else None
    return found


def facts(change: Change) -> Facts:
    """What is known of the site."""
    healthy = Facts(
        site=site_of(answers(change), change.trial),
        folders={RUNS: NFS, STORE: LUSTRE, WEIGHTS: NFS, f"{PYTHON} 0": NFS},
        written=Written(),
        quota=Quota(4_000_000_000_000, 500_000),
        torch=Torch(
            "2.9.0+cu126", "12.6", ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"), (), "2.27.5",
            {"efficientnet-b7": 67_000_000},
        ),
        store=StoreFacts(True, True, "", 5923, 60_000_000_000, 0),
        weights={"efficientnet-b7": True},
        measured=Measured("first", 0.8, 6.0, 40.0, 804_000_000),
        groups=("me", "lab"),
    )  # fmt: skip
    return replace(healthy, **change.facts)


def local(cluster: str, **values: Any) -> tuple[Wish, Facts]:
    """The same on this machine, without Slurm."""
    asked: ClusterConfig = load_cluster(cluster)
    whole = wish(Change())
    there = Facts(
        folders={RUNS: replace(NFS, kind="ext4"), STORE: replace(NFS, kind="ext4")}, written=Written(),
        torch=Torch("2.9.0+cpu", None, ()), store=StoreFacts(True, True, "", 10, 10), weights={"efficientnet-b7": True},
        cores=16, shared_memory=8 << 30,
    )  # fmt: skip
    configs = tuple(replace(config, workers=2, threads=2) for config in whole.configs)
    return replace(whole, cluster=asked, configs=configs), replace(there, **values)
