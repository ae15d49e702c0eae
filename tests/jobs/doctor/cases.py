"""Faults of a site, each with what must be said about it and nothing else."""

from dataclasses import dataclass, replace

from jobs.doctor.facts import PYTHON, RUNS, STORE, WEIGHTS
from jobs.doctor.measured import Measured
from jobs.doctor.place import Quota, Written
from jobs.doctor.site import Trial
from jobs.doctor.software import StoreFacts, Torch
from tests.jobs.doctor.healthy import LUSTRE, NFS, TEXTS, Change

W, F = "warning", "failure"
FOLDERS = {RUNS: NFS, STORE: LUSTRE, WEIGHTS: NFS, f"{PYTHON} 0": NFS}
DISK = replace(NFS, kind="xfs", mount="/")
V100 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


@dataclass(frozen=True)
class Case:
    """A fault, and what must be said: level, what it is about, a part of the text, a part of the remedy."""

    name: str
    level: str
    about: str
    text: str
    remedy: str
    change: Change


def of(
    name: str, level: str, about: str, text: str, remedy: str, *texts: tuple[str, str, str], **values: object
) -> Case:
    return Case(name, level, about, text, remedy, Change(texts, **values))  # type: ignore[arg-type]


def folder(name: str, **values: object) -> dict[str, object]:
    return {"folders": {**FOLDERS, name: replace(FOLDERS[name], **values)}}  # type: ignore[arg-type]


