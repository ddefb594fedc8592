"""How sshd lets in, which host keys it has, and keys that others publish."""

from __future__ import annotations

import base64
import functools
import hashlib
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    SSHCertificateBuilder,
    SSHCertificateType,
)
from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.access import SSHD
from proa.machine.cloudconfig.authorized import published_keys, with_keys
from proa.machine.cloudconfig.changes import AuthorizeKeys, SshdSettings, describe
from proa.machine.cloudconfig.keys.ssh import Ssh, public_part
from proa.machine.cloudconfig.metadata import Metadata
from proa.machine.cloudconfig.plan import plan, understand
from support.cloudconfig import Fake, mode_of, problems_of, statuses

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
KEY2 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9y me@there"
GITHUB = "https://api.github.com/users/alice/keys"
LAUNCHPAD = "https://launchpad.net/~alice/+sshkeys"


def document(keys: dict[str, str], more: str = "") -> str:
    return f"ssh_keys: {json.dumps(keys)}\n{more}"


@functools.cache
def private(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def public(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


ED25519 = ed25519.Ed25519PrivateKey.generate()
ECDSA = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(65537, 2048)
CERTIFICATE = (
    SSHCertificateBuilder()
    .public_key(ED25519.public_key())
    .serial(1)
    .type(SSHCertificateType.HOST)
    .key_id(b"x")
    .valid_principals([b"web-1"])
    .valid_after(0)
    .valid_before(2**40)
    .sign(ECDSA)
    .public_bytes()
    .decode()
)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# Passwords at sshd's door.


def test_sshd_takes_passwords_where_the_document_says_so(fake: Fake) -> None:
    fake.boot("ssh_pwauth: true\n")
    assert fake.text(SSHD[1:]).splitlines()[1:] == ["PasswordAuthentication yes"]
    assert fake.commands == ["systemctl --no-block try-reload-or-restart ssh.service"]


def test_our_word_to_sshd_comes_before_that_of_the_image() -> None:
    """sshd believes the first that it reads (sshd_config(5)), and reads in this order."""
    folder = Path(__file__).parents[2] / "os/rootfs/etc/ssh/sshd_config.d"
    (image,) = (path.name for path in folder.iterdir())
    assert Path(SSHD).name < image


@pytest.mark.parametrize(
    ("word", "said"),
    [
        *((word, "yes") for word in ("1", "'1'", "'yes'", "yes", "On", "TRUE")),
        *((word, "no") for word in ("0", "'0'", "'no'", "no", "Off", "'false '")),
    ],
)
def test_ssh_pwauth_may_be_said_in_all_words_that_cloud_init_takes(word: str, said: str) -> None:
    (settings, _) = plan(f"#cloud-config\nssh_pwauth: {word}\n".encode()).changes
    assert settings == SshdSettings((f"PasswordAuthentication {said}",))


@pytest.mark.parametrize("key", ["disable_root", "ssh_deletekeys", "ssh_quiet_keygen"])
@pytest.mark.parametrize("word", ["1", "0"])
def test_a_flag_may_be_a_number_as_in_cloud_init(key: str, word: str) -> None:
    as_word = {"1": "true", "0": "false"}[word]
    number, words = (plan(f"#cloud-config\n{key}: {w}\n".encode()) for w in (word, as_word))
    assert not number.refused
    assert number.changes == words.changes


@pytest.mark.parametrize("word", ["2", "10", "maybe", "1.0"])
def test_ssh_pwauth_in_other_words_is_refused(word: str) -> None:
    found = plan(f"#cloud-config\nssh_pwauth: {word}\n".encode())
    assert found.refused
    assert "ssh_pwauth wants true or false" in str(found.problems[0])


@pytest.mark.parametrize("word", ["unchanged", "~", "''"])
def test_ssh_pwauth_unchanged_leaves_sshd_alone(word: str) -> None:
    assert plan(f"#cloud-config\nssh_pwauth: {word}\n".encode()).changes == ()


def test_passwords_are_off_again_when_the_document_no_longer_says_on(fake: Fake) -> None:
    fake.boot("ssh_pwauth: true\n")
    fake.boot("hostname: [typo\n")
    assert (fake.root / SSHD[1:]).exists()
    fake.boot("hostname: web-1\n")
    assert not (fake.root / SSHD[1:]).exists()
    assert fake.commands == ["systemctl --no-block try-reload-or-restart ssh.service"]
    fake.boot("hostname: web-1\n")
    assert fake.commands == []


def test_what_the_owner_told_sshd_in_our_file_stays(fake: Fake) -> None:
    fake.boot("ssh_pwauth: true\n")
    (fake.root / SSHD[1:]).write_text("PasswordAuthentication no\n")
    assert statuses(fake.boot("ssh_pwauth: true\n"))["sshd settings (1)"] == "kept"


# Host keys.


def test_host_keys_are_placed_with_the_modes_that_sshd_wants(fake: Fake) -> None:
    fake.boot(document({"ed25519_private": private(ED25519), "ed25519_certificate": CERTIFICATE}))
    folder = fake.root / "etc/ssh"
    assert (folder / "ssh_host_ed25519_key").read_text() == private(ED25519)
    assert mode_of(folder / "ssh_host_ed25519_key") == 0o600
    assert (folder / "ssh_host_ed25519_key.pub").read_text().split() == public(ED25519).split()
    assert mode_of(folder / "ssh_host_ed25519_key.pub") == 0o644
    assert (folder / "ssh_host_ed25519_key-cert.pub").read_text().strip() == CERTIFICATE.strip()
    assert fake.text(SSHD[1:]).splitlines()[1:] == [
        "HostCertificate /etc/ssh/ssh_host_ed25519_key-cert.pub"
    ]


def test_a_kind_that_the_image_does_not_name_to_sshd_is_named(fake: Fake) -> None:
    fake.boot(document({"rsa_private": private(RSA), "rsa_public": f"{public(RSA)} web-1"}))
    assert fake.text(SSHD[1:]).splitlines()[1:] == ["HostKey /etc/ssh/ssh_host_rsa_key"]
    assert fake.text("etc/ssh/ssh_host_rsa_key.pub") == f"{public(RSA)} web-1\n"


def test_the_public_key_of_another_private_one_does_not_stay(fake: Fake) -> None:
    (fake.root / "etc/ssh").mkdir()
    (fake.root / "etc/ssh/ssh_host_ecdsa_key.pub").write_text("stale\n")
    pem = ECDSA.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    fake.boot(document({"ecdsa_private": pem.decode()}))
    assert fake.text("etc/ssh/ssh_host_ecdsa_key") == pem.decode()
    assert not (fake.root / "etc/ssh/ssh_host_ecdsa_key.pub").exists()


def test_host_keys_that_the_owner_made_anew_stay_and_missing_ones_come_back(fake: Fake) -> None:
    body = document({"ed25519_private": private(ED25519)})
    fake.boot(body)
    path = fake.root / "etc/ssh/ssh_host_ed25519_key"
    path.write_text("mine\n")
    assert statuses(fake.boot(body))["host key ed25519"] == "kept"
    assert path.read_text() == "mine\n"
    path.unlink()
    fake.boot(body)
    assert path.read_text() == private(ED25519)


def test_a_copied_disk_gets_host_keys_of_its_own_once(fake: Fake) -> None:
    (fake.root / "etc/ssh").mkdir()
    for name in ("ed25519_key", "ed25519_key.pub", "rsa_key", "dsa_key", "ecdsa_key-cert.pub"):
        (fake.root / f"etc/ssh/ssh_host_{name}").write_text("of another machine\n")
    fake.boot("ssh_deletekeys: true\n")
    assert sorted(path.name for path in (fake.root / "etc/ssh").iterdir()) == [
        "ssh_host_ecdsa_key",
        "ssh_host_ecdsa_key.pub",
        "ssh_host_ed25519_key",
        "ssh_host_ed25519_key.pub",
    ]
    assert fake.commands[0] == ("ssh-keygen -q -t ed25519 -N  -C  -f /etc/ssh/ssh_host_ed25519_key")
    fake.boot("ssh_deletekeys: true\n")
    assert fake.commands == []


def test_ssh_genkeytypes_makes_kinds_that_are_missing(fake: Fake) -> None:
    fake.boot("ssh_genkeytypes: [rsa, ed25519]\n")
    assert [command.split()[3] for command in fake.commands[:2]] == ["rsa", "ed25519"]
    assert "HostKey /etc/ssh/ssh_host_rsa_key" in fake.text(SSHD[1:])
    assert "dsa" in problems_of("ssh_genkeytypes: [dsa]\n")[0]


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"rsa_private": "hunter2" * 9}, "is not a private key"),
        ({"rsa_private": private(RSA) + "HostKey /x"}, "is not a private key"),
        ({"rsa_private": private(RSA).replace("\n", " ")}, "is not a private key"),
        ({"rsa_private": "x" * 20_000}, "is not a private key"),
        ({"rsa_public": private(RSA)}, "is not a public key"),
        ({"rsa_public": CERTIFICATE}, "is not a public key"),
        ({"ed25519_certificate": public(ED25519)}, "is not a certificate"),
        ({"ed25519_certificate": f"{CERTIFICATE.strip()}\n{KEY}"}, "is not a certificate"),
    ],
)
def test_what_is_no_host_key_is_refused_and_not_shown(keys: dict[str, str], complaint: str) -> None:
    (problem,) = (text for text in problems_of(document(keys)) if "error" in text)
    assert complaint in problem
    assert not any(value[40:50] in problem for value in keys.values())


