"""What each key says, what is wrong with a value, and that no secret is ever repeated."""

from __future__ import annotations

import base64
import gzip
import re
from pathlib import Path

import pytest

from proa.machine.cloudconfig.keys.units import DropIn, Unit
from proa.machine.cloudconfig.keys.users import User
from proa.machine.cloudconfig.keys.write_files import File
from proa.machine.cloudconfig.plan import plan, understand
from proa.machine.cloudconfig.values import clean_path
from support.cloudconfig import problems_of, said

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6EwYc1Vo8T0vPZbJ7Jv1"


def test_dashes_and_underscores_are_alike() -> None:
    with_dashes = said(f"ssh-authorized-keys:\n- {KEY}\n")
    assert with_dashes == said(f"ssh_authorized_keys:\n- {KEY}\n")
    assert with_dashes.ssh_authorized_keys == (KEY,)


def test_a_user_with_everything() -> None:
    config = said(
        f"""
users:
- name: alice
  passwd: {HASH}
  ssh-authorized-keys: [{KEY}]
  gecos: Alice of the web
  homedir: /srv/alice
  primary-group: web
  groups: [sudo, docker]
  shell: /bin/bash
  no-create-home: true
  no-user-group: yes
  system: on
"""
    )
    assert config.users == (
        User(  # noqa: S604 (the login shell of a user)
            name="alice",
            passwd=HASH,
            ssh_authorized_keys=(KEY,),
            gecos="Alice of the web",
            homedir="/srv/alice",
            primary_group="web",
            groups=("sudo", "docker"),
            shell="/bin/bash",
            no_create_home=True,
            no_user_group=True,
            system=True,
        ),
    )


def test_groups_may_be_one_text_as_in_cloud_init() -> None:
    assert said("users: [{name: a, groups: 'sudo, docker'}]").users[0].groups == ("sudo", "docker")


def test_a_file_is_0644_and_roots_unless_it_says_otherwise() -> None:
    assert said("write_files: [{path: /srv/a, content: hi}]").write_files == (
        File("/srv/a", b"hi", 0o644, "root:root"),
    )


@pytest.mark.parametrize("mode", ["600", "0600", "'0600'", "0o600"])
def test_permissions_are_octal_text_however_they_are_written(mode: str) -> None:
    body = f"write_files: [{{path: /srv/a, permissions: {mode}}}]"
    assert said(body).write_files[0].mode == 0o600


@pytest.mark.parametrize("name", ["gz+base64", "gzip+base64", "gz+b64", "gzip+b64"])
def test_every_packed_encoding_is_taken(name: str) -> None:
    packed = base64.b64encode(gzip.compress(b"hello")).decode()
    body = f"write_files: [{{path: /srv/a, encoding: {name}, content: {packed}}}]"
    assert said(body).write_files[0].content == b"hello"


def test_base64_and_binary_are_taken() -> None:
    for name in ("b64", "base64"):
        body = f"write_files: [{{path: /srv/a, encoding: {name}, content: aGVs bG8=}}]"
        assert said(body).write_files[0].content == b"hello"
    packed = base64.b64encode(gzip.compress(b"hello")).decode()
    body = f"write_files: [{{path: /srv/a, encoding: gz, content: !!binary {packed}}}]"
    assert said(body).write_files[0].content == b"hello"


def test_links_that_every_machine_has_are_resolved_beforehand() -> None:
    assert clean_path("/var/run//x/./y") == "/run/x/y"
    assert clean_path("/var/lock/a") == "/run/lock/a"
    assert clean_path("/usr/local/bin/x") == "/var/usrlocal/bin/x"
    assert clean_path("/usr//local/") == "/var/usrlocal"


def test_a_program_may_go_where_everybody_puts_programs() -> None:
    config = said("write_files: [{path: /usr/local/bin/hi, content: x, permissions: '0755'}]")
    (file,) = config.write_files
    assert (file.path, file.mode) == ("/var/usrlocal/bin/hi", 0o755)


def test_a_certificate_where_debian_collects_them_is_told_of_ca_certs() -> None:
    path = "/usr/local/share/ca-certificates/own.crt"
    (problem,) = problems_of(f"write_files: [{{path: {path}, content: x}}]")
    assert "nothing reads it: a certificate to be trusted goes into ca_certs" in problem


def test_update_settings_are_taken_and_a_bare_off_is_off() -> None:
    config = said(
        "coreos: {update: {group: beta, reboot-strategy: off,"
        " server: 'http://10.0.2.2:8080/v1/update/'}}"
    )
    assert config.update == (
        ("GROUP", "beta"),
        ("REBOOT_STRATEGY", "off"),
        ("SERVER", "http://10.0.2.2:8080/v1/update/"),
    )


