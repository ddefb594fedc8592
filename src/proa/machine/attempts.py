"""What became of the ways to a release that were begun, so that none is tried for ever.

A payload that does not lead to the release says so, and is not taken again. But an updater that the
kernel ends (out of memory, a watchdog), or that ends by a fault of its own, says nothing. So it is
noted durably that a payload is begun, before anything is done, and again that its run has ended in
whatever orderly way. A note that is found open is of a run that died there. After
:data:`MOST_DEATHS` deaths with nothing more done between them the next way is gone.

A power cut is a death too: a machine that goes down each time when it works at a payload is as
stuck as one whose updater is killed. Guessing wrongly costs bytes of the network, nothing else.
What never counts is a stop that was asked for (SIGTERM, so `systemctl stop` and a restart of the
machine; Ctrl-C), an error that was said, and a run that came further than the ones before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from proa.machine.state import Attempt, Download

MOST_DEATHS = 2


def counted(download: Download, waiting: int) -> Mapping[str, Attempt]:
    """Count the deaths of the runs that have not said how they ended.

    ``waiting`` are the bytes that were fetched and are not in the slot yet.
    """
    here = (sum(download.durable.values()), waiting)

    def count(attempt: Attempt) -> Attempt:
        if not attempt.at_work:
            return attempt
        deaths = 1 if here > attempt.done else attempt.deaths + 1
        most = max(here, attempt.done)
        return dataclasses.replace(attempt, at_work=False, deaths=deaths, done=most)

    return {head: count(attempt) for head, attempt in download.attempts.items()}


def why_not(attempt: Attempt) -> str:
    """Say why a payload is not tried again, or return ""."""
    if attempt.refused:
        return attempt.refused
    if attempt.deaths >= MOST_DEATHS:
        return (
            f"{attempt.deaths} runs of the updater died at it, at the same place "
            "(out of memory? `journalctl -k` may say)"
        )
    return ""


def given_up(attempts: Mapping[str, Attempt]) -> tuple[str, ...]:
    """Return the ways that are not tried again, with the reasons, in words."""
    found = ((attempt.way, why_not(attempt)) for attempt in attempts.values())
    return tuple(f"{way}: {why}" for way, why in found if why)
