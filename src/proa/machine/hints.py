"""``typing`` for programs that run at every boot: its words, for a type checker alone.

Annotations are not evaluated here (``from __future__ import annotations``), so while a program runs
nothing asks what the words mean; ``typing`` itself is 2 ms and 0.4 MB of a boot. What is evaluated
all the same, such as ``Level = Literal["error", "warning"]``, gets a stand-in.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO as IO
    from typing import Any as Any
    from typing import Literal as Literal
    from typing import TypeGuard as TypeGuard
    from typing import TypeVar as TypeVar
    from typing import cast as cast
    from typing import dataclass_transform as dataclass_transform
    from typing import overload as overload
else:

    class _Texts:
        def __getitem__(self, _words):
            return str

    IO = Any = TypeGuard = object
    Literal = _Texts()

    def TypeVar(_name, *_kinds):
        return object

    def cast(_kind, value):
        return value

    def dataclass_transform(**_words):
        return overload

    def overload(function):
        return function
