"""Keys of cloud-init that mean nothing on Proa, each with what to do instead.

The names are all top-level keys of cloud-init's schema (schema-cloud-config-v1.json) that no
other module here reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from proa.machine.cloudconfig.values import INSTEAD

_NO_PACKAGES = f"is ignored: nothing is installed into a Proa machine; {INSTEAD}"
_NO_REPOSITORY = "is ignored: Proa has no package manager; a container brings its own packages"
_MANAGED = (
    "is ignored: no agent is installed into a Proa machine; run it in a container,"
    " or say here what the machine is to be"
)
_UPDATES = "is ignored: a Proa machine gets a whole new system; see coreos.update"
_UBUNTU = "is ignored: it is a thing of Ubuntu"
_RED_HAT = "is ignored: it is a thing of Red Hat and SUSE"
_PI = "is ignored: it is a thing of the Raspberry Pi"
_ORDER = (
    "is ignored: the order of the steps is fixed in Proa;"
    " a script for every boot has the type text/x-shellscript-per-boot"
)

ELSEWHERE: Mapping[str, str] = {
    **dict.fromkeys(("packages", "snap", "snappy", "drivers"), _NO_PACKAGES),
    **dict.fromkeys(
        (
            *("apt", "apt_pipelining", "apt_sources", "apt_preserve_sources_list", "apt_mirror"),
            *(
                "apt_proxy",
                "apt_http_proxy",
                "apt_https_proxy",
                "apt_ftp_proxy",
                "apt_sources_list",
            ),
            *(
                "apt_mirror_search",
                "apt_mirror_search_dns",
                "apt_custom_sources_list",
                "add_apt_repo_match",
            ),
            *("apk_repos", "yum_repos", "yum_repo_dir", "zypper", "debconf_selections"),
        ),
        _NO_REPOSITORY,
    ),
    **dict.fromkeys(
        (
            *("package_update", "package_upgrade", "package_reboot_if_required", "apt_update"),
            *("apt_upgrade", "apt_reboot_if_required"),
        ),
        _UPDATES,
    ),
    **dict.fromkeys(
        ("ansible", "chef", "puppet", "salt_minion", "mcollective", "landscape"), _MANAGED
    ),
    "lxd": "is ignored: Proa runs containers with docker and systemd-nspawn",
    "wireguard": (
        "is ignored: write a .netdev and a .network unit (coreos.units),"
        " systemd-networkd speaks WireGuard"
    ),
    **dict.fromkeys(
        (
            *("ubuntu_advantage", "ubuntu_pro", "autoinstall", "fan", "byobu_by_default", "bootc"),
            "fips",
        ),
        _UBUNTU,
    ),
    **dict.fromkeys(("rh_subscription", "spacewalk", "rhsm"), _RED_HAT),
    **dict.fromkeys(("rpi_interfaces", "rpi_userconf", "disable_piwiz", "enable_rpi_connect"), _PI),
    "grub_dpkg": "is ignored: Proa writes its own boot entries",
    "keyboard": "is ignored: Proa has no keymaps; its console is US, and a server's door is ssh",
    "locale_configfile": "is ignored: the locale is in /etc/locale.conf",
    "rsyslog": (
        "is ignored: Proa logs to the journal;"
        " a container that reads /var/log/journal can send it on"
    ),
    "output": (
        "is ignored: what commands print goes to the journal and the console"
        " (journalctl -u 'proa-script@*')"
    ),
    "reporting": "is ignored: what was done is in /run/proa/cloudinit.json",
    "disable_ec2_metadata": (
        "is ignored: the metadata service is asked at each boot; block it with nftables"
    ),
    "updates": "is ignored: a hot-plugged device is networkd's to set up",
    "migrate": "is ignored: there is no older cloud-init here to migrate from",
    "vendor_data": "is ignored: vendor-data is read, and user-data wins",
    "system_info": "is ignored: Proa is the only distribution that this document meets",
    "datasource": "is ignored: Proa finds where its document comes from by itself",
    "datasource_list": "is ignored: Proa finds where its document comes from by itself",
    **dict.fromkeys(
        ("cloud_init_modules", "cloud_config_modules", "cloud_final_modules", "unverified_modules"),
        _ORDER,
    ),
    "launch_index": "is ignored: the document is for every machine that gets it",
    "manual_cache_clean": "is ignored: another instance id is always noticed",
    "version": "is ignored: it says the version of a network-config",
    "def_log_file": "is ignored: Proa logs to the journal",
    "syslog_fix_perms": "is ignored: Proa logs to the journal",
}
"""key → what is said of it, after its name."""
