"""``coreos.oem``: who made the image or runs the cloud."""

from __future__ import annotations

import re

from proa.machine.cloudconfig.keys.options import Option, read_options
from proa.machine.cloudconfig.parse import Node
from proa.machine.cloudconfig.reader import Reader
from proa.machine.record import dataclass

_WORD = Option(words=(r"[A-Za-z0-9._~+-]{1,64}", "one word of letters, digits and ._~+-"))
OEM = {
    "id": _WORD,
    "name": Option(),
    "version_id": _WORD,
    "home_url": Option(),
    "bug_report_url": Option(),
}


@dataclass(frozen=True)
class Oem:
    """Texts as they are; "" for what is not set. Without an id there is nothing to write."""

    id: str = ""
    name: str = ""
    version_id: str = ""
    home_url: str = ""
    bug_report_url: str = ""

    @property
    def release(self) -> str:
        """The content of /etc/oem-release, in CoreOS's order and quoting: every line is there."""
        return (
            f"ID={self.id}\n"
            f"VERSION_ID={self.version_id}\n"
            f"NAME={_quoted(self.name)}\n"
            f"HOME_URL={_quoted(self.home_url)}\n"
            f"BUG_REPORT_URL={_quoted(self.bug_report_url)}\n"
        )


def read_oem(r: Reader, node: Node | None) -> Oem:
    oem = Oem(**read_options(r, node, "coreos.oem", OEM))
    if node is not None and oem != Oem() and not oem.id:
        r.warn(node, "coreos.oem", "coreos.oem has no id, so /etc/oem-release is not written")
    return oem


def _quoted(text: str) -> str:
    """A text in double quotes that a shell reads back as it is (os-release(5))."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'