def test_a_unit_with_everything() -> None:
    config = said(
        """
coreos:
  units:
  - name: web@1.service
    enable: true
    runtime: true
    command: start
    content: "[Service]\\n"
    drop-ins:
    - {name: 10-x.conf, content: "[Unit]\\n"}
"""
    )
    drop_ins = (DropIn("10-x.conf", "[Unit]\n"),)
    expected = Unit("web@1.service", "[Service]\n", drop_ins, True, True, False, "start")
    assert config.units == (expected,)


def test_the_old_way_to_write_a_drop_in_works() -> None:
    (unit,) = said("coreos: {units: [{name: a.service.d/10-x.conf, content: '[Unit]'}]}").units
    assert unit == Unit("a.service", None, (DropIn("10-x.conf", "[Unit]"),))


def test_an_unknown_key_is_told_by_name_and_line_with_the_likely_right_one() -> None:
    assert problems_of("hostname: a\nwrite_file: []\n") == [
        'line 3: warning: write_file is not a known key; ignored; did you mean "write_files"?'
    ]
    assert problems_of("users:\n- name: a\n  pasword: x\n") == [
        'line 4: warning: users[0].pasword is not a known key; ignored; did you mean "passwd"?'
    ]


def test_keys_that_others_take_are_told_what_to_do_instead() -> None:
    assert "run it in a container" in problems_of("packages: [nginx]\n")[0]
    assert "belongs beside coreos" in problems_of("coreos: {write_files: []}\n")[0]
    for key, reason in (("doas", "sudo"), ("snapuser", "no snap"), ("selinux_user", "SELinux")):
        assert reason in problems_of(f"users: [{{name: a, {key}: x}}]\n")[0]


def test_an_address_that_nobody_knows_is_left_out_and_told() -> None:
    body = "write_files:\n- path: /srv/a\n  content: IP=$private_ipv4\n"
    (problem,) = problems_of(body)
    assert problem.startswith("line 4: warning: $private_ipv4 ")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("hostname: -a\n", 'hostname "-a" is not a host name'),
        ("hostname: web_1\n", 'is not a host name: letters, digits and "-"'),
        (f"hostname: {'a' * 65}\n", "at most 64 characters"),
        ('hostname: "a\\nb"\n', "is not a host name"),
        ("hostname: [a]\n", "hostname wants a text"),
        ("users: {name: a}\n", "users.name wants true or false"),
        ("users: [bob!]\n", 'users[0] "bob!" is not a valid name'),
        ("users: [{name: '-r'}]\n", 'users[0].name "-r" is not a valid name'),
        ("users: [{name: 'a:b'}]\n", "is not a valid name"),
        ("users: [{name: a, groups: ['x,y']}]\n", 'users[0].groups "x,y" is not a valid name'),
        ("users: [{name: a, shell: 'bash'}]\n", "is not the absolute path of a program"),
        ("users: [{name: a, gecos: 'x:y'}]\n", "may not contain a colon"),
        ("users: [{name: a, homedir: /srv/../etc}]\n", 'must not contain ".."'),
        ("users: [{name: a, system: maybe}]\n", "users[0].system wants true or false"),
        ("write_files: [{content: x}]\n", "write_files[0] has no path"),
        ("write_files: [{path: etc/x}]\n", "must begin with /"),
        ("write_files: [{path: /etc/../x}]\n", 'must not contain ".."'),
        ("write_files: [{path: /}]\n", "is not a usable path"),
        ('write_files: [{path: "/etc/a\\nb"}]\n', "is not a usable path"),
        ("write_files: [{path: /usr/bin/x}]\n", "is part of the read-only system"),
        ("write_files: [{path: //usr/./bin/x}]\n", "is part of the read-only system"),
        ("write_files: [{path: /lib/x}]\n", "is part of the read-only system"),
        ("write_files: [{path: /usr/localbin/x}]\n", "put it under /usr/local, /opt, /etc or"),
        ("write_files: [{path: /usr/local/../bin/x}]\n", 'must not contain ".."'),
        ("write_files: [{path: /usr/lib/x}]\n", "run it in a container, or bring it as a sysext"),
        ("write_files: [{path: /proc/sys/x}]\n", "belongs to the kernel"),
        ("write_files: [{path: /boot/x}]\n", "holds the boot images"),
        ("write_files: [{path: /srv/a, permissions: 999}]\n", "is not an octal mode"),
        ("write_files: [{path: /srv/a, permissions: rw}]\n", "is not an octal mode"),
        ("write_files: [{path: /srv/a, owner: 'a b'}]\n", "is not a user or user:group"),
        ("write_files: [{path: /srv/a, encoding: rot13}]\n", "is not known"),
        ("write_files: [{path: /srv/a, encoding: b64, content: '*'}]\n", "is not base64"),
        ("write_files: [{path: /srv/a, encoding: gz, content: x}]\n", "gzip data"),
        ("coreos: {update: {reboot-strategy: sometimes}}\n", "is not one of reboot, off"),
        ("coreos: {update: {group: 'a b'}}\n", "is not a group name"),
        ('coreos: {update: {server: "http://x\\nGROUP=y"}}\n', "is not an http or https address"),
        ("coreos: {units: [{name: ../../x.service}]}\n", "is not the name of a unit"),
        ("coreos: {units: [{name: ../../x}]}\n", "is not the name of a unit"),
        ("coreos: {units: [{name: ../a.service.d/x.conf, content: x}]}\n", "not the name of a"),
        ("coreos: {units: [{name: -x}]}\n", "is not the name of a unit"),
        ("coreos: {units: [{name: a.service, command: explode}]}\n", "is not one of start"),
        (
            "coreos: {units: [{name: a.service, drop-ins: [{name: ../x.conf, content: y}]}]}\n",
            'is not a file name like "10-web.conf"',
        ),
    ],
)
def test_a_bad_value_refuses_the_whole_document(body: str, complaint: str) -> None:
    planned = plan(f"#cloud-config\nwrite_files_x: 1\n{body}".encode())
    assert planned.refused
    assert planned.changes == ()
    errors = [str(problem) for problem in planned.problems if problem.level == "error"]
    assert len(errors) == 1
    assert errors[0].startswith("line 3: error: ")
    assert complaint in errors[0]


