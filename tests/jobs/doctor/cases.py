"""Faults of a site, each with what must be said about it and nothing else; and what is unusual but no fault."""

from dataclasses import dataclass, replace

from jobs.doctor.facts import PYTHON, RUNS, STORE, WEIGHTS
from jobs.doctor.measured import Measured
from jobs.doctor.place import Quota, Written
from jobs.doctor.site import Trial
from jobs.doctor.software import StoreFacts, Torch
from tests.jobs.doctor.healthy import LUSTRE, NFS, TEXTS, Change, wish

W, F = "warning", "failure"
R = "refusal"
"""A failure, but a warning where sbatch takes the very job."""
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
    of("unknown partition", R, "partition", "there is no partition 'gpus' (there are cpu, gpu)", "another partition",
       cluster={"partition": "gpus"}),
    of("partition of the CPU jobs is unknown", F, "cpu_partition", "no partition 'x'", "another cpu_partition",
       cluster={"cpu_partition": "x"}),
    of("partition takes no jobs", R, "partition", "takes no new jobs (state INACTIVE)", "another partition",
       ("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=INACTIVE")),
    of("partition starts no jobs", W, "partition", "starts no jobs now", "another partition",
       ("partitions", "PreemptMode=REQUEUE State=UP", "PreemptMode=REQUEUE State=DOWN")),
    of("partition for others' accounts", R, "account", "takes only accounts physics, chemistry",
       "one of them", ("partitions", "AllowAccounts=ALL AllowQos=ALL Default=YES",
                       "AllowAccounts=physics,chemistry AllowQos=ALL Default=YES")),
    of("partition for another group", R, "partition", "members of the groups staff", "made a member",
       ("partitions", "AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES",
        "AllowGroups=staff AllowAccounts=ALL AllowQos=ALL Default=YES")),
    of("unknown account", R, "account", "you may not charge account 'lap'", "one of lab", cluster={"account": "lap"}),
    of("account of another cluster", R, "account", "you may not charge account 'lab'", "staff",
       ("associations", "|mini", "|other")),
    of("unknown qos", R, "qos", "there is no qos 'nrmal'", "low, normal", cluster={"qos": "nrmal"}),
    of("qos of others", R, "qos", "you may not use qos 'low'", "one of normal",
       ("associations", "low,normal", "normal"), cluster={"qos": "low"}),
    of("time above the partition's", R, "time limit", "above that of partition gpu, 12 h", "time_hours to 12",
       ("partitions", "2-00:00:00", "12:00:00")),
    of("time above the qos's", R, "time limit", "above that of qos normal, 8 h", "time_hours to 8",
       ("qos", "normal|2-00:00:00", "normal|08:00:00")),
    of("time hardly longer than the start", W, "time limit", "little is left to train", "larger time_hours",
       cluster={"time_hours": "0.2"}),
    of("too few nodes for a job", R, "limits", "gives a job at most 1 of the 2 nodes", "set nodes lower",
       ("partitions", "MaxNodes=UNLIMITED MaxTime=2-", "MaxNodes=1 MaxTime=2-")),
    of("too few GPUs for a user", R, "limits", "qos normal gives 4 GPUs at most, not 8", "gpus_per_node lower",
       ("qos", "gres/gpu=16", "gres/gpu=4")),
    of("too many jobs at once", F, "limits", "4 jobs are submitted together, but you may have 2", "--until train",
       ("qos", "|10|20|", "|10|2|")),
    of("more nodes than there are", R, "nodes", "4 nodes are asked for", "set nodes lower", cluster={"nodes": "4"},
       facts={"quota": None}),
    of("feature that no node has", R, "constraint", "constraint 'h100' is asked for on 2 nodes", "ib, v100",
       cluster={"constraint": "h100"}),
    of("more GPUs than a node has", R, "gpus", "8 GPUs on each of 2 nodes", "to 4 or less",
       cluster={"gpus_per_node": "8", "processes": "8", "cpus_per_process": "4"}),
    of("GPUs that Slurm does not know", R, "gpus", "knows no GPUs", "gpus_per_node to 0",
       ("config", "= gpu", "= (null)")),
    of("type of GPU that no node has", R, "gpu type", "type 'a100'", "v100",
       cluster={"sbatch": '{gres: "gpu:a100:4"}'}),
    of("more cores than a node has", R, "cores", "64 cores on each", "has 40 cores",
       cluster={"cpus_per_process": "16"}),
    of("more memory than a node has", R, "memory", "500 GB of memory", "185 GB", cluster={"memory_gb": "500"}),
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
       "to 14 or more", cluster={"signal_seconds": "5"}, run="first"),
    of("another run would be warned too late", W, "signal", "signal_seconds is 5, but a step and a save take 6.8 s",
       "to 14 or more", cluster={"signal_seconds": "5"}),
    of("sbatch cannot ask the controller", W, "sbatch", "could not try the job", "again",
       trial=Trial(False, "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")),
    of("one of two partitions is unknown", W, "partition", "there is no partition 'x', one of gpu, x", "leave it out",
       cluster={"partition": "gpu,x"}),
    of("both partitions lack something", R, "cores", "64 cores on each", "has 40 cores",
       ("partitions", "Default=YES", "Default=NO"),
       ("partitions", "PartitionName=cpu", "PartitionName=more"), ("nodes", "Partitions=gpu", "Partitions=gpu,more"),
       cluster={"cpus_per_process": "16", "partition": "gpu,more", "cpu_partition": ""}),
    of("too few GPUs of the type", R, "limits", "qos normal gives 2 GPUs at most, not 8", "gpus_per_node lower",
       ("qos", "gres/gpu=16", "gres/gpu=16,gres/gpu:v100=2"), cluster={"sbatch": '{gres: "gpu:v100:4"}'}),
    of("time above the account's", R, "time limit", "above that of your account, 12 h", "time_hours to 12",
       ("associations", "low,normal|||", "low,normal|12:00:00||"), ("qos", "normal|2-00:00:00", "normal|")),
    of("time above that of the partition's qos", R, "time limit", "above that of qos tight, 60 min", "time_hours to 1",
       ("qos", "normal|", "tight|01:00:00|||||||\nnormal|"), ("partitions", "Default=YES QoS=N/A",
                                                             "Default=YES QoS=tight")),
    of("no job may come back", W, "requeue", "JobRequeue=0", "--probe", ("config", "JobRequeue              = 1",
                                                                          "JobRequeue              = 0")),
    of("held when they come back", F, "requeue", "exit code 75", "RequeueExitHold",
       ("config", "RequeueExitHold         = (null)", "RequeueExitHold         = 70-80,99")),
    of("a long way back", W, "requeue delay", "60 min", "staff", ("config", "AuthInfo                = (null)",
                                                                   "AuthInfo                = cred_expire=3600")),
    of("python on this machine's disk", W, "python", "lies on a disk of this machine (xfs at /)", "shared file system",
       facts=folder(f"{PYTHON} 0", kind="xfs", mount="/")),
    of("python is not there", W, "python", "does not exist here", "key python",
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
    of("disk full", F, "disk", "has 1 GB left, checkpoints take 7.24 GB more", "checkpoint.keep",
       facts=folder(RUNS, free=1_000_000_000)),
    of("disk nearly full", W, "disk", "has 8 GB left", "keep fewer", facts=folder(RUNS, free=8_000_000_000)),
    of("quota nearly used up", F, "disk", "your quota has 2 GB left", "--runs", facts={"quota": Quota(2_000_000_000)}),
    of("another quota nearly used up", W, "quota", "perhaps not that of /home/me/place, has 2 GB left", "quota -s",
       facts={"quota": Quota(2_000_000_000, 5, sure=False)}),
    of("few files may be made", W, "files", "only 12 files", "old files", facts={"quota": Quota(None, 12)}),
    of("a run that nobody has measured", W, "measured", "has measured nothing yet", "another --run",
       run="second",
       facts={"measured": Measured("second")}),
]  # fmt: skip