def test_host_keys_that_sshd_cannot_use_are_told_by_name() -> None:
    assert "no DSA" in problems_of(document({"dsa_private": "x"}))[0]
    assert "there is no ecdsa_private" in problems_of(document({"ecdsa_public": public(ECDSA)}))[0]
    assert problems_of(document({"ecdsa_sk_private": "x"}))[0].endswith(
        'ssh_keys.ecdsa_sk_private is not a known key; ignored; did you mean "ecdsa_private"?'
    )


def test_a_private_host_key_shows_nowhere(fake: Fake) -> None:
    body = document({"ed25519_private": private(ED25519)})
    secret = private(ED25519).splitlines()[3]
    planned = plan(f"#cloud-config\n{body}".encode())
    shown = repr(planned) + repr(fake.boot(body)) + repr(fake.remembered) + repr(fake.commands)
    assert secret not in shown + "".join(describe(change) for change in planned.changes)


def test_the_public_part_of_a_private_key_is_found_in_it() -> None:
    for key in (ED25519, ECDSA, RSA):
        assert (public_part(private(key)) or "").split() == public(key).split()


@given(st.binary(max_size=200))
def test_no_private_key_is_too_odd_to_look_into(data: bytes) -> None:
    for body in (data, b"openssh-key-v1\0" + data):
        text = base64.b64encode(body).decode()
        found = public_part(f"-----BEGIN X-----\n{text}\n-----END X-----\n")
        assert found is None or found.isprintable() or found.endswith("\n")


