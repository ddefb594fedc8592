"""Users, groups, sudo and passwords: what cloud-init's keys make, and that no secret gets out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proa.machine.cloudconfig.access import SUDOERS
from proa.machine.cloudconfig.changes import (
    EnsureUser,
    SetPassword,
    SudoRules,
    WriteFile,
    describe,
    wish,
)
from proa.machine.cloudconfig.document import _KNOWN
from proa.machine.cloudconfig.keys.groups import Group
from proa.machine.cloudconfig.keys.passwords import Password
from proa.machine.cloudconfig.keys.users import _KNOWN as _KNOWN_OF_USER
from proa.machine.cloudconfig.keys.users import User, merged
from proa.machine.cloudconfig.plan import plan, understand
from proa.machine.record import replace
from support.cloudconfig import Fake, mode_of, problems_of, said, statuses

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ9x me@here"
HASH = "$6$salt$QUtVdqDLMYGfBGrpDXH0mHRhnJcJcBPnBYYcTtkyJ0jqPZ0m1J7hGrNqNaYBtF6Ew"
SECRET = "hunter2-correct-horse"


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


# The forms in which users are written.


@pytest.mark.parametrize(
    "body",
    [
        "users: [default, alice, bob]",
        "users: [default, 'alice,bob']",
        "users: 'default, alice, bob'",
        "users: {default: true, alice: true, bob: {}, carol: false}",
        "users: [{name: alice}, {name: bob}]",
    ],
)
def test_every_form_of_cloud_init_for_users_is_taken(body: str) -> None:
    assert said(body).users == (User("alice"), User("bob"))


def test_the_item_default_is_the_user_that_the_image_brings(fake: Fake) -> None:
    assert said("users: [default]").users == ()
    fake.boot("users: [default, {name: default, groups: [docker, sudo]}]\n")
    assert fake.commands == ["usermod --append --groups sudo -- core"]


def test_what_one_entry_for_a_user_leaves_open_a_later_one_may_say() -> None:
    first = User("a", groups=("x",), uid=7)
    second = User("a", groups=("y", "x"), uid=8, gecos="A")
    assert merged((first, User("b"), second)) == (
        User("a", groups=("x", "y"), uid=7, gecos="A"),
        User("b"),
    )


def test_user_takes_the_place_of_core(fake: Fake) -> None:
    body = f"user: bob\nssh_authorized_keys: ['{KEY}']\n"
    fake.boot(body)
    assert fake.commands[-1] == (
        "useradd --password * --groups sudo,docker,systemd-journal,adm"
        " --shell /bin/bash --create-home -- bob"
    )
    assert KEY in fake.authorized("bob")
    assert not (fake.root / "home/core/.ssh/authorized_keys").exists()


def test_cloud_inits_keys_for_an_account_reach_useradd(fake: Fake) -> None:
    fake.boot(
        "users: [{name: a, uid: 1500, expiredate: 2030-12-31, inactive: '5',"
        " primary_group: web, groups: {sudo: [], docker: []}}]\n"
    )
    assert fake.commands == [
        "groupadd -- web",
        "useradd --password * --gid web --groups sudo,docker --uid 1500"
        " --expiredate 2030-12-31 --inactive 5 --create-home -- a",
    ]


def test_a_shell_that_the_image_has_not_locks_nobody_out() -> None:
    config, (problem,) = understand(b"#cloud-config\nusers: [{name: a, shell: /usr/bin/zsh}]\n")
    assert config.users[0].shell == "/bin/bash"
    assert str(problem) == (
        'line 2: warning: users[0].shell "/usr/bin/zsh" is not on Proa, and sshd lets nobody in'
        " whose shell is missing; /bin/bash is taken"
    )


@pytest.mark.parametrize("said_of_it", ["inactive: true", "ssh_import_id: None"])
def test_what_cloud_inits_own_old_examples_say_to_no_effect_refuses_no_document(
    said_of_it: str,
) -> None:
    config, problems = understand(f"#cloud-config\nusers: [{{name: a, {said_of_it}}}]\n".encode())
    assert config.users == (User("a"),)
    (problem,) = problems
    assert (problem.level, "ignored" in problem.message) == ("warning", True)


def test_what_is_for_new_users_only_is_told_of_one_who_exists(fake: Fake) -> None:
    outcome = fake.boot("users: [{name: core, uid: 1500, shell: /bin/bash, gecos: Me}]\n")
    assert fake.commands == []
    assert outcome.results[0].note == "the user exists and keeps its uid, gecos"


def test_groups_that_are_missing_are_made_unless_the_document_says_not_to(fake: Fake) -> None:
    outcome = fake.boot("users: [{name: a, groups: [wheel], create_groups: false}]\n")
    assert "groupadd" not in " ".join(fake.commands)
    assert outcome.results[0].note == "there is no group wheel"


# Groups.


@pytest.mark.parametrize(
    ("body", "groups"),
    [
        ("groups: [a, b]", (Group("a"), Group("b"))),
        ("groups: a, b", (Group("a"), Group("b"))),
        ("groups: [a: [x, y], b: z]", (Group("a", ("x", "y")), Group("b", ("z",)))),
        ("groups: {a: 'x,y', b: ~}", (Group("a", ("x", "y")), Group("b"))),
        ("groups: [a, {a: [x]}, {a: [x, y]}]", (Group("a", ("x", "y")),)),
    ],
)
def test_every_form_of_groups_is_taken(body: str, groups: tuple[Group, ...]) -> None:
    assert said(body).groups == groups


def test_groups_are_made_before_users_and_joined_after(fake: Fake) -> None:
    body = "groups: [{web: [alice, nobody9]}]\nusers: [{name: alice}]\n"
    outcome = fake.boot(body)
    assert fake.commands == [
        "groupadd -- web",
        "useradd --password * --create-home -- alice",
        "usermod --append --groups web -- alice",
    ]
    assert outcome.results[-1].note == "there is no user nobody9"
    assert "done" not in statuses(fake.boot(body)).values()
    assert fake.commands == []


def test_a_member_whom_the_owner_removed_does_not_come_back(fake: Fake) -> None:
    fake.boot("groups: [{docker: [core]}]\n")
    (fake.root / "etc/group").write_text("docker:x:101:\n")
    fake.boot("groups: [{docker: [core]}]\n")
    assert fake.commands == []


# sudo.


def test_sudo_rules_are_checked_and_put_where_only_root_reads(fake: Fake) -> None:
    body = (
        "users: [{name: a, sudo: 'ALL=(ALL) NOPASSWD:ALL'},"
        " {name: b, sudo: ['ALL=(root) /bin/true', 'ALL=(root) /bin/false']},"
        " {name: c, sudo: false}, {name: d, sudo: ~}]\n"
    )
    fake.boot(body)
    text = fake.text(SUDOERS[1:])
    assert text.splitlines()[1:] == [
        "a ALL=(ALL) NOPASSWD:ALL",
        "b ALL=(root) /bin/true",
        "b ALL=(root) /bin/false",
    ]
    assert mode_of(fake.root / SUDOERS[1:]) == 0o440
    assert fake.stdin[fake.commands.index("visudo --check --quiet --file=-")] == text.encode()


def test_rules_that_sudo_does_not_understand_are_not_put_in_place(fake: Fake) -> None:
    fake.boot("users: [{name: a, sudo: 'ALL=(ALL) ALL'}]\n")
    before = fake.text(SUDOERS[1:])
    fake.broken = {"visudo"}
    outcome = fake.boot("users: [{name: a, sudo: 'ALL=(ALL'}]\n")
    assert statuses(outcome)["sudo rules (1)"] == "failed"
    assert fake.text(SUDOERS[1:]) == before


def test_sudo_rules_go_with_the_document_and_an_edit_of_the_owner_stays(fake: Fake) -> None:
    body = "users: [{name: a, sudo: 'ALL=(ALL) ALL'}]\n"
    fake.boot(body)
    path = fake.root / SUDOERS[1:]
    path.chmod(0o600)
    path.write_text("# mine\n")
    assert statuses(fake.boot(body))["sudo rules (1)"] == "kept"
    fake.boot("hostname: [typo\n")
    assert path.read_text() == "# mine\n"
    fake.boot("users: [{name: a}]\n")
    assert not path.exists()
    path.write_text("# mine again\n")
    fake.boot("users: [{name: a}]\n")
    assert path.exists()


@pytest.mark.parametrize(
    ("rule", "complaint"),
    [
        ('"ALL=(ALL) ALL\\nmallory ALL=(ALL) ALL"', "must be one line"),
        ('"ALL=(ALL) ALL\\\\"', "ends in a backslash"),
        ('"ALL=(ALL) ALL\\\\  "', "ends in a backslash"),
        ('"ALL=(ALL) ALL\\u2028x"', "must be one line"),
        ("yes please", "is not a rule like"),
        ("true", "is not a rule like"),
        (f"ALL={'x' * 1100}", "is longer than"),
    ],
)
def test_a_sudo_rule_never_becomes_another_line(rule: str, complaint: str) -> None:
    (problem,) = problems_of(f"users: [{{name: a, sudo: {rule}}}]\n")
    assert "users[0].sudo" in problem
    assert complaint in problem


@pytest.mark.parametrize("name", ["ALL", "Defaults", "User_Alias", "ADMINS", "0"])
def test_a_user_named_like_a_word_of_sudoers_gets_no_rule(name: str) -> None:
    (problem,) = problems_of(f"users: [{{name: '{name}', sudo: 'ALL=(ALL) ALL'}}]\n")
    assert "means something else to sudo" in problem


@given(st.text(max_size=60), st.text(max_size=12))
def test_whatever_a_rule_is_each_line_of_the_file_is_of_its_user(rule: str, name: str) -> None:
    document = {"users": [{"name": name, "sudo": [rule, "ALL=(ALL) ALL"]}]}
    planned = plan(b"#cloud-config\n" + json.dumps(document).encode())
    for change in planned.changes:
        if isinstance(change, SudoRules):
            assert all(user == name for user, _ in change.rules)
            assert all("\n" not in line and line[-1] != "\\" for _, line in change.rules)


# Passwords of users.


def test_a_password_given_as_hashed_passwd_is_one(fake: Fake) -> None:
    fake.boot(f"users: [{{name: a, hashed_passwd: '{HASH}', passwd: '$6$a$b'}}]\n")
    assert fake.stdin[-1] == f"a:{HASH}\n".encode()


def test_a_user_with_lock_passwd_never_has_an_open_password(fake: Fake) -> None:
    fake.boot(f"users: [{{name: a, passwd: '{HASH}', lock_passwd: true}}]\n")
    assert fake.stdin[-1] == f"a:!{HASH}\n".encode()
    fake.boot(f"users: [{{name: a, passwd: '{HASH}', lock_passwd: false}}]\n")
    assert fake.stdin[-1] == f"a:{HASH}\n".encode()


def test_lock_passwd_alone_locks_a_password_or_opens_it_again(fake: Fake) -> None:
    (fake.root / "etc/shadow").write_text(f"core:{HASH}:1::::::\n")
    fake.boot("users: [{name: core, lock_passwd: true}]\n")
    assert fake.commands == ["usermod --lock -- core"]
    (fake.root / "etc/shadow").write_text(f"core:!{HASH}:1::::::\n")
    fake.boot("users: [{name: core, lock_passwd: false}]\n")
    assert fake.commands == ["usermod --unlock -- core"]
    for nothing in ("*", "!", "!*"):
        (fake.root / "etc/shadow").write_text(f"core:{nothing}:1::::::\n")
        fake.remembered = {}
        fake.boot("users: [{name: core, lock_passwd: false}]\n")
        assert fake.commands == []


def test_a_plain_password_is_hashed_on_the_machine_and_warned_of(fake: Fake) -> None:
    body = f"users: [{{name: a, plain_text_passwd: {SECRET}}}]\n"
    (problem,) = problems_of(body)
    assert "warning: users[0].plain_text_passwd is a password in plain text" in problem
    fake.boot(body)
    assert fake.commands[-1] == "chpasswd --crypt-method YESCRYPT"
    assert fake.stdin[-1] == f"a:{SECRET}\n".encode()
    fake.boot(body)
    assert fake.commands == []


def test_new_keys_or_rules_for_a_user_do_not_reset_a_password_that_was_changed(fake: Fake) -> None:
    fake.boot(f"users: [{{name: a, plain_text_passwd: {SECRET}}}]\n")
    fake.boot(
        f"users: [{{name: a, plain_text_passwd: {SECRET}, sudo: 'ALL=(ALL) ALL',"
        f" ssh_authorized_keys: ['{KEY}']}}]\n"
    )
    assert not any("chpasswd" in command for command in fake.commands)


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ("users: [{name: a, uid: 0}]\n", "is not a number from 1 to"),
        ("users: [{name: a, uid: 99999999999999}]\n", "is not a number from 1 to"),
        ("users: [{name: a, uid: x}]\n", "is not a number from 1 to"),
        ("users: [{name: a, expiredate: tomorrow}]\n", "is not a date like"),
        ("users: [{name: a, expiredate: 2030-02-31}]\n", "is not a date like"),
        ("users: [{name: a, inactive: soon}]\n", "is not a number from -1 to"),
        ("users: [{name: a, groups: {'x y': []}}]\n", "is not a valid name"),
        ("users: {a: [x]}\n", "wants a mapping"),
        ("groups: [{'a b': []}]\n", "is not a valid name"),
        ("groups: [{a: ['x:y']}]\n", "is not a valid name"),
        ("groups: [[a]]\n", "wants names"),
        (f"users: [{{name: a, ssh_redirect_user: true, ssh_authorized_keys: ['{KEY}']}}]\n", "no"),
        ("users: [{name: a, ssh_import_id: ['x y', 'gh:a/../b']}]\n", "is not like"),
        ("users: [{name: a, coreos_ssh_import_github: 'a/b'}]\n", "is no GitHub name"),
        ("users: [{name: a, coreos_ssh_import_url: 'ftp://x/'}]\n", "is not an http(s) address"),
        ("user: [a]\n", "user wants a mapping"),
        ("chpasswd: {users: [{password: x, type: text}]}\n", "has no name"),
        ("chpasswd: {users: [{name: a}]}\n", "has no password"),
        ("chpasswd: {users: [{name: a, password: '$6$a$b', type: md5}]}\n", "not one of hash"),
        ("chpasswd: {list: [alice]}\n", 'wants lines of "user:password"'),
    ],
)
def test_a_bad_value_refuses_the_whole_document(body: str, complaint: str) -> None:
    planned = plan(f"#cloud-config\n{body}".encode())
    assert planned.refused
    assert planned.changes == ()
    assert any(complaint in str(problem) for problem in planned.problems)


# chpasswd and password.


def test_chpasswd_sets_hashes_texts_and_random_ones(fake: Fake) -> None:
    fake.boot(
        "chpasswd: {expire: false, users: [{name: core, password: '"
        + HASH
        + f"'}}, {{name: b, password: '{SECRET}', type: text}}, {{name: c, type: RANDOM}}]}}\n"
        + "users: [b, c]\n"
    )
    given = dict(zip(fake.commands, fake.stdin, strict=True))
    assert given["chpasswd --encrypted"] == f"core:{HASH}\n".encode()
    texts = [s for c, s in zip(fake.commands, fake.stdin, strict=True) if "YESCRYPT" in c]
    assert texts[0] == f"b:{SECRET}\n".encode()
    name, _, password = texts[1].decode().strip().partition(":")
    assert (name, len(password)) == ("c", 20)
    assert not any("--expire" in command for command in fake.commands)


def test_the_old_list_of_chpasswd_is_taken_as_lines_or_items() -> None:
    passwords = (
        Password("a", "text", f"{SECRET}:x"),
        Password("b", "random"),
        Password("c", "random"),
        Password("d", "hash", HASH),
    )
    lines = f"a:{SECRET}:x", "b:RANDOM", "c:R", f"d:{HASH}"
    for body in (
        "chpasswd:\n  list: |\n" + "".join(f"    {line}\n" for line in lines),
        "chpasswd:\n  list:\n" + "".join(f"  - '{line}'\n" for line in lines),
    ):
        config, problems = understand(f"#cloud-config\n{body}".encode())
        assert config.passwords == passwords
        assert ["plain text" in str(problem) for problem in problems] == [True]


def test_password_is_for_the_default_user_who_has_to_change_it(fake: Fake) -> None:
    fake.boot(f"password: {SECRET}\n")
    assert fake.commands == [
        "chpasswd --crypt-method YESCRYPT",
        "passwd --quiet --expire -- core",
    ]
    (change,) = plan(f"#cloud-config\nuser: bob\npassword: {SECRET}\n".encode()).changes[1:]
    assert isinstance(change, SetPassword)
    assert change.password.user == "bob"


def test_a_random_password_is_told_on_the_console_once_and_nowhere_else(fake: Fake) -> None:
    body = "chpasswd: {users: [{name: core, type: RANDOM}]}\n"
    outcome = fake.boot(body)
    password = fake.stdin[0].decode().strip().partition(":")[2]
    assert fake.console == f"Set the following 'random' passwords\ncore:{password}\n"
    assert password not in repr((outcome, fake.remembered, fake.commands))
    assert statuses(fake.boot(body)) == {"password of core": "unchanged"}
    assert fake.commands == []


def test_a_random_password_that_nobody_was_told_is_made_again(fake: Fake) -> None:
    fake.broken = {"console"}
    body = "chpasswd: {users: [{name: core, type: RANDOM}]}\n"
    assert statuses(fake.boot(body)) == {"password of core": "failed"}
    fake.broken = set()
    assert statuses(fake.boot(body)) == {"password of core": "done"}
    assert fake.console


def test_a_password_that_the_owner_changed_stays(fake: Fake) -> None:
    body = f"chpasswd: {{users: [{{name: core, password: '{HASH}'}}]}}\n"
    fake.boot(body)
    (fake.root / "etc/shadow").write_text("core:$y$own:1::::::\n")
    fake.boot(body)
    assert fake.commands == []


def test_a_hash_whose_expiry_was_cut_off_gets_it_on_the_next_boot(fake: Fake) -> None:
    (fake.root / "etc/shadow").write_text(f"core:{HASH}:19675::::::\n")
    fake.boot(f"chpasswd: {{users: [{{name: core, password: '{HASH}'}}]}}\n")
    assert fake.commands == ["passwd --quiet --expire -- core"]


def test_a_password_for_nobody_is_told(fake: Fake) -> None:
    outcome = fake.boot("chpasswd: {users: [{name: nobody9, type: RANDOM}]}\n")
    assert outcome.results[0].note == "there is no user nobody9"


# Whatever the values are.

_VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.text(max_size=8),
        st.sampled_from(
            ["default", "a,b", "gh:a", "a:RANDOM", "RANDOM", "ALL=(ALL) ALL", KEY, HASH]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "a", "users", "list", "type", "uri"]), inner),
    ),
    max_leaves=8,
)
_KEYS = st.sampled_from(_KNOWN)
_USER_KEYS = st.sampled_from(_KNOWN_OF_USER)


@settings(max_examples=400)
@given(
    st.dictionaries(_KEYS, _VALUES, max_size=3),
    st.dictionaries(_USER_KEYS, _VALUES, max_size=4),
)
def test_any_value_of_any_key_gives_a_plan_or_a_clear_refusal(
    top: dict[str, object], user: dict[str, object]
) -> None:
    document = {**top, "users": [{"name": "a", **user}]}
    planned = plan(b"#cloud-config\n" + json.dumps(document).encode())
    if planned.refused:
        assert planned.changes == ()
    assert all(str(problem).isprintable() for problem in planned.problems)
    assert all(describe(change).isprintable() for change in planned.changes)


def test_a_text_that_is_an_endless_list_is_refused() -> None:
    names = ",".join(f"n{i}" for i in range(2000))
    for body in (f"groups: {names}\n", f"users: {names}\n"):
        assert any("more than 1000 words" in problem for problem in problems_of(body))
    lines = "".join(f"    n{i}:R\n" for i in range(2000))
    assert "more than 1000 lines" in problems_of(f"chpasswd:\n  list: |\n{lines}")[0]


# Secrets.


@pytest.mark.parametrize(
    "body",
    [
        f"users: [{{name: a, plain_text_passwd: '{SECRET}'}}]\n",
        f"users: [{{name: a, plain_text_passwd: '{SECRET}\\n'}}]\n".replace("'", '"'),
        f"users: [{{name: a, hashed_passwd: '{SECRET}'}}]\n",
        f"password: {SECRET}\nchpasswd: {{list: ['a:{SECRET}', '{SECRET}']}}\n",
        f"chpasswd: {{list: ['{SECRET} x:a']}}\n",
        f"chpasswd: {{users: [{{name: a, password: '{SECRET}'}}]}}\n",
        f"chpasswd: {{users: [{{name: a, password: '{SECRET}', type: text}}]}}\n",
        f"password: ['{SECRET}']\n",
    ],
)
def test_a_password_is_in_no_message_plan_or_memory(fake: Fake, body: str) -> None:
    planned = plan(f"#cloud-config\n{body}".encode())
    assert planned.problems
    shown = repr(planned) + "".join(map(str, planned.problems))
    shown += "".join(describe(change) for change in planned.changes)
    outcome = fake.boot(body)
    shown += repr(outcome) + " ".join(fake.commands)
    assert SECRET not in shown


def test_a_remembered_password_is_hashed_slowly_and_with_a_salt_of_its_own() -> None:
    change = SetPassword(Password("a", "text", SECRET))
    first, second = wish(change), wish(change)
    assert first != second
    assert wish(change, like=first) == first
    assert wish(SetPassword(Password("a", "text", "other")), like=first) != first
    assert ":" in wish(EnsureUser(User("a", plain_text_passwd=SECRET)))
    assert ":" not in wish(EnsureUser(User("a", passwd=HASH)))


def test_a_field_that_says_nothing_changes_no_wish() -> None:
    """So a version of Proa that knows more keys does not undo what an owner edited."""
    change = WriteFile("/srv/a", b"x")
    assert wish(change) == wish(replace(change, mode=0o644, defer=False))
    assert wish(change) != wish(replace(change, defer=True))


def test_a_wish_is_the_same_text_in_every_version() -> None:
    wishes = [wish(WriteFile("/srv/a", b"x")), wish(EnsureUser(User("a", groups=("sudo",))))]
    assert wishes == [
        "b30587762e5a14d27768d950d664a04f1b9ae1d2097fec6b750f47c3fb872ea5",
        "1dcf7b23c778eb364e9ba3e607d9f8b0842c4e450722c18acd481edce435ddb8",
    ]
