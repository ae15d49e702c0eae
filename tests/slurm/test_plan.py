"""What `plan` says of a run with known interruptions, and where its time went, against a real Slurm."""

from pathlib import Path

from jobs.planning.strikes import CRASH, PREEMPT, RANK, STOP
from tests.slurm.drill import Drill, Row, problems, write_recipe
from tests.slurm.foretold import DEVIATION, SPOKEN, adds_up, foretell
from tests.slurm.miniconf import MiniSettings
from tests.slurm.minislurm import MiniSlurm
from tests.slurm.tiny import Workplace

DEEDS = ["preempt", "kill one", "kill all", "cancel"]
STEPS = 200


def test_a_run_with_known_interruptions_ends_when_plan_says_so(tmp_path: Path) -> None:
    """Within a tenth of its time, with the seconds of a step, a start and a save that this run has measured itself.

    Those of the same run when it was left alone, of which the drill makes its prediction, are printed beside them: on a
    machine that does other things at the same time, a start takes twice as long at one time as at another, and no plan
    can know that."""
    workplace = Workplace(tmp_path)
    workplace.build()
    write_recipe(workplace, STEPS)
    with MiniSlurm(tmp_path / "slurm", MiniSettings(nodes=3, grace=20, kill_wait=10)) as slurm:
        drill = Drill(slurm, workplace, processes=2, steps=STEPS)
        pace = drill.leave_alone()
        told: list[Row] = []
        drill.interrupt(len(DEEDS), 0, pace, told.append, DEEDS)
    known = [(row.kind, row.struck, row.waited) for row in drill.rows]
    alone, interrupted = drill.run_dir("alone"), drill.run_dir("interrupted")
    foretold = foretell(workplace, drill.scenarios["alone"], alone, interrupted, known)
    print(f"{foretold}; measured {foretold.items}, planned {foretold.planned_items}")
    assert [SPOKEN[row.kind] for row in drill.rows] == [PREEMPT, RANK, CRASH, STOP]
    assert [*problems(drill, len(DEEDS)), *adds_up(alone)] == []
    assert abs(foretold.own_deviation) <= DEVIATION, foretold
