"""Several sources are asked at once; which of them is taken is decided here, and does not depend
on luck where two are about equally fast."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from proa.machine.cloudconfig.parse import Problem
from proa.machine.cloudconfig.sources.http import Client, Failed, Patience
from proa.machine.cloudconfig.sources.source import Source, Tried
from proa.machine.record import dataclass, replace


@dataclass(frozen=True)
class Racer:
    """``explicit``: the owner named it, and no later one is taken while it may still come."""

    name: str
    fetch: Callable[[Client], Source]
    explicit: bool = False


def winner(
    good: Mapping[int, float],
    running: Sequence[tuple[int, bool]],
    grace: float,
) -> tuple[int, float] | None:
    """Which is taken, and from when on (seconds); ``None`` while none is good.

    ``good``: position in the order → when it came. ``running``: position and whether explicit.
    """
    if not good:
        return None
    first = min(good)
    ahead = [explicit for position, explicit in running if position < first]
    if any(ahead):
        return first, float("inf")
    return first, min(good.values()) + grace if ahead else 0.0


def race(
    racers: Sequence[Racer],
    patience: Patience,
    vary: Callable[[], float] = random.random,
) -> tuple[Source | None, tuple[Tried, ...]]:
    """The source that won, if any, and how each fared. Returns at the deadline at the latest."""
    began = time.monotonic()
    # Those who end at the deadline itself are still heard.
    last_call = began + patience.deadline + patience.grace
    stop = threading.Event()
    clients = [Client(patience, vary, stop) for _ in racers]
    answers: queue.SimpleQueue[tuple[int, Source | str]] = queue.SimpleQueue()

    def run(position: int) -> None:
        answer: Source | str
        try:
            source = racers[position].fetch(clients[position])
            doubts = clients[position].doubts
            answer = replace(source, problems=(*source.problems, *doubts)) if doubts else source
        except Failed as failed:
            answer = str(failed)
        except Exception as error:  # a fault of ours in one must not hide the others
            answer = f"unexpected: {type(error).__name__}"
        answers.put((position, answer))

    for position in range(len(racers)):
        threading.Thread(target=run, args=(position,), daemon=True).start()
    good: dict[int, float] = {}
    sources: dict[int, Source] = {}
    outcomes: dict[int, tuple[float, str]] = {}
    taken: int | None = None
    while True:
        running = [(n, racer.explicit) for n, racer in enumerate(racers) if n not in outcomes]
        choice = winner(good, running, patience.grace)
        now = time.monotonic()
        if choice is not None and (choice[1] <= now or now >= last_call):
            taken = choice[0]
            break
        if not running or now >= last_call:
            break
        try:
            until = min(last_call, choice[1] if choice is not None else last_call)
            position, answer = answers.get(timeout=max(0.001, until - now))
        except queue.Empty:
            continue
        now = time.monotonic()
        if isinstance(answer, Source):
            good[position], sources[position] = now, answer
        told = "good, and another was taken" if isinstance(answer, Source) else answer
        outcomes[position] = (now - began, told)
    stop.set()
    over = time.monotonic() - began
    tried = []
    for n, racer in enumerate(racers):
        seconds, outcome = outcomes.get(n, (over, clients[n].last or "no answer yet"))
        tried.append(Tried(racer.name, round(seconds, 3), "taken" if n == taken else outcome))
    return (sources[taken] if taken is not None else None), tuple(tried)


def nobody(tried: Sequence[Tried]) -> Problem:
    """What to say where there should have been a source."""
    told = "; ".join(f"{one.name}: {one.outcome} ({one.seconds:.0f} s)" for one in tried)
    return Problem("error", f"no source of configuration answered: {told}")
