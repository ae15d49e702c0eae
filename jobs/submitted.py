"""What is submitted: importable by name, with nothing in it but where the run is and which job of it to do."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SubmittedJob:
    """The job `name` of the run in `run_dir`, in the batch process of an allocation."""

    run_dir: Path
    name: str
    kind: str

    def __call__(self) -> None:
        """Do the job, or what is left of it; see `jobs.conductor`."""
        from submitit import JobEnvironment

        from jobs.conductor import conduct

        # An earlier incarnation's: whoever waits for the result must not take that for this one's.
        JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
        conduct(self.run_dir, self.name, self.kind)
