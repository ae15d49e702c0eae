"""slurm.conf of a cluster on one machine."""

import getpass
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CONF = """\
ClusterName=mini
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
AuthInfo=cred_expire={cred_expire}
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=debug
SlurmdDebug=debug
CommunicationParameters=EnableIPv6
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{user_signal}
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout={slurmd_timeout}
KillWait={kill_wait}
MessageTimeout={message_timeout}
CompleteWait=0
MinJobAge=86400
JobRequeue={job_requeue}
{gres}
{nodes}
PartitionName=DEFAULT Nodes=ALL PriorityTier=1 MaxTime=INFINITE DefaultTime=10
PartitionName=preemptible Default=YES PreemptMode=REQUEUE GraceTime={grace}
PartitionName=grace0 PreemptMode=REQUEUE GraceTime=0
PartitionName=cancelling PreemptMode=CANCEL GraceTime=0
PartitionName=cancelling_grace PreemptMode=CANCEL GraceTime={grace}
PartitionName=urgent PriorityTier=10 PreemptMode=OFF GraceTime=0
"""


@dataclass(frozen=True)
class MiniSettings:
    """A cluster. grace: seconds of GraceTime of the partitions that have one; kill_wait: seconds from TERM to KILL;
    cred_expire: a requeued job waits one second more than this; slurmd_timeout: seconds after which a silent node is
    down; send_user_signal: whether a preemption warns with the signal that the job has asked for (--signal); gpus: of
    each node, called v100, which are nothing; job_requeue: whether jobs come back that do not say if they shall."""

    nodes: int = 2
    cpus: int = 4
    grace: int = 20
    kill_wait: int = 10
    cred_expire: int = 5
    slurmd_timeout: int = 15
    message_timeout: int = 5
    send_user_signal: bool = False
    gpus: int = 0
    job_requeue: bool = True


def conf_text(folder: Path, nodes: Sequence[str], settings: MiniSettings) -> str:
    """The configuration of a cluster whose files lie in `folder`, on ports that are free now."""
    controller, default, *ports = _free_ports(len(nodes) + 2)
    lines = [
        f"NodeName={node} NodeHostname=host-{node} NodeAddr=127.0.0.1 Port={port} CPUs={settings.cpus} "
        f"RealMemory=8000 State=UNKNOWN{f' Gres=gpu:v100:{settings.gpus} Feature=v100' if settings.gpus else ''}"
        for node, port in zip(nodes, ports, strict=True)
    ]
    return CONF.format(
        host=socket.gethostname().split(".")[0],
        user=getpass.getuser(),
        folder=folder,
        controller_port=controller,
        node_port=default,
        nodes="\n".join(lines),
        gres="GresTypes=gpu" if settings.gpus else "",
        job_requeue=int(settings.job_requeue),
        user_signal="SlurmctldParameters=preempt_send_user_signal" if settings.send_user_signal else "",
        grace=settings.grace,
        kill_wait=settings.kill_wait,
        cred_expire=settings.cred_expire,
        slurmd_timeout=settings.slurmd_timeout,
        message_timeout=settings.message_timeout,
    )


def gres_text(folder: Path, settings: MiniSettings) -> str:
    """What each node has of GPUs: files that Slurm takes for them, which `folder` must have."""
    return f"Name=gpu Type=v100 File={folder}/gpu[0-{settings.gpus - 1}]\n" if settings.gpus else ""


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