def test_host_keys_are_told_on_the_console_once_after_they_were_made(fake: Fake) -> None:
    (fake.root / "etc/ssh").mkdir()
    (fake.root / "etc/ssh/ssh_host_ed25519_key.pub").write_text(f"{public(ED25519)} host\n")
    body = "ssh: {emit_keys_to_console: true}\n"
    fake.boot(body)
    blob = base64.b64decode(public(ED25519).split()[1])
    digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
    assert fake.console.splitlines() == [
        "-----BEGIN SSH HOST KEY FINGERPRINTS-----",
        f"SHA256:{digest} ssh-ed25519",
        "-----END SSH HOST KEY FINGERPRINTS-----",
        "-----BEGIN SSH HOST KEY KEYS-----",
        f"{public(ED25519)} host",
        "-----END SSH HOST KEY KEYS-----",
    ]
    fake.console = ""
    fake.boot(body)
    assert fake.console == ""


# Root, and the cloud's keys.


def test_root_gets_the_keys_only_where_disable_root_is_false(fake: Fake) -> None:
    (fake.root / "etc/passwd").write_text(
        fake.text("etc/passwd") + fake.text("etc/passwd").replace("core", "root")
    )
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    assert not (fake.root / "home/root").exists()
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\ndisable_root: false\n", Metadata(ssh_keys=(KEY2,)))
    assert KEY in fake.authorized("root")
    assert KEY2 in fake.authorized("root")
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    assert KEY not in fake.authorized("root")


