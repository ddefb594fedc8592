"""Apply a payload as `proa payload apply` does, on the Python that runs this: the machine's own.

What an updater has in memory besides is loaded too, so that the figure is one for a machine. The
client of The Update Framework is not among it: that runs in a child, which has ended by then
(``proa.machine.system.in_child``).

PYTHONPATH=src python3 benchmarks/applying.py PAYLOAD RELEASE-DIRECTORY OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import proa.machine.update  # noqa: F401
from proa.factory import payload_file
from proa.wire.codec import Codec

if __name__ == "__main__":
    payload, source, out = (Path(argument) for argument in sys.argv[1:])
    opened = payload_file.open_payload(payload)
    origin = payload_file.find_origin(opened, source, None)
    with Codec() as codec:
        payload_file.apply(opened, origin, out, codec)
