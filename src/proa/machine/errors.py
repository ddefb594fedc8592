"""Why the machine's programs stop: one exit code for each kind of trouble.

The numbers are an interface (units, scripts and ``docs/updating.md`` name them); never reuse one.
"""

from __future__ import annotations

from enum import IntEnum

from proa.wire.errors import UserError


class Code(IntEnum):
    """Exit codes of ``proactl``; 0 is "done, or nothing to do"."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    SERVER_UNREACHABLE = 10
    BAD_ANSWER = 11
    METADATA_EXPIRED = 12
    METADATA_UNTRUSTED = 13
    PAYLOAD_MISMATCH = 14
    WRONG_ARCHITECTURE = 15
    OLDER_VERSION = 16
    NO_ROOM = 17
    BUSY = 18
    CLOCK_NOT_SET = 19
    FAILED_BEFORE = 20
    SLOT_FAILED = 21
    SWITCHED_OFF = 22
    DOWNLOAD_FAILED = 23
    NOTHING_TO_GO_BACK_TO = 24
    ON_TRIAL = 25


class MachineError(UserError):
    """Something that stops an update, a rollback or a look at the machine.

    ``code`` is the exit code, ``message`` says what happened and where, ``hint`` what to do.
    """

    def __init__(self, code: Code, message: str, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code=int(code))
