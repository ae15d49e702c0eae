"""Asking Slurm about a site: all at once, and with a limit, since a controller may be slow or dead."""

import os
import pwd
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from jobs import scontrol
from jobs.doctor.asking import Answer, run
from jobs.doctor.site import (
    ASSOC_COLUMNS,
    QOS_COLUMNS,
    Association,
    Site,
    Trial,
    parse_associations,
    parse_config,
    parse_lines,
    parse_node,
    parse_partition,
    parse_qos,
)
from jobs.doctor.wish import Wish

STAMP = re.compile(r"Configuration data as of (\S+)")


def questions(wish: Wish, patience: float) -> dict[str, Callable[[], Any]]:
    """What Slurm is asked, by name; patience: seconds for each command."""
    commands = {
        "version": ["sinfo", "--version"],
        # Those that are hidden too: jobs may go there.
        "partitions": ["scontrol", "--all", "show", "partition", "--oneliner"],
        "nodes": ["scontrol", "--all", "show", "node", "--oneliner"],
        "qos": ["sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(QOS_COLUMNS)}"],
    }
    if user := user_name():
        commands["associations"] = [
            *("sacctmgr", "--noheader", "--parsable2", "show", "assoc", f"user={user}"),
            f"format={','.join(ASSOC_COLUMNS)}",
        ]
    environment = scontrol.environment(dict(wish.outside))
    asked: dict[str, Callable[[], Any]] = {
        name: _asking(command, environment, patience) for name, command in commands.items()
    }  # fmt: skip
    asked["config"] = lambda: _timed(["scontrol", "show", "config"], environment, patience)
    return asked


def user_name() -> str:
    """This process's user, as Slurm looks it up; empty where the system has no name for its number."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return ""


def try_sbatch(wish: Wish, patience: float) -> Trial | None:
    """Whether sbatch would take the job, with all options that the real one has; nothing is submitted. None if it
    does not answer in `patience` seconds."""
    script = _make_sbatch_string(command="true", folder=wish.job().run.jobs, **wish.parameters())
    answer = run(["sbatch", "--test-only"], patience, wish.environment(), str(script))
    if answer is None:
        return None
    return Trial(answer.code == 0, answer.error.strip() or answer.out.strip())


def site_of(answers: Mapping[str, Any], test: Trial | None = None) -> Site:
    """The site that these answers describe."""
    config, clock = answers.get("config") or (None, None)
    if config is None:
        return Site()
    texts = {name: _text(answers.get(name)) for name in ("version", "partitions", "nodes", "qos", "associations")}
    partitions = parse_lines(texts["partitions"] or "", parse_partition)
    return Site(
        answers=True,
        version=(texts["version"] or "").strip(),
        config=config,
        partitions={each.name: each for each in partitions},
        nodes=tuple(parse_lines(texts["nodes"] or "", parse_node)),
        qos=None if texts["qos"] is None else parse_qos(texts["qos"]),
        associations=_of_cluster(texts["associations"], config.get("ClusterName", "")),
        clock=clock,
        test=test,
    )


def _of_cluster(text: str | None, cluster: str) -> tuple[Association, ...] | None:
    """The user's associations on this cluster: a database may serve several."""
    if text is None:
        return None
    here = ("", cluster.lower()) if cluster else ()
    return tuple(each for each in parse_associations(text) if not here or each.cluster.lower() in here)


def _asking(command: list[str], environment: dict[str, str], patience: float) -> Callable[[], Answer | None]:
    return lambda: run(command, patience, environment)


def _timed(
    command: list[str], environment: dict[str, str], patience: float
) -> tuple[dict[str, str], float | None] | None:
    """The configuration, and by how much the controller's clock differs, as far as whole seconds tell."""
    before = time.time()
    answer = run(command, patience, environment)
    after = time.time()
    if answer is None or answer.code != 0 or not (found := parse_config(answer.out)):
        return None
    stamp = STAMP.search(answer.out)
    try:
        then = datetime.fromisoformat(stamp[1]).timestamp() if stamp else None
    except ValueError:
        then = None
    if then is None:
        return found, None
    early, late = then - after, then + 1 - before
    return found, 0.0 if early <= 0 <= late else min(early, late, key=abs)


def _text(answer: Answer | None) -> str | None:
    return answer.out if answer is not None and answer.code == 0 else None
