"""The batch process of the probe's job: `python -m jobs.doctor.warden FOLDER`. It starts the ranks as a real job's
conductor does, and writes down the signals that reach itself; when the job has come back it says so and ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

from agl_core.files import write_json
from jobs.cluster import load_cluster
from jobs.conductor import free_port
from jobs.doctor.inside import listen
from jobs.pipeline import STAGE
from jobs.rank import GPUS, PORT
from jobs.runs import Run
from jobs.sbatch import gpus_per_node, srun_command

ASK, CLUSTER, BACK = "ask.json", "cluster.yaml", "back.json"


def main(folder: Path) -> int:
    """Start the ranks and wait for them; the exit code is never that of a job which is done, before it came back."""
    listen(folder / "signals.batch")
    restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    if restart:
        write_json(folder / BACK, {"time": time.time(), "restart": restart, "id": os.environ["SLURM_JOB_ID"]})
        return 0
    cluster = load_cluster(str(folder / CLUSTER), None, False)
    words = srun_command(cluster, Run(folder), "probe", STAGE, folder)
    words = [*words[: words.index("jobs.rank")], "jobs.doctor.inside", str(folder)]
    port = free_port(f"{os.environ['SLURM_JOB_ID']}.{restart}.0")
    environment = {**os.environ, PORT: str(port), GPUS: str(gpus_per_node(cluster, STAGE))}
    return subprocess.Popen(words, env=environment, stdin=subprocess.DEVNULL).wait() or 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
