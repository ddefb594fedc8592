"""The one exception that a command line shows to its user as it is."""

from __future__ import annotations


class UserError(Exception):
    """Something a person can act on.

    ``message`` says what happened and where, ``hint`` what to do next, and ``code`` is the exit
    status of the program (documented with each command).
    """

    def __init__(self, message: str, *, hint: str | None = None, code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
