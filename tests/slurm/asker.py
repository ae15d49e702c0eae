"""A job that does nothing until it is signalled, and then asks why, as the conductor does.

    srun python -m tests.slurm.asker FOLDER SIGNALS COUNT

FOLDER/ready is there when it waits; FOLDER/answer.json holds the answer, after COUNT of the SIGNALS ("TERM,USR2").
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from jobs import scontrol
from jobs.allocation import Allocation


def main(folder: Path, signals: list[str], count: int) -> None:
    """Wait for `count` of the signals, ask, and leave with a code that lets no dependent start."""
    received: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number).name.removeprefix("SIG"))

    for name in ("TERM", "USR2"):
        signal.signal(signal.Signals[f"SIG{name}"], note if name in signals else signal.SIG_IGN)
    if (folder / "ready").exists():  # an incarnation that nobody waits for
        return
    (folder / "ready").write_text(str(os.getpid()))
    while len(received) < count:
        time.sleep(0.02)
    allocation = Allocation.here()
    facts = scontrol.show_job(allocation.job_id)
    answer = {"why": allocation.why(), "received": received, "facts": facts.text if facts else ""}
    aside = folder / "answer.part"
    aside.write_text(json.dumps(answer))
    aside.rename(folder / "answer.json")
    sys.exit(75)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","), int(sys.argv[3]))
