"""The error a user can mend."""


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where and what to do, in one sentence.

    `launch.py` prints the message without a traceback and leaves with exit code 2. Everything else that is
    raised is a defect of this project and keeps its traceback.
    """


def valid_choice(kind: str, value: str, choices: list[str]) -> str:
    """Return `value` if it is one of `choices`, otherwise raise a `UserError` that lists them."""
    if value not in choices:
        raise UserError(f"unknown {kind} {value!r}: choose one of {', '.join(choices) or '(there is none)'}")
    return value
