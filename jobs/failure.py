"""The failure of a job that has already told its story in its log."""


class JobError(Exception):
    """A rank ended with a defect or was killed; the message says which, and where its log is."""
