"""The updater: check → plan → trust → stage → report → restart. A oneshot; nothing stays resident.

This module only puts the steps in order. What to do is decided in ``plan``; what may be installed
in ``trust``; how it is written in ``stage``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from proa.machine import attempts, fetch, health, lock, payload, plan, reboot, slot, stage
from proa.machine import config as configuration
from proa.machine.boot import Loaders
from proa.machine.errors import Code, MachineError
from proa.machine.report import Offer, Server
from proa.machine.state import Avoided, Check, Event, State, Store
from proa.machine.system import Running, System, running, size_words
from proa.wire import manifest
from proa.wire.manifest import ManifestError
from proa.wire.omaha import ErrorCode, EventResult, EventType


@dataclass(frozen=True)
class Options:
    """What the caller asked for. ``check_only`` stops before anything is written."""

    check_only: bool = False
    force: bool = False
    allow_downgrade: bool = False
    scheduled: bool = False
    patience: fetch.Patience = fetch.PATIENCE


@dataclass(frozen=True)
class Cost:
    """What a way to a release takes: ``kind`` delta, full or images; ``origin`` a delta's version.

    ``fetch`` and ``write`` are bytes, ``seconds`` a guess from the last transfer. ``refused`` says
    why no smaller way is gone.
    """

    kind: str
    origin: str
    fetch: int
    write: int
    seconds: float | None
    refused: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How it went. ``version`` is the one on offer, "" for none; ``staged`` that it is in place.

    ``cost`` is told where that version was not taken yet.
    """

    words: str
    version: str = ""
    staged: bool = False
    reboot: str = ""
    cost: Cost | None = None


# What the server is told an error was, where it is told of one. Refusals by rule (older, failed
# before, on trial) are not failures and are not sent again at each check.
_REPORTED = {
    Code.METADATA_EXPIRED: ErrorCode.PAYLOAD_PUB_KEY_VERIFICATION,
    Code.METADATA_UNTRUSTED: ErrorCode.PAYLOAD_PUB_KEY_VERIFICATION,
    Code.PAYLOAD_MISMATCH: ErrorCode.PAYLOAD_HASH_MISMATCH,
    Code.WRONG_ARCHITECTURE: ErrorCode.PAYLOAD_VERIFICATION,
    Code.NO_ROOM: ErrorCode.DOWNLOAD_WRITE,
    Code.SLOT_FAILED: ErrorCode.NEW_ROOTFS_VERIFICATION,
    Code.DOWNLOAD_FAILED: ErrorCode.DOWNLOAD_TRANSFER,
}

# What may be the fault of one mirror, so that another is asked.
_OF_MIRROR = (
    Code.DOWNLOAD_FAILED,
    Code.METADATA_EXPIRED,
    Code.METADATA_UNTRUSTED,
    Code.PAYLOAD_MISMATCH,
)

Report = Callable[[str], None]


def update(
    system: System,
    options: Options,
    report: Report,
    progress: stage.Progress = lambda done, size: None,
) -> Outcome:
    """Look for an update and put it in place, or raise :class:`MachineError`.

    ``report`` gets one line per step; ``progress`` is called often while bytes come in.
    """
    config = configuration.read(system)
    for warning in config.warnings:
        report(f"warning: {warning}")
    if config.server == configuration.DISABLED:
        raise MachineError(
            Code.SWITCHED_OFF,
            "updates are switched off (SERVER=disabled)",
            "set SERVER in /etc/proa/update.conf to the address of an update server",
        )
    own, store = running(system), Store(system)
    with lock.held(system):
        _check_clock(system, own)
        patience = dataclasses.replace(options.patience, rate=config.download_rate)
        server = Server(system, config, own, patience, options.scheduled)
        run = _Run(system, options, own, store, server, report, progress)
        return run.go(config)


