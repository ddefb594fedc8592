"""Reading and writing the small binary structures of payloads: numbers, byte strings, lists.

A *number* is an unsigned LEB128: seven bits a byte, the lowest first, the high bit set on all but
the last. A *signed* number is zig-zag coded first (0, -1, 1, -2 … become 0, 1, 2, 3 …). Every read
is bounded by what the caller allows, so that no count in a file can ask for more than is there.
"""

from __future__ import annotations


class PayloadError(ValueError):
    """A payload cannot be used; the message says what is wrong with it."""


class Reader:
    """Reads one structure from front to back. Raises :class:`PayloadError`, never anything else."""

    def __init__(self, data: bytes, what: str, entries: int = 1 << 20) -> None:
        """``entries`` is the most that all counts come to together."""
        self._data = data
        self._entries = self._most_entries = entries
        self._position = 0
        self._what = what

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._data) - self._position

    def number(self, name: str, most: int) -> int:
        """Return a number from 0 to ``most``."""
        value, shift = 0, 0
        while True:
            if self._position >= len(self._data):
                raise PayloadError(f"{self._what}: ends in the middle of {name}")
            byte = self._data[self._position]
            self._position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if value > most or shift > 70:
                raise PayloadError(f"{self._what}: {name} is more than {most}")
            if byte < 0x80:
                return value

    def signed(self, name: str, most: int) -> int:
        """Return a number from ``-most`` to ``most``."""
        coded = self.number(name, 2 * most)
        return -(coded + 1 >> 1) if coded & 1 else coded >> 1

    def size(self, name: str, most: int) -> int:
        """Return a size; whole blocks of 4 KiB are written shorter, with the lowest bit set."""
        coded = self.number(name, 2 * most + 1)
        value = (coded >> 1) << 12 if coded & 1 else coded >> 1
        if value > most:
            raise PayloadError(f"{self._what}: {name} is more than {most}")
        return value

    def signed_size(self, name: str, most: int) -> int:
        """Return a distance from ``-most`` to ``most``, coded like a size and a sign above it."""
        coded = self.number(name, 4 * most + 3)
        value = (coded >> 2) << 12 if coded & 2 else coded >> 2
        if value > most:
            raise PayloadError(f"{self._what}: {name} is more than {most}")
        return -value if coded & 1 else value

    def count(self, name: str, least: int, most: int = 1 << 20) -> int:
        """Return how many entries follow, each of which has at least ``least`` bytes."""
        found = self.number(name, most)
        if found > self._entries:
            raise PayloadError(f"{self._what} has more than {self._most_entries} entries")
        self._entries -= found
        if found * least > self.left:
            raise PayloadError(f"{self._what}: {found} {name} do not fit into {self.left} bytes")
        return found

    def raw(self, name: str, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if size > self.left:
            raise PayloadError(f"{self._what}: ends in the middle of {name}")
        self._position += size
        return self._data[self._position - size : self._position]

    def text(self, name: str, most: int = 255) -> str:
        """Return a string of printable ASCII of at most ``most`` characters."""
        data = self.raw(name, self.number(f"the length of {name}", most))
        if not all(0x20 <= byte < 0x7F for byte in data):
            raise PayloadError(f"{self._what}: {name} is not printable ASCII")
        return data.decode("ascii")

    def end(self) -> None:
        """Raise unless everything was read."""
        if self.left:
            raise PayloadError(f"{self._what}: {self.left} bytes too many")


class Writer:
    """The mirror of :class:`Reader`."""

    def __init__(self) -> None:
        self._parts = bytearray()

    def number(self, value: int) -> None:
        if value < 0:
            raise ValueError(f"{value} is negative")
        while value >= 0x80:
            self._parts.append(value & 0x7F | 0x80)
            value >>= 7
        self._parts.append(value)

    def signed(self, value: int) -> None:
        self.number(-2 * value - 1 if value < 0 else 2 * value)

    def size(self, value: int) -> None:
        self.number(value >> 11 | 1 if value and value % 4096 == 0 else value << 1)

    def signed_size(self, value: int) -> None:
        away = abs(value)
        coded = away >> 10 | 2 if away and away % 4096 == 0 else away << 2
        self.number(coded | (value < 0))

    def raw(self, data: bytes) -> None:
        self._parts += data

    def text(self, value: str) -> None:
        data = value.encode("ascii")
        self.number(len(data))
        self.raw(data)

    def done(self) -> bytes:
        return bytes(self._parts)
