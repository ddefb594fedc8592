"""docs/cloud-config-keys.md has a row for every key that there is, and no other rows."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from proa.machine.cloudconfig import schema
from proa.machine.cloudconfig.document import read
from proa.machine.cloudconfig.examine import as_text, examine
from proa.machine.cloudconfig.parse import Node, Table, Text
from proa.machine.cloudconfig.reader import Reader

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "cloud-config-keys.md"
UNITS = DOCS.parent / "os/rootfs/usr/lib/systemd/system"
MISSPELT = b"#cloud-config\nhostnam: web-1\n"

# cloud-init 25.1.4, schema-cloud-config-v1.json: its top-level keys, and those of a user. Where it
# has one key with "-" and with "_", it stands here once.
TOP = """
allow_public_ssh_keys ansible apk_repos apt apt_pipelining apt_reboot_if_required apt_update
apt_upgrade authkey_hash autoinstall bootcmd byobu_by_default ca_certs chef chpasswd
cloud_config_modules cloud_final_modules cloud_init_modules create_hostname_file device_aliases
disable_ec2_metadata disable_root disable_root_opts disk_setup drivers fan final_message fqdn
fs_setup groups growpart grub_dpkg hostname keyboard landscape launch_index locale
locale_configfile lxd manage_etc_hosts manage_resolv_conf mcollective merge_how merge_type migrate
mount_default_fields mounts no_ssh_fingerprints ntp output package_reboot_if_required
package_update package_upgrade packages password phone_home power_state prefer_fqdn_over_hostname
preserve_hostname puppet random_seed reporting resize_rootfs resolv_conf rh_subscription rsyslog
runcmd salt_minion snap spacewalk ssh ssh_authorized_keys ssh_deletekeys ssh_fp_console_blacklist
ssh_genkeytypes ssh_import_id ssh_key_console_blacklist ssh_keys ssh_publish_hostkeys ssh_pwauth
ssh_quiet_keygen swap system_info timezone ubuntu_advantage ubuntu_pro updates user users
vendor_data version wireguard write_files yum_repo_dir yum_repos zypper
"""
USER = """
create_groups doas expiredate gecos groups hashed_passwd homedir inactive lock_passwd name
no_create_home no_log_init no_user_group passwd plain_text_passwd primary_group selinux_user shell
snapuser ssh_authorized_keys ssh_import_id ssh_redirect_user sudo system uid
"""

# Read before the document as a whole is (assemble.py, merge.py).
APART = {"merge_how", "merge_type", "vendor_data"}


@dataclass(frozen=True)
class Row:
    coreos: str
    cloud_init: str
    proa: str


def rows() -> Iterator[tuple[str, Row]]:
    """Each key of the page by its whole path, and its row."""
    prefixes = [""]
    for line in PAGE.read_text().splitlines():
        if line.startswith("#"):
            prefixes = [f"{name}." for name in re.findall(r"`([^`]+)`", line)] or [""]
        elif line.startswith("| `"):
            keys, *cells = re.split(r" \| ", line.strip("| "))
            assert len(cells) == 3, line
            for key in re.findall(r"`([^`]+)`", keys):
                for prefix in prefixes:
                    yield f"{prefix}{key}", Row(*cells)


ROWS = dict(rows())


def known() -> set[str]:
    """The keys that the reader looks for, by their whole path."""
    return {
        f"{path.replace(schema.ANY_NAME, 'DEVICE')}.{name}" if path else name
        for path, names in schema.observe()[1].items()
        for name in names
    }


def test_every_key_has_one_row() -> None:
    paths = [path for path, _ in rows()]
    assert sorted({path for path in paths if paths.count(path) > 1}) == []


def test_every_key_that_the_reader_knows_has_a_row() -> None:
    assert sorted(known() - set(ROWS)) == []


def test_every_key_of_cloud_init_has_a_row_that_says_what_cloud_init_does() -> None:
    wanted = {*TOP.split(), *(f"users[].{name}" for name in USER.split())}
    assert sorted(wanted - set(ROWS)) == []
    assert [path for path in sorted(wanted) if ROWS[path].cloud_init == "—"] == []


class _Watcher(Reader):
    """Notes the keys of which the reader says something in particular."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: set[str] = set()

    def table(
        self,
        node: Node | None,
        key: str,
        known: Collection[str],
        elsewhere: Mapping[str, str] | None = None,
    ) -> dict[str, Node]:
        self.elsewhere |= {f"{key}.{name}" if key else name for name in elsewhere or ()}
        return super().table(node, key, known, elsewhere)


def told_by_name() -> set[str]:
    """The keys that are told by name and not taken."""
    names = ("users", "user", "ntp", "resolv_conf", "random_seed", "ssh_keys", "coreos")
    empty = Table((), 1, 1)
    reader = _Watcher()
    read(Table(tuple((Text(name, 1, 1), empty) for name in names), 1, 1), reader)
    return {re.sub(r"^users\..*?\.", "users[].", path) for path in reader.elsewhere}


def test_every_key_that_is_told_by_name_has_a_row_that_says_ignored() -> None:
    told = told_by_name() - APART
    assert len(told) > 60
    assert sorted(told - set(ROWS)) == []
    assert [path for path in sorted(told) if not ROWS[path].proa.startswith("ignored")] == []


def test_there_are_no_rows_of_keys_that_the_reader_does_not_know() -> None:
    users = {path.replace("user.", "users[].", 1) for path in told_by_name() if path[:5] == "user."}
    assert sorted(set(ROWS) - known() - told_by_name() - users - APART) == []


def test_what_the_pages_show_of_messages_is_what_is_said() -> None:
    page = (DOCS / "cloud-config.md").read_text()
    assert f"{as_text(examine('web.yaml', MISSPELT))}\n" in page
    wrong = b"#cloud-config\n\nhostname: -web\n\n\n\nwrite_file: []\n"
    for problem in examine("x", wrong).problems:
        assert f"cloud-config: {problem}\n" in page


def test_every_unit_that_the_page_names_is_in_the_image() -> None:
    units = set(
        re.findall(r"`(proa-cloudinit[a-z-]*\.service)`", (DOCS / "cloud-config.md").read_text())
    )
    assert len(units) == 3
    assert {name for name in units if not (UNITS / name).exists()} == set()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_links_between_the_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#([^)]*))?\)", page.read_text())
    for name, anchor in links:
        if "://" in name:
            continue
        target = page.parent / name
        assert target.exists(), name
        if anchor and target.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {_anchor(head) for head in heads}, f"{name}#{anchor}"


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
