"""A document applied with the real programs of the image: useradd, chpasswd, visudo, ssh-keygen.

They run in a small tree of their own, taken from the package tree of the last ``proa build``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from proa import paths
from proa.factory import build, recipe
from proa.machine.cloudconfig.apply import Outcome, apply
from proa.machine.cloudconfig.machine import CommandFailed, Machine, database, run_program
from proa.machine.cloudconfig.plan import plan
from support import small_tree
from support.cloudconfig import statuses

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6Ew"
SECRET = "correct horse: battery"
PROGRAMS = (
    *("usr/sbin/useradd", "usr/sbin/groupadd", "usr/sbin/usermod", "usr/sbin/chpasswd"),
    *("usr/sbin/visudo", "usr/bin/sudo", "usr/libexec/sudo/sudoers.so", "usr/bin/passwd"),
    *("usr/bin/ssh-keygen", "usr/sbin/sshd", "usr/lib/openssh/sshd-session"),
    "usr/lib/x86_64-linux-gnu/security/pam_permit.so",
)
FILES = (
    *("etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid"),
    *("etc/login.defs", "etc/default/useradd", "etc/skel", "etc/nsswitch.conf", "etc/sudoers"),
    *("etc/sudo.conf", "etc/sudoers.d", "etc/ssh/sshd_config"),
)
OWN = Path(__file__).parents[2] / "os/rootfs/etc"


class Tree:
    """The image's accounts and programs below a directory; each boot remembers the one before."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.remembered: dict[str, str] = {}
        self.console = ""
        self.commands: list[str] = []
        self.network: dict[str, bytes] = {}
        self.machine = Machine(root, self.run, self.set_hostname, self.fetch, self.tell)

    def run(self, command: Sequence[str], stdin: bytes) -> None:
        self.commands.append(" ".join(command))
        if command[0] != "systemctl":
            run_program(("chroot", str(self.root), *command), stdin)

    def ask(self, *command: str) -> str:
        done = subprocess.run(
            ("chroot", self.root, *command), capture_output=True, text=True, check=True
        )
        return done.stdout

    def set_hostname(self, name: str) -> None:
        raise AssertionError(name)

    def fetch(self, url: str, headers: Mapping[str, str]) -> bytes:
        return self.network[url]

    def tell(self, text: str) -> None:
        self.console += text

    def boot(self, body: str) -> Outcome:
        self.commands = []
        planned = plan(f"#cloud-config\n{body}".encode(), remembered=self.remembered)
        assert not planned.refused
        outcome = apply(planned.changes, self.machine, self.remembered)
        self.remembered = outcome.remembered
        return outcome

    def entry(self, path: str, name: str) -> list[str]:
        return database(self.machine, path)[name]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The accounts of the image: core, and what Debian has."""
    source = small_tree.newest_package_tree(PROGRAMS)
    if source is None:
        packages = recipe.load(recipe.DEFAULT).packages
        _, _, source = build.prepare(packages, paths.cache_dir(), print)
    root = tmp_path_factory.mktemp("image")
    small_tree.make(source, root, PROGRAMS, FILES)
    shutil.copytree(OWN / "ssh", root / "etc/ssh", dirs_exist_ok=True)
    shutil.copytree(OWN / "sudoers.d", root / "etc/sudoers.d", dirs_exist_ok=True)
    for path in (root / "etc/sudoers.d").iterdir():
        path.chmod(0o440)
    (root / "run/sshd").mkdir()
    # sudo is asked what it would allow; whether root may ask is not in question.
    (root / "etc/pam.d").mkdir()
    kinds = ("auth", "account", "session")
    rules = "".join(f"{kind} required pam_permit.so\n" for kind in kinds)
    (root / "etc/pam.d/sudo").write_text(rules)
    subprocess.run(("chroot", root, "groupadd", "--force", "docker"), check=True)
    subprocess.run(
        ("chroot", root, "useradd", "--password", "*", "--create-home", "-G", "sudo", "core"),
        check=True,
    )
    return root


@pytest.fixture
def tree(image: Path, tmp_path: Path) -> Tree:
    root = tmp_path / "root"
    # cp keeps owners and the device; the libraries are most of it and never written.
    subprocess.run(("cp", "--archive", "--reflink=auto", image, root), check=True)
    return Tree(root)


def test_users_with_all_that_cloud_init_has_for_them(tree: Tree) -> None:
    outcome = tree.boot(
        f"""
groups: [{{web: [alice, core]}}]
users:
- default
- name: alice
  gecos: Alice of the web
  uid: 1500
  expiredate: 2030-12-31
  inactive: "5"
  primary_group: people
  groups: sudo, docker
  shell: /bin/bash
  passwd: {HASH}
  lock_passwd: true
  sudo: ALL=(ALL) NOPASSWD:ALL
  ssh_authorized_keys: ['{KEY}']
- name: svc
  system: true
  no_create_home: true