def healthy(name: str, *texts: tuple[str, str, str], **values: object) -> Case:
    """What may not fail, whether sbatch is asked or not."""
    return Case(name, "", "", "", "", Change(texts, **values))  # type: ignore[arg-type]


RUN = wish(Change()).configs[0].run
BOOKS = ("config", "associations,limits,qos", "none")
QOS = "normal|2-00:00:00"
ASSOCIATION = TEXTS["associations"]
GRES = {"gpus_per_node": "4"}
UNUSUAL = [
    healthy("accounts are kept for the books alone", BOOKS, ("associations", ASSOCIATION, "\n")),
    healthy("accounts of the books", BOOKS, cluster={"account": "lap", "qos": "nrmal"}),
    healthy("limits of the books", BOOKS, ("qos", QOS, "normal|01:00:00"),
            ("qos", "|10|20|gres/gpu=16", "|1|1|gres/gpu=1"),
            ("associations", "low,normal|||", "low,normal|01:00:00|1|1")),
    healthy("limits that are not enforced", ("config", "associations,limits,qos", "associations,qos"),
            ("qos", QOS, "normal|01:00:00"), ("qos", "|10|20|gres/gpu=16", "|1|1|gres/gpu=1")),
    healthy("qos that need not be valid", ("config", "associations,limits,qos", "associations"),
            cluster={"qos": "nrmal"}),
    healthy("several partitions", cluster={"partition": "gpu,cpu"}),
    healthy("several partitions, the other first", cluster={"partition": "cpu,gpu"}),
    healthy("several partitions of the environment", cluster={"partition": ""},
            outside={"SBATCH_PARTITION": "cpu,gpu"}),
    healthy("several partitions of the CPU jobs", cluster={"cpu_partition": "x,cpu"}),
    healthy("the site's own code chooses the partition", ("partitions", "Default=YES", "Default=NO"),
            ("config", "JobSubmitPlugins        = (null)", "JobSubmitPlugins        = lua"), cluster={"partition": ""}),
    healthy("the site's own code knows other names",
            ("config", "JobSubmitPlugins        = (null)", "JobSubmitPlugins        = lua"),
            cluster={"partition": "any", "cpu_partition": "some", "account": "auto", "qos": "auto"}),
    healthy("GPUs of another type are forbidden", ("qos", "gres/gpu=16", "gres/gpu=16,gres/gpu:h100=0")),
    healthy("GPUs of another type are few", ("qos", "gres/gpu=16", "cpu=400,gres/gpu:a100=2,gres/gpu=16"),
            cluster={"sbatch": '{gres: "gpu:v100:4"}'}),
    healthy("the qos allows more time than the account", ("associations", "low,normal|||", "low,normal|12:00:00||")),
    healthy("the default qos allows more time than the account",
            ("associations", "low,normal|||", "low,normal|12:00:00||"), cluster={"qos": ""}),
    healthy("the partition's qos allows more than the job's",
            ("qos", "normal|2-00:00:00|10|20|gres/gpu=16",
             "big|2-00:00:00|10|20|gres/gpu=16||||\nnormal|01:00:00|1|1|gres/gpu=1"),
            ("partitions", "Default=YES QoS=N/A", "Default=YES QoS=big")),
    healthy("the job's qos goes over the partition's",
            ("qos", "cluster|00:00:00|", "cluster|00:00:00|DenyOnLimit,OverPartQOS"),
            ("qos", "normal|", "tight|01:00:00|1|1|gres/gpu=1||||\nnormal|"),
            ("partitions", "Default=YES QoS=N/A", "Default=YES QoS=tight")),
    healthy("the qos goes over the partition's time and nodes",
            ("qos", "cluster|00:00:00|", "cluster|00:00:00|PartitionTimeLimit,PartitionMaxNodes"),
            ("partitions", "MaxNodes=UNLIMITED MaxTime=2-00:00:00", "MaxNodes=1 MaxTime=12:00:00")),
    healthy("few jobs in the GPU partition, more in all", ("qos", "normal|", "three||3|3|||||\nnormal|"),
            ("partitions", "Default=YES QoS=N/A", "Default=YES QoS=three")),
    healthy("an account more that takes one job", ("qos", "|10|20|", "|10||"),
            ("associations", ASSOCIATION, f"{ASSOCIATION}teach||normal|||1|normal|mini\n"), cluster={"account": ""}),
    healthy("another cluster's account", ("associations", ASSOCIATION, f"{ASSOCIATION}lab||low|1|1|1|low|other\n")),
    healthy("accounts and qos in capitals", cluster={"account": "LAB", "qos": "NORMAL"}),
    healthy("lists in capitals", ("partitions", "AllowAccounts=ALL AllowQos=ALL Default=YES",
                                  "AllowAccounts=LAB AllowQos=NORMAL Default=YES")),
    healthy("lists of what is refused beside those of what is taken",
            ("partitions", "AllowAccounts=ALL AllowQos=ALL Default=YES",
             "AllowAccounts=lab DenyAccounts=lab AllowQos=normal DenyQos=normal Default=YES")),
    healthy("an account for the default partition", ("associations", "lab||", "lab|gpu|"), cluster={"partition": ""}),
    healthy("an account for one of several partitions", ("associations", "lab||", "lab|gpu|"),
            cluster={"partition": "cpu,gpu"}),
    healthy("other things beside GPUs", cluster={**GRES, "sbatch": '{gres: "nvme:1,gpu:v100:4"}'}),
    healthy("other things after GPUs", cluster={**GRES, "sbatch": '{gres: "gpu:4,lscratch:100"}'}),
    healthy("a GPU without number", cluster={"gpus_per_node": "1", "processes": "1", "sbatch": "{gres: gpu}"}),
    healthy("a type of GPU in capitals", cluster={"sbatch": '{gres: "gpu:V100:4"}'}),
    healthy("the limit to the minute", ("partitions", "2-00:00:00", "01:06:00"), cluster={"time_hours": "1.1"}),
    healthy("another run is slow", facts={"measured": Measured("toy", 200.0, 150.0, 40.0, 804_000_000)}),
    healthy("what is missing on the disk is there already",
            facts={**folder(RUNS, free=6_000_000_000), "held": {RUN: 3_000_000_000}}),
    healthy("another file system's quota", facts={"quota": Quota(1000, 5, sure=False)}),
    healthy("python on the nodes alone", cluster={"python": "/opt/nodes/bin/python"},
            facts=folder(f"{PYTHON} 0", exists=False, path="/opt/nodes/bin/python")),
    healthy("the controller is busy",
            trial=Trial(False, "sbatch: error: Slurm temporarily unable to accept job, sleeping and retrying")),
    healthy("the controller is away",
            trial=Trial(False, "allocation failure: Unable to contact slurm controller (connect failure)")),
    healthy("nodes that are off until they are needed", ("nodes", "State=IDLE", "State=IDLE+CLOUD+POWERED_DOWN")),
    healthy("features in brackets", cluster={"constraint": "[v100|a100]"}),
    healthy("shares of GPUs", ("nodes", "v100:4(S:0-1)", "v100:4(S:0-1),shard:v100:8(S:0-1)")),
]  # fmt: skip
