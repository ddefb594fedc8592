"""How the cloud-config benchmark counts keys, finds what was not done, and makes its figures."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks import cloudconfig, cloudconfig_effects, cloudconfig_guest
from benchmarks.cloudconfig_effects import Entry, State
from benchmarks.cloudconfig_guest import Boot, Stage

from proa.machine.cloudconfig.parse import load
from proa.wire.errors import UserError

TEXT = (Path(cloudconfig.__file__).parent / "cloudconfig.yaml").read_bytes()
DOCUMENT: Mapping[str, Any] = yaml.safe_load(TEXT)

PASSWD = "core:x:1000:1000:Proa:/home/core:/bin/bash\nalice:x:2001:1001:A:/home/a:/bin/sh\n"
GROUP = "core:x:1000:\noperators:x:1001:\nweb:x:1002:core,alice\n"


def state(**files: str) -> State:
    """A machine with these files; ``_`` stands for ``/`` in their names."""
    return State(
        {f"/{n.replace('_', '/')}": Entry(0o644, 0, 0, t.encode()) for n, t in files.items()}
    )


def test_the_document_has_at_least_forty_keys_that_do_something() -> None:
    assert len(cloudconfig_effects.leaf_keys(DOCUMENT)) >= 40


def test_every_key_of_the_document_has_a_check_and_no_check_is_without_a_key() -> None:
    assert set(cloudconfig_effects.leaf_keys(DOCUMENT)) == set(cloudconfig_effects.CHECKS)


def test_proa_reads_the_document_as_yaml() -> None:
    assert TEXT.startswith(b"#cloud-config\n")
    assert load(TEXT.decode()) is not None


def test_nothing_counts_as_done_on_an_empty_machine() -> None:
    missing = cloudconfig_effects.missing(DOCUMENT, State({}))
    assert missing == cloudconfig_effects.leaf_keys(DOCUMENT)


def test_leaf_keys_are_named_by_their_way_and_counted_once() -> None:
    document = {
        "hostname": "a",
        "groups": ["one", {"two": ["core"]}],
        "users": ["default", {"name": "a", "groups": ["x"]}, {"name": "b"}],
        "runcmd": ["a", ["b", "c"]],
        "ntp": {"servers": []},
    }
    assert cloudconfig_effects.leaf_keys(document) == (
        *("hostname", "groups", "groups[].two", "users[].name", "users[].groups"),
        *("runcmd", "ntp.servers"),
    )


def test_a_user_has_the_key_only_if_the_accounts_say_so() -> None:
    machine = state(etc_passwd=PASSWD, etc_group=GROUP)
    document = {"users": [{"name": "alice", "shell": "/bin/sh", "gecos": "B", "groups": ["web"]}]}
    assert cloudconfig_effects.missing(document, machine) == ("users[].gecos",)


def test_ssh_keys_count_only_in_a_private_file_of_their_user() -> None:
    document = {"ssh_authorized_keys": ["ssh-ed25519 AAAA one"]}
    machine = state(etc_passwd=PASSWD)
    path = "/home/core/.ssh/authorized_keys"
    for entry, missing in (
        (Entry(0o600, 1000, 1000, b"ssh-ed25519 AAAA one\n"), ()),
        (Entry(0o600, 0, 0, b"ssh-ed25519 AAAA one\n"), ("ssh_authorized_keys",)),
        (Entry(0o644, 1000, 1000, b"ssh-ed25519 AAAA one\n"), ("ssh_authorized_keys",)),
        (Entry(0o600, 1000, 1000, b"another\n"), ("ssh_authorized_keys",)),
    ):
        found = State({**machine.entries, path: entry})
        assert cloudconfig_effects.missing(document, found) == missing


def test_content_is_what_all_items_of_a_path_make_together() -> None:
    packed = base64.b64encode(gzip.compress(b"one\n")).decode()
    document = {
        "write_files": [
            {"path": "/etc/f", "content": packed, "encoding": "gz+b64"},
            {"path": "/etc/f", "content": "two\n", "append": True},
        ]
    }
    whole = cloudconfig_effects.missing(document, state(etc_f="one\ntwo\n"))
    assert "write_files[].content" not in whole
    assert "write_files[].append" not in whole
    part = cloudconfig_effects.missing(document, state(etc_f="one\n"))
    assert {"write_files[].content", "write_files[].append"} <= {*part}


def archive(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uid = len(data), 0o640, 7
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def left_by_cloud_init() -> dict[str, bytes]:
    return {
        "state.tar": archive({"etc/hostname": b"bench-1\n"}),
        "mounts": b"tmpfs /srv tmpfs rw 0 0\n",
        "hostname": b"bench-1\n",
        "said.final": b"done",
        "begin": b"100.5\n",
        "ready": b"102.0\n",
        "usage.all": b"9.00 6.00 1.00 40000\n",
        "status.all": b"0\n",
        "usage.generator": b"0.50 0.10 0.10 3000\n",
        "status.generator": b"0\n",
        "usage.local": b"2.00 0.01 0.01 2000\n",
        "status.local": b"0\n",
        "usage.network": b"1.00 0.01 0.01 2000\n",
        "status.network": b"0\n",
        "usage.config": b"3.00 0.01 0.01 2000\n",
        "status.config": b"0\n",
        "usage.final": b"Command exited with non-zero status 1\n1.00 0.01 0.01 2000\n",
        "status.final": b"1\n",
    }


def test_a_boot_is_read_from_what_the_guest_has_left() -> None:
    files = {
        f"./{peer}.0.{kind}/{name}": data
        for peer in ("cloud-init",)
        for kind in ("first", "second")
        for name, data in left_by_cloud_init().items()
    }
    kernel, boots = cloudconfig_guest.read_results(
        archive({"./kernel": b"6.12\n", **files}), [("cloud-init", 0)]
    )
    assert kernel == "6.12"
    assert [boot.kind for boot in boots] == ["first", "second"]
    boot = boots[0]
    assert boot.state.entries["/etc/hostname"] == Entry(0o640, 7, 0, b"bench-1\n")
    assert boot.state.said == "done"
    names = [stage.name for stage in boot.stages]
    assert names == ["generator", "start", "local", "network", "config", "final", "all"]
    assert boot.stages[-2] == Stage("final", 1.0, 0.02, 2000 * 1024, 1)


def test_a_guest_that_stopped_early_is_an_error() -> None:
    with pytest.raises(KeyError):
        cloudconfig_guest.read_results(archive({"kernel": b"6.12"}), [("proa", 0)])


def boot_of(peer: str, kind: str = "first", **elapsed: float) -> Boot:
    stages = tuple(Stage(name, t, t / 2, int(t * 1e6), 0) for name, t in elapsed.items())
    return Boot(peer, 0, kind, stages, state())


def test_sshd_waits_for_two_stages_of_cloud_init_and_for_all_of_a_run_in_one() -> None:
    staged = boot_of(
        "cloud-init", generator=1, start=2, local=3, network=4, config=5, final=6, all=19
    )
    assert cloudconfig.until_ssh(staged) == 10
    assert cloudconfig.until_all(staged) == 21
    single = boot_of("script", local=3)
    assert cloudconfig.until_ssh(single) == cloudconfig.until_all(single) == 3


def test_figures_are_medians_and_ratios_are_proas_by_the_others() -> None:
    document = {"hostname": "a"}
    boots = [boot_of("proa", local=t) for t in (1, 9, 2)] + [boot_of("script", local=4)]
    rows = cloudconfig.summary(boots, document)
    assert [(row.peer, row.all, row.memory, row.undone) for row in rows] == [
        ("proa", 2, 2_000_000, ("hostname",)),
        ("script", 4, 4_000_000, ("hostname",)),
    ]
    assert cloudconfig.ratios(rows) == [
        "proa / script, first boot: ssh 0.50, all 0.50, cpu 0.50, memory 0.50"
    ]


def test_a_check_that_nobodys_work_passes_stops_the_benchmark() -> None:
    idle = replace(boot_of("nothing"), state=State({}, hostname="a"))
    done = replace(idle, state=State({**state(etc_hostname="a\n").entries}, hostname="a"))
    assert cloudconfig.summary([idle], {"hostname": "a"}) == []
    with pytest.raises(UserError, match="hostname"):
        cloudconfig.summary([done], {"hostname": "a"})


def test_a_service_is_waited_for_in_one_boot_and_told_by_its_name() -> None:
    assert cloudconfig_guest.kinds("proa+silent") == ("first",)
    assert cloudconfig_guest.kinds("proa") == ("first", "second")
    boots = [
        boot_of("proa+at-once", local=1, network=2),
        boot_of("proa+slow=1", local=1, network=4),
    ]
    assert cloudconfig.waiting([*boots, boot_of("proa", local=9)]) == {
        "at-once": {"proa": 3},
        "slow=1": {"proa": 5},
    }


def test_by_default_all_peers_and_services_are_measured() -> None:
    args = cloudconfig.parse([])
    assert (args.peers, args.services) == ([*cloudconfig.PEERS], [*cloudconfig.SERVICES])
    assert cloudconfig.parse(["--services="]).services == []