def test_the_clouds_keys_are_left_out_where_the_document_says_so() -> None:
    cloud = Metadata(ssh_keys=(KEY2,))
    assert plan(b"#cloud-config\nallow_public_ssh_keys: false\n", cloud).changes == ()
    refused = plan(b"#cloud-config\nallow_public_ssh_keys: false\nhostname: [\n", cloud)
    assert refused.changes == (AuthorizeKeys("core", (KEY2,), keep=True),)


def test_a_redirected_user_only_hears_whom_to_log_in_as(fake: Fake) -> None:
    fake.boot("users: [{name: bob, ssh_redirect_user: true}]\n", Metadata(ssh_keys=(KEY,)))
    (line,) = (line for line in fake.authorized("bob").splitlines() if line[0] != "#")
    assert line == (
        "no-port-forwarding,no-agent-forwarding,no-X11-forwarding,command=\"echo 'Please login as"
        ' the user \\"core\\" rather than the user \\"bob\\".\';echo;sleep 10;exit 142" ' + KEY
    )
    assert KEY in fake.authorized("core").splitlines()


def test_a_redirection_without_keys_of_the_cloud_is_told() -> None:
    planned = plan(b"#cloud-config\nusers: [{name: bob, ssh_redirect_user: true}]\n")
    assert [str(problem) for problem in planned.problems] == [
        "warning: ssh_redirect_user of bob means nothing: the cloud has no ssh keys"
    ]


def test_keys_may_be_a_text_or_a_mapping_too() -> None:
    for form in (f"'{KEY}'", f"{{laptop: '{KEY}'}}"):
        config, problems = understand(f"#cloud-config\nssh_authorized_keys: {form}\n".encode())
        assert (config.ssh_authorized_keys, problems) == ((KEY,), ())


@pytest.mark.parametrize(
    "key",
    [
        *("disable_root_opts", "ssh_publish_hostkeys", "ssh_fp_console_blacklist"),
        *("ssh_key_console_blacklist", "authkey_hash"),
    ],
)
def test_what_is_not_done_about_ssh_is_told_by_name(key: str) -> None:
    assert f"warning: {key} is ignored" in problems_of(f"{key}: x\n")[0]


def test_what_is_so_already_is_taken_in_silence() -> None:
    body = "no_ssh_fingerprints: true\nssh_quiet_keygen: true\ndisable_root: true\n"
    config, problems = understand(f"#cloud-config\n{body}".encode())
    assert (config.ssh, problems) == (Ssh(), ())
    assert "no_ssh_fingerprints" in problems_of("no_ssh_fingerprints: false\n")[0]


# Keys that others publish.

IMPORT = "users: [{name: core, ssh_import_id: ['gh:alice', alice]}]\n"


