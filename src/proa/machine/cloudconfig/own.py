"""What the section ``proa`` asks for: health checks, and containers as units of systemd.

A container runs in the foreground of its unit, so that systemd starts, restarts and stops it and
its output is in the journal. Every text of the document is one quoted word there; the environment,
where passwords are, is a file of its own that only root reads.
"""

from __future__ import annotations

from collections.abc import Iterator

from proa.machine.cloudconfig.changes import Change, EnableUnit, StartUnit, WriteFile
from proa.machine.cloudconfig.keys.options import command_word
from proa.machine.cloudconfig.keys.proa import Container, Proa

HEALTH = "/etc/proa/health.d"
CONTAINERS = "/etc/proa/containers"
UNITS = "/etc/systemd/system"


def health_files(proa: Proa) -> Iterator[Change]:
    for check in proa.health_checks:
        yield WriteFile(f"{HEALTH}/{check.name}", check.script.encode(), 0o755)


def container_files(proa: Proa) -> Iterator[Change]:
    for container in proa.containers:
        if container.env:
            lines = "".join(f"{name}={value}\n" for name, value in container.env)
            yield WriteFile(env_file(container), lines.encode(), 0o600)


def container_units(proa: Proa) -> Iterator[Change]:
    for container in proa.containers:
        yield WriteFile(f"{UNITS}/{container.unit}", unit_file(container).encode())
        yield EnableUnit(container.unit)


def container_starts(proa: Proa) -> Iterator[Change]:
    for container in proa.containers:
        yield StartUnit(container.unit, (f"{UNITS}/{container.unit}", env_file(container)))


def env_file(container: Container) -> str:
    return f"{CONTAINERS}/{container.name}.env"


def unit_file(container: Container) -> str:
    name, image = command_word(container.name), command_word(container.image)
    run = ["--rm", "--name", name]
    if container.env:
        run += ["--env-file", command_word(env_file(container))]
    for port in container.ports:
        run += ["--publish", command_word(port)]
    for volume in container.volumes:
        run += ["--volume", command_word(volume)]
    run += [command_word(option) for option in container.options]
    run += [image, *(command_word(word) for word in container.command)]
    lines = [
        "# Made at boot from the cloud-config of this machine: proa.containers.",
        "[Unit]",
        f"Description=Container {container.name}",
        "Requires=docker.service",
        "After=docker.service network-online.target",
        "Wants=network-online.target",
        # A registry that is down for an hour is not the end of it.
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        "TimeoutStartSec=15min",
        # What a power cut left behind.
        f"ExecStartPre=-/usr/bin/docker rm --force {name}",
    ]
    if container.pull == "always":
        # "-": without a network the image that is there will do; if none is, the start fails.
        lines.append(f"ExecStartPre=-/usr/bin/docker pull --quiet {image}")
    elif container.pull == "never":
        run.insert(0, "--pull=never")
    lines += [
        f"ExecStart=/usr/bin/docker run {' '.join(run)}",
        f"ExecStop=/usr/bin/docker stop {name}",
        f"Restart={container.restart}",
        "RestartSec=5s",
        # What a program says that was asked to end (128 + SIGINT, SIGTERM): no failed unit.
        "SuccessExitStatus=130 143",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "".join(f"{line}\n" for line in lines)
