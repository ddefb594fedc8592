"""Restarting into another slot, when the owner's settings say so."""

from __future__ import annotations

import dataclasses

from proa.machine.config import Config
from proa.machine.state import Candidate, Store
from proa.machine.system import System


def schedule(system: System, config: Config, store: Store) -> str:
    """See to the restart into the staged version; return in words what was arranged."""
    candidate = store.load().candidate
    if candidate is None:
        return ""
    if not config.reboots:
        return why_not_yet(system, config, candidate)
    if scheduled(system):
        return why_not_yet(system, config, candidate)
    minutes = -(-config.reboot_delay // 60)
    at = system.now() + 60 * minutes
    when = f"+{minutes}" if minutes else "now"
    message = f"Restarting into Proa {candidate.version}. `shutdown -c` puts it off."
    # Noted first: with "now" there may be no later.
    store.update(candidate=dataclasses.replace(candidate, reboot_at=at))
    done = system.run(["shutdown", "-r", when, message], 60)
    if done.code != 0:
        store.update(candidate=dataclasses.replace(candidate, reboot_at=0))
        return f"the restart could not be scheduled: {done.output.strip()}; run `reboot`"
    return f"the machine restarts in {minutes} min" if minutes else "the machine restarts now"


def why_not_yet(system: System, config: Config, candidate: Candidate) -> str:
    """Say why a staged version does not run yet."""
    if scheduled(system):
        left = candidate.reboot_at - system.now()
        if candidate.reboot_at and left > 0:
            return f"the machine restarts in {-(-left // 60):.0f} min; `shutdown -c` puts it off"
        return "a restart is under way"
    if config.reboot_strategy == "off":
        return "REBOOT_STRATEGY=off: run `reboot` when it suits"
    if not config.reboots:
        return (
            f"REBOOT_STRATEGY={config.reboot_strategy} is not known to this version, so it counts "
            "as off: run `reboot` when it suits"
        )
    return "no restart is scheduled (it was put off); the next check schedules one again"


def scheduled(system: System) -> bool:
    """Whether logind has a shutdown scheduled."""
    return system.path("/run/systemd/shutdown/scheduled").exists()


def now(system: System) -> bool:
    """Restart at once, in an orderly way; True if systemd took the request."""
    return system.run(["systemctl", "--no-block", "reboot"], 60).code == 0