def test_published_keys_are_fetched_once_and_put_beside_the_others(fake: Fake) -> None:
    fake.network = {GITHUB: json.dumps([{"id": 1, "key": KEY}]).encode(), LAUNCHPAD: KEY2.encode()}
    fake.boot(f"ssh_authorized_keys: ['{KEY2} x']\n{IMPORT}")
    assert [url for url, _ in fake.asked] == [GITHUB, LAUNCHPAD]
    lines = [line for line in fake.authorized().splitlines() if line[0] != "#"]
    assert lines == [f"{KEY2} x", KEY, KEY2]
    fake.boot(f"ssh_authorized_keys: ['{KEY2} x']\n{IMPORT}")
    assert fake.asked == []


def test_a_source_that_fails_costs_no_key_and_is_asked_again(fake: Fake) -> None:
    fake.network = {LAUNCHPAD: KEY2.encode()}
    outcome = fake.boot(IMPORT)
    assert statuses(outcome)["ssh keys of core from gh:alice, lp:alice"] == "failed"
    assert outcome.results[-1].note == "gh:alice: there: HTTP 404"
    assert KEY2 in fake.authorized()
    fake.network = {GITHUB: json.dumps([{"key": KEY}]).encode()}
    fake.boot(IMPORT)
    assert KEY in fake.authorized()
    assert KEY2 in fake.authorized()


def test_imported_keys_go_when_the_document_imports_none_any_more(fake: Fake) -> None:
    fake.network = {GITHUB: KEY.encode(), LAUNCHPAD: KEY2.encode()}
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n{IMPORT}")
    fake.boot(f"ssh_authorized_keys: ['{KEY}']\n")
    assert [line for line in fake.authorized().splitlines() if line[0] != "#"] == [KEY]
    assert fake.asked == []


def test_coreos_has_its_own_words_for_it(fake: Fake) -> None:
    url = "https://keys.example/list?token=hunter2"
    fake.network = {GITHUB: b"[]", GITHUB.replace("alice", "bob"): KEY.encode(), url: b"[]"}
    outcome = fake.boot(
        "users: [{name: core, coreos_ssh_import_github: alice,"
        f" coreos_ssh_import_github_users: [bob], coreos_ssh_import_url: '{url}'}}]\n"
    )
    assert [asked for asked, _ in fake.asked] == list(fake.network)
    assert KEY in fake.authorized()
    result = outcome.results[-1]
    assert result.what == "ssh keys of core from gh:alice, gh:bob, https://keys.example"
    assert "https://keys.example: no ssh key is there" in result.note
    assert "hunter2" not in repr(outcome)


def test_the_top_level_import_is_for_the_default_user(fake: Fake) -> None:
    fake.network = {GITHUB: KEY.encode()}
    fake.boot("user: bob\nssh_import_id: 'gh:alice'\n")
    assert KEY in fake.authorized("bob")


def test_an_answer_never_brings_an_option_or_anything_but_keys() -> None:
    answer = f'command="x" {KEY}\n{KEY2}\nssh-rsa oops\n\0\n'.encode()
    assert published_keys(answer) == (KEY2,)
    listed = [{"key": f"{KEY}\n{KEY2}"}, {"key": 1}, 2, {"key": f'command="x" {KEY}'}]
    assert published_keys(json.dumps(listed).encode()) == (KEY, KEY2)
    assert len(published_keys("\n".join(f"{KEY}{i}" for i in range(500)).encode())) == 100


@given(st.one_of(st.binary(max_size=300), st.text().map(lambda text: b"[" + text.encode())))
def test_any_answer_is_read_as_keys_or_nothing(data: bytes) -> None:
    assert all(key.isprintable() for key in published_keys(data))
    assert published_keys(b"[" * 100_000) == ()


def test_a_key_in_both_our_parts_stays_when_one_of_them_goes() -> None:
    from proa.machine.cloudconfig.authorized import _IMPORTED

    text = with_keys("", [KEY], keep=False)
    text = with_keys(text, [KEY], keep=False, part=_IMPORTED)
    assert KEY in with_keys(text, [], keep=False)
    assert with_keys(with_keys(text, [], keep=False), [], keep=False, part=_IMPORTED) == ""