def test_every_error_is_told_at_once_in_the_order_of_the_lines() -> None:
    body = "coreos: {units: [{name: x}]}\nwrite_files: [{path: x}]\nhostname: '?'\n"
    assert [problem.split(":")[0] for problem in problems_of(body)] == [
        "line 2",
        "line 3",
        "line 4",
    ]


def test_a_thousand_errors_are_told_as_a_hundred_and_a_number() -> None:
    found = problems_of("coreos: {units: [" + "{name: x}, " * 1000 + "]}")
    assert len(found) == 101
    assert found[-1] == "error: and 900 more problems"


def test_an_owner_that_is_a_file_of_its_own_by_a_slip_is_told_and_refuses_nothing() -> None:
    body = "write_files:\n- owner: www-data\n- path: /srv/a\n"
    assert problems_of(body) == [
        "line 3: warning: write_files[0] has no path and no content; ignored;"
        " does it belong to the next item?"
    ]


def test_a_line_that_is_no_public_key_is_left_out_and_the_others_stay() -> None:
    config, problems = understand(f"#cloud-config\nssh_authorized_keys: [x, {KEY}]\n".encode())
    assert config.ssh_authorized_keys == (KEY,)
    assert [str(problem) for problem in problems] == [
        "line 2: warning: ssh_authorized_keys[0] is not a public ssh key; left out"
    ]


def test_a_private_key_or_password_in_the_wrong_place_is_never_repeated() -> None:
    secret = "hunter2-correct-horse"
    for body in (
        f"users: [{{name: a, passwd: {secret}}}]\n",
        f"users: [{{name: a, plain_text_passwd: {secret}}}]\n",
        f"ssh_authorized_keys: ['-----BEGIN OPENSSH PRIVATE KEY----- {secret}']\n",
        f"write_files: [{{path: /srv/a, encoding: b64, content: '*{secret}'}}]\n",
        f"coreos: {{update: {{server: 'ftp://user:{secret}@x'}}}}\n",
        f"password: {secret}\n\tx\n",
        f"x: !!binary {secret}\n",
        f"x: [{secret}\n",
    ):
        found = problems_of(body)
        assert found
        assert all(secret not in problem for problem in found)


def test_secrets_do_not_show_in_a_repr_either() -> None:
    config = said(
        f"users: [{{name: a, passwd: '{HASH}', ssh_authorized_keys: ['{KEY}']}}]\n"
        "write_files: [{path: /srv/a, content: topsecret}]\n"
    )
    shown = repr((config, plan(b"").changes))
    assert HASH not in shown
    assert KEY not in shown
    assert "topsecret" not in shown


def test_the_examples_of_the_guide_are_taken_without_a_word() -> None:
    guide = Path(__file__).parents[2] / "docs/cloud-config.md"
    examples = re.findall(r"```yaml\n(#cloud-config\n.*?)```", guide.read_text(), re.DOTALL)
    assert examples
    for example in examples:
        planned = plan(example.encode())
        assert planned.problems == ()
        assert planned.changes
