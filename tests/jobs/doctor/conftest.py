"""What all tests of the doctor share."""

import pytest

from jobs.doctor import facts, place

PATIENT = 60.0  # seconds


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for every command: what is silent on a busy machine would be taken for a fault."""
    monkeypatch.setattr(facts, "QUICK", PATIENT)
    monkeypatch.setattr(facts, "SLURM", {True: PATIENT, False: PATIENT})
    monkeypatch.setattr(facts, "TRIAL", {True: PATIENT, False: PATIENT})
    monkeypatch.setattr(place, "LOCK_PATIENCE", PATIENT)
