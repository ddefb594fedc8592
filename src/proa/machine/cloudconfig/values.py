"""Values that more than one key takes, and the rules for them."""

from __future__ import annotations

import re

MAX_KEY_LENGTH = 16 * 1024
"""Longest line of an authorized_keys file that is taken (OpenSSH: SSH_MAX_PUBKEY_BYTES)."""

_HOSTNAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}")
_KEY_TYPE = re.compile(r"(^|[ \t])(ssh-|ecdsa-|sk-)[a-z0-9@.-]+[ \t]+AAAA[A-Za-z0-9+/=]+([ \t]|$)")

_URL = re.compile(
    r"(https?://)(?:[^/@?#\s]*@)?((?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?)(?:[/?#].*)?"
)
# Plain hashes of crypt(5): one in these forms opens an account, and text in other forms never is.
_HASH = re.compile(r"[!*]?(\$[A-Za-z0-9]+\$[!-9;-~]+|[./0-9A-Za-z]{13})|[!*]{1,2}")

HOSTNAME_MAX = 64
"""What the kernel takes (uname(2))."""

MAX_PASSWORD = 512
"""Longest password in bytes (crypt(3): CRYPT_MAX_PASSPHRASE_SIZE)."""


def is_hostname(text: str) -> bool:
    """RFC 1123 labels, at most as long as the kernel takes."""
    return len(text) <= HOSTNAME_MAX and _HOSTNAME.fullmatch(text) is not None


def is_url(text: str) -> bool:
    """An http or https address of printable ASCII, with or without a user before its host."""
    plain = text.isascii() and text.isprintable() and " " not in text
    return plain and len(text) <= 2048 and _URL.fullmatch(text) is not None


def shown_url(text: str) -> str:
    """A source as it may be shown: of an address, only what holds no secret."""
    match = _URL.fullmatch(text)
    return f"{match[1]}{match[2]}" if match else text


def is_hash(text: str) -> bool:
    """A password hash as /etc/shadow has it, and not a password."""
    return _HASH.fullmatch(text) is not None


def password_fault(text: str) -> str | None:
    """What keeps a text from being a password; never the text itself."""
    if not text:
        return "is empty"
    if len(text.encode()) > MAX_PASSWORD:
        return f"is longer than {MAX_PASSWORD} bytes"
    return None if text.isprintable() else "holds a control character"


def redirecting(key: str, user: str, instead: str) -> str:
    """The key as one that only tells to log in as ``instead`` (cloud-init: DISABLE_USER_OPTS)."""
    match = _KEY_TYPE.search(key)
    bare = key[match.start() :].strip() if match else key
    words = f'Please login as the user \\"{instead}\\" rather than the user \\"{user}\\".'
    only = "no-port-forwarding,no-agent-forwarding,no-X11-forwarding"
    return f"{only},command=\"echo '{words}';echo;sleep 10;exit 142\" {bare}"


def keys_in(text: str) -> tuple[tuple[str, ...], int]:
    """The public ssh keys in a text of one or more lines, and how many lines are none."""
    lines = [line.strip() for line in text.splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#")]
    good = tuple(
        line
        for line in wanted
        if len(line) <= MAX_KEY_LENGTH and line.isprintable() and _KEY_TYPE.search(line)
    )
    return good, len(wanted) - len(good)


INSTEAD = "run it in a container, or bring it as a sysext"
"""What to do with a program that is to be on a machine whose /usr cannot be written."""

CERTIFICATES = "/var/usrlocal/share/ca-certificates/"
"""Where Debian's update-ca-certificates looks, in the form of :func:`clean_path`."""
NO_CERTIFICATES = "a certificate to be trusted goes into ca_certs of a cloud-config"

# Where a file may not be put, with the reason. /bin and its kin are links into /usr.
_READ_ONLY = (
    f"is part of the read-only system; put it under /usr/local, /opt, /etc or /var, {INSTEAD}"
)
_NO_FILES = {
    **dict.fromkeys(("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"), _READ_ONLY),
    **dict.fromkeys(("proc", "sys", "dev"), "belongs to the kernel"),
    "boot": "holds the boot images and is not mounted yet at this time",
    ".etc": "is the inside of the /etc overlay; write to /etc",
}
# Links of the system, resolved here because no link is followed later. What was installed by hand
# is the owner's and outlives updates: decision 12.
_LINKS = (
    ("/var/run", "/run"),
    ("/var/lock", "/run/lock"),
    ("/usr/local", "/var/usrlocal"),
)


def clean_path(text: str) -> str:
    """An absolute path in its plain form, or ``ValueError`` saying why no file may be there."""
    if not text.startswith("/"):
        raise ValueError("must begin with /")
    if not text.isprintable() or len(text) > 1024:
        raise ValueError("is not a usable path")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError('must not contain ".."')
    if not parts or any(len(part.encode()) > 255 for part in parts):
        raise ValueError("is not a usable path")
    path = "/" + "/".join(parts)
    for link, target in _LINKS:
        if f"{path}/".startswith(f"{link}/"):
            path = target + path.removeprefix(link)
    if reason := _NO_FILES.get(path.split("/")[1]):
        raise ValueError(reason)
    return path


def digest(data: bytes) -> str:
    """The SHA-256 of ``data``, in hex."""
    try:
        # hashlib would load OpenSSL, 7 ms and 5 MB at every boot, for what this does as well.
        from _sha2 import sha256  # type: ignore[import-not-found]
    except ImportError:  # before Python 3.12
        from hashlib import sha256
    text: str = sha256(data).hexdigest()
    return text


def basic_authorization(name: str, password: str) -> str:
    """The header that a user in an address becomes (RFC 7617); both as they stand there."""
    import base64
    from urllib.parse import unquote

    pair = f"{unquote(name)}:{unquote(password)}"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"