CASES = [
    of("no Slurm here", F, "slurm", "sbatch, srun not found", "login node", ("config", TEXTS["config"], ""),
       facts={"programs": ["scontrol", "squeue", "scancel"]}, trial=None),
    of("controller is dead", W, "slurm", "does not answer", "scontrol ping",
       ("config", TEXTS["config"], ""), trial=None),
    of("old Slurm", W, "slurm", "18.08 is older", "--probe", ("version", "22.05.8", "18.08.9")),
    of("unknown partition", F, "partition", "there is no partition 'gpus' (there are cpu, gpu)", "another partition",
       cluster={"partition": "gpus"}),
    of("partition of the CPU jobs is unknown", F, "cpu_partition", "no partition 'x'", "another cpu_partition",
       cluster={"cpu_partition": "x"}),
    of("partition takes no jobs", F, "partition", "takes no new jobs (state INACTIVE)", "another partition",
       ("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=INACTIVE")),
    of("partition starts no jobs", W, "partition", "starts no jobs now", "another partition",
       ("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=DOWN")),
    of("partition for others' accounts", F, "account", "takes only accounts physics, chemistry",
       "one of them", ("partitions", "AllowAccounts=ALL AllowQos=ALL Default=YES",
                       "AllowAccounts=physics,chemistry AllowQos=ALL Default=YES")),
    of("partition for another group", F, "partition", "members of the groups staff", "made a member",
       ("partitions", "AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES",
        "AllowGroups=staff AllowAccounts=ALL AllowQos=ALL Default=YES")),
    of("unknown account", F, "account", "you may not charge account 'lap'", "one of lab", cluster={"account": "lap"}),
    of("unknown qos", F, "qos", "there is no qos 'nrmal'", "low, normal", cluster={"qos": "nrmal"}),
    of("qos of others", F, "qos", "you may not use qos 'low'", "one of normal",
       ("associations", "low,normal", "normal"), cluster={"qos": "low"}),
    of("time above the partition's", F, "time limit", "above that of partition gpu, 12 h", "time_hours to 12",
       ("partitions", "2-00:00:00", "12:00:00")),
    of("time above the qos's", F, "time limit", "above that of qos normal, 8 h", "time_hours to 8",
       ("qos", "normal|2-00:00:00", "normal|08:00:00")),
    of("time hardly longer than the start", W, "time limit", "little is left to train", "larger time_hours",
       cluster={"time_hours": "0.2"}),
    of("too few nodes for a job", F, "limits", "gives a job at most 1 of the 2 nodes", "set nodes lower",
       ("partitions", "MaxNodes=UNLIMITED MaxTime=2-", "MaxNodes=1 MaxTime=2-")),
    of("too few GPUs for a user", F, "limits", "qos normal gives 4 GPUs at most, not 8", "gpus_per_node lower",
       ("qos", "gres/gpu=16", "gres/gpu=4")),
    of("too many jobs at once", F, "limits", "4 jobs are submitted together, but you may have 2", "--until train",
       ("qos", "|10|20|", "|10|2|")),
    of("more nodes than there are", F, "nodes", "4 nodes are asked for", "set nodes lower", cluster={"nodes": "4"},
       facts={"quota": None}),
    of("feature that no node has", F, "constraint", "constraint 'h100' is asked for on 2 nodes", "ib, v100",
       cluster={"constraint": "h100"}),
    of("more GPUs than a node has", F, "gpus", "8 GPUs on each of 2 nodes", "to 4 or less",
       cluster={"gpus_per_node": "8", "processes": "8", "cpus_per_process": "4"}),
    of("GPUs that Slurm does not know", F, "gpus", "knows no GPUs", "gpus_per_node to 0",
       ("config", "= gpu", "= (null)")),
    of("type of GPU that no node has", F, "gpu type", "type 'a100'", "v100",
       cluster={"sbatch": '{gres: "gpu:a100:4"}'}),
    of("more cores than a node has", F, "cores", "64 cores on each", "has 40 cores",
       cluster={"cpus_per_process": "16"}),
    of("more memory than a node has", F, "memory", "500 GB of memory", "185 GB", cluster={"memory_gb": "500"}),
    of("nodes out of service", W, "nodes", "only 1 are in service, and 2 nodes are needed: g1 (mixed+drain)", "wait",
       ("nodes", "State=MIXED", "State=MIXED+DRAIN"), ("nodes", "State=ALLOCATED", "State=DOWN*"),
       trial=Trial(False, "allocation failure: Requested node configuration is not available")),
    of("sbatch refuses it", F, "sbatch", "Invalid account or partition combination", "--dry-run",
       trial=Trial(False, "allocation failure: Invalid account or partition combination")),
    of("sbatch does not answer", W, "sbatch", "does not answer in time", "again", trial=None),
    of("a setting for all jobs counts", W, "environment", "SBATCH_RESERVATION=old is used", "unset",
       outside={"SBATCH_RESERVATION": "old"}),
    of("jobs are suspended", W, "preemption", "GANG", "requeues",
       ("partitions", "PreemptMode=REQUEUE", "PreemptMode=GANG,SUSPEND")),
    of("cancelled at once", W, "preemption", "mode CANCEL without a grace", "has a grace",
       ("partitions", "GraceTime=60", "GraceTime=0"), ("partitions", "PreemptMode=REQUEUE", "PreemptMode=CANCEL")),
    of("killed before a save ends", W, "warning time", "a step and a save took 80.8 s", "checkpoint.interval",
       ("config", "30 sec", "10 sec"), cluster={"signal_seconds": "600"},
       facts={"measured": Measured("first", 0.8, 80.0, 40.0, 804_000_000)}),
    of("a longer grace than the site's", W, "warning time", "the site kills after 10 s", "checkpoint.grace=10",
       ("config", "30 sec", "10 sec"), ("partitions", "GraceTime=60", "GraceTime=0")),
    of("warned too late before the time limit", F, "signal", "signal_seconds is 5, but a step and a save take 6.8 s",
       "to 14 or more", cluster={"signal_seconds": "5"}),
    of("no job may come back", W, "requeue", "JobRequeue=0", "--probe", ("config", "JobRequeue              = 1",
                                                                          "JobRequeue              = 0")),
    of("held when they come back", F, "requeue", "exit code 75", "RequeueExitHold",
       ("config", "RequeueExitHold         = (null)", "RequeueExitHold         = 70-80,99")),
    of("a long way back", W, "requeue delay", "60 min", "staff", ("config", "AuthInfo                = (null)",
                                                                   "AuthInfo                = cred_expire=3600")),
    of("python on this machine's disk", W, "python", "lies on a disk of this machine (xfs at /)", "shared file system",
       facts=folder(f"{PYTHON} 0", kind="xfs", mount="/")),
    of("python is not there", F, "python", "does not exist here", "key python",
       facts=folder(f"{PYTHON} 0", exists=False)),
    of("runs in memory", W, "run directory", "this machine's memory (tmpfs)", "--runs",
       facts=folder(RUNS, kind="tmpfs", mount="/tmp")),
    of("weights on this machine's disk", W, "weights", "lies on a disk", "--weights-cache",
       facts=folder(WEIGHTS, kind="ext4", mount="/home")),
    of("store on NFS", W, "store", "many small reads over the network", "stage_in", facts=folder(STORE, kind="nfs")),
    of("store of another data set", F, "store", "differ in 7 tiles", "prepare",
       facts={"store": StoreFacts(True, True, "", 5923, 1, 7)}),
    of("no store and no data", F, "store", "does not exist yet", "--data", facts={"store": StoreFacts()}),
    of("damaged store", F, "store", "is damaged", "another --store",
       facts={"store": StoreFacts(True, problem="/scratch/me/store is damaged")}),
    of("weights are not there", W, "weights", "are not in", "launch.py weights --encoder efficientnet-b7",
       facts={"weights": {"efficientnet-b7": False}}),
    of("unknown encoder", F, "encoder", "unknown encoder", "another --encoder",
       facts={"torch": Torch("2.9.0+cu126", "12.6", ("sm_70",), unknown={"b7": "unknown encoder 'b7'"})}),
    of("libraries may try the network", W, "offline", "is not set", "HF_HUB_OFFLINE",
       cluster={"environment.HF_HUB_OFFLINE": "0"}),
    of("torch for CPUs", F, "torch", "built for CPUs alone", "cu126", facts={"torch": Torch("2.13.0+cpu")}),
    of("torch without the V100's code", F, "torch", "no code for v100 (sm_70)", "CUDA 12.6",
       facts={"torch": Torch("2.13.0+cu130", "13.0", V100)}),
    of("no torch", F, "torch", "cannot be loaded", "install", facts={"torch": None}),
    of("runs cannot be written to", F, "writing", "Read-only file system", "--runs",
       facts={"written": Written("/home/me/place: Read-only file system")}),
    of("locks that nobody notices", W, "locks", "does not notice a lock", "one machine",
       facts={"written": Written(lock="free")}),
    of("no locks", W, "locks", "has no locks", "mount with locks", facts={"written": Written(lock="none")}),
    of("the file server does not answer", W, "writing", "does not answer", "staff",
       facts={"written": None, "silent": ["written"]}),
    of("the file server's clock is wrong", W, "clock", "the file server's is 90 s ahead", "NTP",
       facts={"written": Written(skew=90.0)}),
    of("slurmctld's clock is wrong", W, "clock", "slurmctld's is 3600 s behind", "NTP", clock=-3600.0),
    of("the umask takes it away", F, "writing", "umask 777", "umask 022", facts={"umask": 0o777}),
    of("disk full", F, "disk", "has 1 GB left, checkpoints take 7.24 GB", "checkpoint.keep",
       facts=folder(RUNS, free=1_000_000_000)),
    of("disk nearly full", W, "disk", "has 8 GB left", "keep fewer", facts=folder(RUNS, free=8_000_000_000)),
    of("quota nearly used up", F, "disk", "your quota has 2 GB left", "--runs", facts={"quota": Quota(2_000_000_000)}),
    of("few files may be made", W, "files", "only 12 files", "old files", facts={"quota": Quota(None, 12)}),
    of("a run that nobody has measured", W, "measured", "has measured nothing yet", "another --run",
       run="second",
       facts={"measured": Measured("second")}),
]  # fmt: skip
