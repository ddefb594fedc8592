"""``dataclasses`` for programs that run at every boot: the same words, a tenth of the start.

The standard library writes the methods of each class as source and compiles them when the module
is imported: half a millisecond of processor for each, and it imports ``inspect``. A boot of a
machine imports a hundred such classes, and mostly has nothing to do then. Here the methods are
written once, for all classes (docs/decisions/0011-records.md has the numbers).

What is here means what it means there: ``@dataclass(frozen=True, slots=True)``, :func:`field` with
``default``, ``default_factory``, ``repr`` and ``compare``, :func:`replace`, :func:`fields`,
:func:`asdict`, :func:`is_dataclass`. What is not here (ordering, keyword-only fields, ``InitVar``)
is an error at once or a word that a type checker knows: it takes these classes for data classes
(PEP 681).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proa.machine.hints import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")

MISSING: Any = object()


class FrozenError(AttributeError):
    """A field of a frozen record was to be changed."""


class Field:
    """One field: ``default`` and ``default_factory`` are :data:`MISSING` where there is none."""

    __slots__ = ("compare", "default", "default_factory", "name", "repr")

    def __init__(
        self, default: Any, default_factory: Any, repr: bool = True, compare: bool = True
    ) -> None:
        self.name = ""
        self.default = default
        self.default_factory = default_factory
        self.repr = repr
        self.compare = compare


def field(
    *,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    repr: bool = True,
    compare: bool = True,
) -> Any:
    """Say more of a field than its type."""
    return Field(default, default_factory, repr, compare)


@overload
@dataclass_transform(field_specifiers=(field,))
def dataclass(cls: type[T], /) -> type[T]: ...
@overload
@dataclass_transform(field_specifiers=(field,))
def dataclass(*, frozen: bool = False, slots: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(field_specifiers=(field,))
def dataclass(cls: Any = None, /, *, frozen: bool = False, slots: bool = False) -> Any:
    """Make a record of a class: its annotated names are its fields."""
    if cls is not None:
        return _made(cls, frozen, slots)
    return lambda found: _made(found, frozen, slots)


def _made(cls: type, frozen: bool, slots: bool) -> type:
    known: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        known.update(getattr(base, "__record__", {}))
    own = cls.__dict__.get("__annotations__", {})  # noqa: RUF063 (inspect is what costs)
    for name, kind in own.items():
        if not str(kind).startswith(("ClassVar", "typing.ClassVar")):
            known[name] = _field(cls, name)
    methods: dict[str, Any] = {
        "__record__": known,
        "__match_args__": tuple(known),
        "__init__": _init,
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash if frozen else None,
    }
    if frozen:
        methods |= {"__setattr__": _refuse, "__delattr__": _refuse}
    written = cls.__dict__
    methods = {name: method for name, method in methods.items() if name not in written
               or (name == "__hash__" and written[name] is None)}  # fmt: skip
    if slots:
        rest = {n: v for n, v in written.items() if n not in known and n not in _OWN_SPACE}
        return type(cls)(cls.__name__, cls.__bases__, {**rest, **methods, "__slots__": (*own,)})
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls


_OWN_SPACE = ("__dict__", "__weakref__")


def _field(cls: type, name: str) -> Field:
    value = cls.__dict__.get(name, MISSING)
    found = value if isinstance(value, Field) else Field(value, MISSING)
    found.name = name
    if isinstance(found.default, list | dict | set):
        raise TypeError(f"{cls.__name__}.{name}: a default that can change; use default_factory")
    if value is found:  # the class shows the default, or nothing, as if it were written so
        if found.default is MISSING:
            delattr(cls, name)
        else:
            setattr(cls, name, found.default)
    return found


# The methods of every record.


def _init(self: Any, *values: Any, **named: Any) -> None:
    known: Mapping[str, Field] = self.__record__
    if len(values) > len(known):
        raise TypeError(f"{type(self).__name__} has {len(known)} fields, not {len(values)}")
    put, given = object.__setattr__, iter(values)
    for name, one in known.items():
        value = next(given, MISSING)
        if value is MISSING:
            value = named.pop(name, MISSING)
        elif name in named:
            raise TypeError(f"{type(self).__name__}: {name} is given twice")
        if value is MISSING:
            value = one.default if one.default_factory is MISSING else one.default_factory()
        if value is MISSING:
            raise TypeError(f"{type(self).__name__}: {name} is missing")
        put(self, name, value)
    if named:
        raise TypeError(f"{type(self).__name__} has no field {next(iter(named))}")


def _values(self: Any) -> tuple[Any, ...]:
    return tuple([getattr(self, n) for n, one in self.__record__.items() if one.compare])


def _repr(self: Any) -> str:
    shown = (f"{n}={getattr(self, n)!r}" for n, one in self.__record__.items() if one.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _eq(self: Any, other: object) -> Any:
    if other.__class__ is not self.__class__:
        return NotImplemented
    return _values(self) == _values(other)


def _hash(self: Any) -> int:
    return hash(_values(self))


def _refuse(self: Any, name: str, _value: object = None) -> None:
    raise FrozenError(f"{type(self).__name__}.{name} cannot be changed")


# What is asked of records.


def is_dataclass(thing: object) -> bool:
    """Whether this is a record, or the class of one."""
    return hasattr(thing, "__record__")


def fields(thing: Any) -> tuple[Field, ...]:
    """The fields of a record, or of its class, in their order."""
    return tuple(thing.__record__.values())


def replace(thing: T, /, **changes: Any) -> T:
    """A copy of a record with other values for some fields."""
    known: Any = thing
    kept = {name: getattr(thing, name) for name in known.__record__ if name not in changes}
    return type(thing)(**kept, **changes)


def asdict(thing: Any) -> dict[str, Any]:
    """A record and the records in it as plain dictionaries."""
    return {name: _plain(getattr(thing, name)) for name in thing.__record__}


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