def _check_clock(system: System, own: Running) -> None:
    now = system.now()
    if now < own.built:
        raise MachineError(
            Code.CLOCK_NOT_SET,
            f"the clock is not set: it says {_day(now)}, and this system was made on "
            f"{_day(own.built)}; without the time no signature's expiry can be judged",
            "look at `timedatectl`; systemd-timesyncd sets the clock where it reaches a server",
        )


@dataclass(frozen=True)
class File:
    """A signed file: its bytes and its addresses."""

    size: int
    urls: Sequence[str]


@dataclass(frozen=True)
class Found:
    """What the repository vouches for: the manifest, its files, and payloads by name."""

    manifest: manifest.Manifest
    files: Mapping[str, File]
    payloads: Mapping[str, payload.Signed]


@dataclass(frozen=True)
class _Run:
    system: System
    options: Options
    running: Running
    store: Store
    server: Server
    report: Report
    progress: stage.Progress

    @property
    def _patience(self) -> fetch.Patience:
        return self.server.patience

    def go(self, config: configuration.Config) -> Outcome:
        offered = ""
        try:
            lock.show(self.system, lock.Progress("checking"))
            self.store.change(self._first_time)
            health.look_back(self.system, self.report)
            offer = self.server.check(self.store)
            if offer is None:
                return self._done(Outcome("no update for this machine now"), config)
            offered = str(offer.version)
            decision = plan.decide(self._situation(offer))
            if isinstance(decision, plan.Refusal):
                raise MachineError(decision.code, decision.message, decision.hint)
            if isinstance(decision, plan.Nothing):
                return self._done(Outcome(decision.words, offered, decision.staged), config)
            disk = slot.find(self.system)
            self.report(f"{offered} is on offer; checking the repository's signatures")
            found = self.system.apart(lambda: self._trusted_release(offer, disk))
            choice = self._choose(found, disk, config)
            if self.options.check_only:
                cost = self._cost(found, choice)
                words = f"{offered} is available: {_words(choice.ways[0], cost)}"
                return self._done(Outcome(words, offered, cost=cost), config)
            self._install(found, choice, disk)
            return self._done(Outcome(f"{offered} is staged", offered, staged=True), config)
        except MachineError as error:
            self._failed(error, offered)
            raise
        except OSError as error:
            trouble = stage.write_error(error)
            self._failed(trouble, offered)
            raise trouble from None
        except KeyboardInterrupt:
            self._note(Code.DOWNLOAD_FAILED, "interrupted; goes on from there next time", offered)
            raise

    def _first_time(self, state: State) -> State:
        aleph = state.aleph_version or str(self.running.version)
        return dataclasses.replace(state, aleph_version=aleph)

    def _situation(self, offer: Offer) -> plan.Situation:
        state, disk = self.store.load(), slot.find(self.system)
        entries = Loaders(self.system).entries()
        candidate, waiting = state.candidate, entries.get(disk.passive.name)
        found = health.situation(candidate, disk.running, entries, self.system.boot_id)
        staged = ""
        if candidate is not None and candidate.slot != disk.running:
            ready = waiting is not None and waiting.left != 0 and not disk.passive.empty
            staged = candidate.version if ready and candidate.armed else ""
        avoided = {v: f"it failed on this machine: {a.reason}" for v, a in state.failed.items()}
        avoided |= {v: a.reason for v, a in state.held.items()}
        return plan.Situation(
            running=self.running.version,
            offered=offer.version,
            staged=staged,
            on_trial=found.unsettled,
            avoided=avoided,
            force=self.options.force,
            allow_downgrade=self.options.allow_downgrade,
        )

    def _choose(self, found: Found, disk: slot.Disk, config: configuration.Config) -> plan.Choice:
        ways = [
            plan.Way(name, s.size, s.source, s.origin, s.encoder, s.scratch)
            for name, s in found.payloads.items()
        ]
        images = plan.Way("", sum(f.size for f in found.files.values()))
        self.system.state_dir.mkdir(parents=True, exist_ok=True)
        return plan.choose(
            [*ways, images],
            running=disk.root_hash,
            encoder=payload.encoder(),
            room=self.system.free(self.system.state_dir),
            setting=config.payload,
            given_up=self._given_up(found, disk),
        )

    def _given_up(self, found: Found, disk: slot.Disk) -> Mapping[str, str]:
        """Say of ways, by name, why earlier runs have given them up."""
        begun = self.store.load().download
        wanted = (str(found.manifest.version), disk.passive.name)
        if begun is None or (begun.version, begun.slot) != wanted:
            return {}
        # The lock is ours: a note that is open is of a run that died.
        tried = attempts.counted(begun, payload.kept_bytes(self.system))
        heads = ((name, signed.head_sha256) for name, signed in found.payloads.items())
        reasons = {name: attempts.why_not(tried[head]) for name, head in heads if head in tried}
        return {name: why for name, why in reasons.items() if why}

    def _cost(self, found: Found, choice: plan.Choice) -> Cost:
        best = choice.ways[0]
        writes = sum(file.size for file in found.files.values())
        last, seconds = self.store.load().transfer, None
        if last is not None and last.seconds > 0 and last.fetched + last.written > 0:
            speed = (last.fetched + last.written) / last.seconds
            seconds = round((best.size + writes) / speed, 1)
        return Cost(best.kind, best.origin, best.size, writes, seconds, choice.refused)

    def _install(self, found: Found, choice: plan.Choice, disk: slot.Disk) -> None:
        version = str(found.manifest.version)
        if slot.uuids_of(found.manifest.root_hash) == (
            disk.active.usr.uuid,
            disk.active.verity.uuid,
        ):
            raise MachineError(
                Code.BAD_ANSWER,
                f"{version} has the very /usr that runs as {self.running.version}; "
                "two slots with one content cannot be told apart",
                "build the release anew under a version of its own",
            )
        release = stage.Release(
            found.manifest,
            {name: file.urls for name, file in found.files.items()},
            [found.payloads[way.name] for way in choice.ways if way.name],
        )
        self.report(f"the way: {_words(choice.ways[0], self._cost(found, choice))}")
        self.report(
            f"writing {version} to slot {disk.passive.name}; slot {disk.running} keeps running"
        )
        self._tell(Event(EventType.DOWNLOAD_STARTED, EventResult.SUCCESS))
        work = stage.Staging(
            system=self.system,
            disk=disk,
            store=self.store,
            patience=self._patience,
            progress=self._shown(version),
            report=self.report,
        )
        transfer = stage.stage(work, release, str(self.running.version))
        self.report(
            f"{transfer.way}: {size_words(transfer.fetched)} fetched, "
            f"{size_words(transfer.written)} written in {transfer.seconds:.0f} s"
        )
        # Taken all the same: what stood against it is settled.
        self.store.change(
            lambda s: dataclasses.replace(
                s,
                failed=_less(s.failed, version),
                held=_less(s.held, version),
                transfer=transfer,
            )
        )
        finished = Event(EventType.DOWNLOAD_FINISHED, EventResult.SUCCESS)
        complete = Event(EventType.UPDATE_COMPLETE, EventResult.SUCCESS)
        self.store.change(lambda s: s.with_event(finished).with_event(complete))
        self.server.deliver(self.store)

    def _trusted_release(self, offer: Offer, disk: slot.Disk) -> Found:
        """Ask the repositories one after the other; what each says is checked by itself."""
        errors: list[MachineError] = []
        for number, base in enumerate(offer.bases, start=1):
            try:
                return self._look(offer, disk, base)
            except MachineError as error:
                if error.code not in _OF_MIRROR:
                    raise
                errors.append(error)
                if number < len(offer.bases):
                    self.report(f"{error.message}; trying the next address")
        # One that is down must not hide what is wrong with another.
        raise next((e for e in errors if e.code != Code.DOWNLOAD_FAILED), errors[-1])

    def _look(self, offer: Offer, disk: slot.Disk, base: str) -> Found:
        from proa.machine.trust import Repository  # slow to import, see there

        version = str(offer.version)
        repository = Repository(self.system, base, self._patience)
        signed = repository.find(f"{version}/{manifest.MANIFEST}")
        try:
            content = manifest.load(repository.read(signed, manifest.MAX_BYTES))
        except ManifestError as error:
            raise MachineError(Code.BAD_ANSWER, f"{signed.url}: {error}") from None
        if content.version != offer.version:
            raise MachineError(
                Code.METADATA_UNTRUSTED,
                f"{signed.url} is the manifest of {content.version}, not of {version}",
                "publish the release again",
            )
        if content.architecture != self.system.architecture:
            raise MachineError(
                Code.WRONG_ARCHITECTURE,
                f"{version} is made for {content.architecture}; "
                f"this machine is {self.system.architecture}",
                "give this machine a group whose channel has releases of its architecture",
            )
        # The repository that was looked at first, then the other mirrors of the same files.
        bases = list(dict.fromkeys([base, *offer.bases]))
        files = {}
        for name in manifest.PAYLOAD_FILES:
            wanted, target = content.files.get(name), repository.find(f"{version}/{name}")
            if wanted is None or (wanted.size, wanted.sha256) != (target.size, target.sha256):
                raise MachineError(
                    Code.METADATA_UNTRUSTED,
                    f"{target.url}: the manifest of {version} names another {name}",
                    "publish the release again",
                )
            files[name] = File(target.size, [target.at(base) for base in bases])
        names = (f"from-{disk.root_hash[:16]}.payload", "full.payload")
        payloads = {name: repository.payload(version, name, bases) for name in names}
        return Found(content, files, {name: p for name, p in payloads.items() if p is not None})

    def _shown(self, version: str) -> stage.Progress:
        last = 0.0

        def progress(done: int, size: int) -> None:
            nonlocal last
            self.progress(done, size)
            # Onlookers poll each few seconds; more often is work for nothing.
            if done >= size or time.monotonic() - last > 1:
                last = time.monotonic()
                operation = "verifying" if done >= size else "downloading"
                lock.show(self.system, lock.Progress(operation, version, done, size))

        return progress

    def _tell(self, event: Event) -> None:
        self.store.change(lambda state: state.with_event(event))
        self.server.deliver(self.store)

    def _done(self, outcome: Outcome, config: configuration.Config) -> Outcome:
        self._note(Code.OK, outcome.words, outcome.version)
        if outcome.staged and not self.options.check_only:
            arranged = reboot.schedule(self.system, config, self.store)
            outcome = dataclasses.replace(outcome, reboot=arranged)
        return outcome

    def _failed(self, error: MachineError, offered: str) -> None:
        """Keep what went wrong and tell the server; trouble with that must not hide the error."""
        with contextlib.suppress(OSError):
            self._keep(error, offered)

    def _keep(self, error: MachineError, offered: str) -> None:
        self._note(Code(error.code), error.message, offered)
        reported = _REPORTED.get(Code(error.code))
        if reported is not None and offered:
            self._tell(
                Event(
                    EventType.UPDATE_COMPLETE,
                    EventResult.ERROR,
                    errorcode=int(reported),
                    reason=error.message,
                    error_version=offered,
                )
            )

    def _note(self, code: Code, words: str, offered: str) -> None:
        self.store.update(check=Check(self.system.now(), int(code), words, offered))


def _words(way: plan.Way, cost: Cost) -> str:
    """Say what the chosen way takes, and why it was not a smaller one."""
    words = f"{way.words}, {size_words(cost.fetch)} to fetch and {size_words(cost.write)} to write"
    if cost.seconds is not None:
        words += f", about {cost.seconds:.0f} s as fast as the last time"
    return "; ".join([words, *(f"not {reason}" for reason in cost.refused)])


def _less(avoided: Mapping[str, Avoided], version: str) -> Mapping[str, Avoided]:
    return {v: a for v, a in avoided.items() if v != version}


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))