"""
    )
    assert not outcome.failed, outcome
    passwd = tree.entry("/etc/passwd", "alice")
    gid = tree.entry("/etc/group", "people")[2]
    assert passwd[2:] == ["1500", gid, "Alice of the web", "/home/alice", "/bin/bash"]
    shadow = tree.entry("/etc/shadow", "alice")
    assert (shadow[1], shadow[6], shadow[7]) == (f"!{HASH}", "5", "22279")
    assert tree.entry("/etc/group", "web")[3].split(",") == ["alice", "core"]
    assert tree.entry("/etc/group", "docker")[3] == "alice"
    assert int(tree.entry("/etc/passwd", "svc")[2]) < 1000
    assert tree.entry("/etc/shadow", "svc")[1] == "*"
    keys = tree.root / "home/alice/.ssh/authorized_keys"
    assert KEY in keys.read_text()
    assert (keys.stat().st_uid, keys.stat().st_mode & 0o777) == (1500, 0o600)
    assert "(ALL) NOPASSWD: ALL" in tree.ask("sudo", "-l", "-U", "alice")


def test_a_second_boot_runs_nothing(tree: Tree) -> None:
    body = (
        f"users: [{{name: a, plain_text_passwd: '{SECRET}', sudo: 'ALL=(ALL) ALL'}}]\n"
        "groups: [{web: [a]}]\nchpasswd: {users: [{name: core, type: RANDOM}]}\n"
        "ssh_pwauth: true\nssh_genkeytypes: [rsa]\n"
    )
    assert not tree.boot(body).failed
    before = {path: (tree.root / path).read_bytes() for path in ("etc/shadow", "etc/group")}
    assert "done" not in statuses(tree.boot(body)).values()
    assert tree.commands == []
    assert before == {path: (tree.root / path).read_bytes() for path in before}


def test_plain_and_random_passwords_become_strong_hashes(tree: Tree) -> None:
    tree.boot(
        f"users: [{{name: a, plain_text_passwd: '{SECRET}'}}]\n"
        "chpasswd: {expire: true, users: [{name: core, type: RANDOM}]}\n"
    )
    assert tree.entry("/etc/shadow", "a")[1].startswith("$y$")
    core = tree.entry("/etc/shadow", "core")
    assert (core[1][:3], core[2]) == ("$y$", "0")
    password = tree.console.strip().rpartition(":")[2]
    assert len(password) == 20
    for file in tree.root.glob("etc/*"):
        assert not file.is_file() or password.encode() not in file.read_bytes()


def test_a_password_is_locked_and_opened_again(tree: Tree) -> None:
    user = f"users: [{{name: a, passwd: '{HASH}'}}]\n"
    tree.boot(user)
    for word, expected in (("true", f"!{HASH}"), ("false", HASH)):
        assert not tree.boot(f"users: [{{name: a, lock_passwd: {word}}}]\n").failed
        assert tree.entry("/etc/shadow", "a")[1] == expected


def test_rules_that_would_break_sudo_stay_out(tree: Tree) -> None:
    outcome = tree.boot("users: [{name: a, sudo: 'ALL=(ALL'}]\n")
    assert statuses(outcome)["sudo rules (1)"] == "failed"
    assert not (tree.root / "etc/sudoers.d/90-proa-cloud-config").exists()
    assert "NOPASSWD: ALL" in tree.ask("sudo", "-l", "-U", "core")


def test_sshd_believes_the_document_and_not_the_image(tree: Tree) -> None:
    tree.boot("ssh_genkeytypes: [ed25519, ecdsa]\n")
    assert "passwordauthentication no" in tree.ask("sshd", "-T").splitlines()
    tree.boot("ssh_pwauth: true\nssh_genkeytypes: [rsa]\n")
    told = tree.ask("/usr/sbin/sshd", "-T").splitlines()
    assert "passwordauthentication yes" in told
    assert "hostkey /etc/ssh/ssh_host_rsa_key" in told
    assert "hostkey /etc/ssh/ssh_host_ed25519_key" in told
    assert (tree.root / "etc/ssh/ssh_host_rsa_key").stat().st_mode & 0o777 == 0o600


def test_a_host_key_of_the_document_is_the_one_that_sshd_has(tree: Tree) -> None:
    tree.ask("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", "/tmp/key")
    private = (tree.root / "tmp/key").read_text()
    tree.boot("ssh_genkeytypes: [ecdsa]\n")
    outcome = tree.boot(f"ssh_keys: {{ed25519_private: {private!r}}}\n".replace("'", '"'))
    assert not outcome.failed, outcome
    path = "/etc/ssh/ssh_host_ed25519_key"
    public = (tree.root / "tmp/key.pub").read_text().split()
    assert tree.ask("ssh-keygen", "-y", "-f", path).split() == public
    assert (tree.root / f"{path[1:]}.pub").read_text().split() == public
    tree.ask("/usr/sbin/sshd", "-t")


def test_a_user_who_cannot_be_made_is_told_in_useradds_words(tree: Tree) -> None:
    outcome = tree.boot("users: [{name: a, uid: 1}, {name: Bad.}, {name: b}]\n")
    assert statuses(outcome)["user a"] == "failed"
    assert "UID 1 is not unique" in outcome.results[0].note
    assert statuses(outcome)["user b"] == "done"


def test_a_program_that_is_not_there_is_an_error_of_its_change_alone(tree: Tree) -> None:
    (tree.root / "usr/sbin/visudo").unlink()
    outcome = tree.boot("users: [{name: a, sudo: 'ALL=(ALL) ALL'}]\n")
    assert statuses(outcome) == {"user a": "done", "sudo rules (1)": "failed"}
    with pytest.raises(CommandFailed):
        tree.run(("visudo",), b"")
