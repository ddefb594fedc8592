"""From what a cloud hands over to what is to be read: one tree, the scripts, the other configs.

User-data and vendor-data are taken apart, templates filled in, CoreOS's words for addresses put
in, and all cloud-configs merged to one tree, the owner's over the vendor's. Nothing is read for
its meaning here, and nothing is run.

The lines of the tree count through all the parts one after another; :meth:`Assembled.told` makes
of a problem in it one that says which part and which of its lines. For a document of one part,
they are the lines of the document.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from proa.machine.cloudconfig.merge import FIRST_WINS, merge, moved, table, taken_out
from proa.machine.cloudconfig.metadata import NO_METADATA, Metadata
from proa.machine.cloudconfig.parse import (
    Node,
    Problem,
    Refused,
    Table,
    Text,
    canonical,
    decode,
    load,
)
from proa.machine.cloudconfig.parts import (
    Fetch,
    Frequency,
    Part,
    Parts,
    Place,
    recognise,
    runnable,
    take_apart,
    unknown,
)
from proa.machine.cloudconfig.substitute import substitute
from proa.machine.record import dataclass, field, replace

_OWN_SCRIPTS = ("bootcmd", "runcmd", "power-condition")
"""Names of what the keys of a cloud-config run: a part of that name gets another."""

VENDOR = "vendor-data"
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Script:
    """A program to run: it begins with ``#!``. No other script or boothook has its name, which is
    fit for a file and the same on every boot as long as the documents are."""

    content: bytes = field(repr=False)
    name: str
    frequency: Frequency


@dataclass(frozen=True)
class Other:
    """A config in another language than cloud-config, as text. ``place`` tells its problems."""

    text: str = field(repr=False)
    place: Place


@dataclass(frozen=True)
class Assembled:
    """All that the owner and the vendor ask for. With an error, none of it is to be done."""

    root: Node | None = field(default=None, repr=False)
    scripts: tuple[Script, ...] = ()
    """In the order to run them: the vendor's first."""
    boothooks: tuple[Script, ...] = ()
    ignition: Other | None = None
    butane: Other | None = None
    problems: tuple[Problem, ...] = ()
    needs_network: bool = False
    """Something is included from an address and ``fetch`` was ``None``: all this is not all."""
    once: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    """To be kept for this instance and given back as ``kept``: see :class:`parts.Parts`."""
    places: tuple[tuple[int, Place], ...] = ()
    """The parts of the tree: how many lines of it stand before each, rising."""

    @property
    def refused(self) -> bool:
        return any(problem.level == "error" for problem in self.problems)

    def told(self, problem: Problem) -> Problem:
        """A problem with a line of ``root``, as one with the part's name and the true line."""
        before, place = self._place(problem)
        return place.tell(replace(problem, line=problem.line - before)) if problem.line else problem

    def of_vendor(self, problem: Problem) -> bool:
        """Whether a problem with a line of ``root`` is in what the vendor brought."""
        return self._place(problem)[1].name.startswith(VENDOR)

    def _place(self, problem: Problem) -> tuple[int, Place]:
        around = [entry for entry in self.places if entry[0] < problem.line]
        return max(around, key=lambda entry: entry[0], default=(0, Place()))


def assemble(
    user_data: bytes | None,
    vendor_data: bytes | None = None,
    metadata: Metadata = NO_METADATA,
    environment: Mapping[str, str] = NOTHING,
    fetch: Fetch | None = None,
    *,
    kept: Mapping[str, bytes] = MappingProxyType({}),
    version: str = "",
) -> Assembled:
    """Everything that is asked of this machine. Never raises, whatever the bytes are.

    ``environment`` has ``COREOS_PRIVATE_IPV4`` and its kin, for addresses that the metadata do not
    say. ``fetch`` gets what is included; ``None`` while there is no network. ``version`` is the
    release that runs, for templates.

    What is wrong with vendor-data is a warning, and all of it is left out: the owner did not write
    it and cannot mend it.
    """
    given = _Given(metadata, environment, version)
    user = _Side(given)
    user.take(take_apart(user_data or b"", fetch, kept=kept))
    wanted, user.root = _vendor_wanted(user.root)
    nothing = _Side(given)
    vendor = _Side(given, user.lines, "vendor-")
    vendor.names |= user.names
    if wanted and vendor_data:
        vendor.take(take_apart(vendor_data, fetch, name=VENDOR, kept=kept))
    root, problems = user.root, user.problems + vendor.problems
    if any(problem.level == "error" for problem in vendor.problems):
        problems = user.problems + [_left_out(problem) for problem in vendor.problems]
        vendor = nothing
    elif vendor.root is not None:
        try:
            root = vendor.root if root is None else merge(root, vendor.root, FIRST_WINS)
        except Refused as refused:
            problems.append(_left_out(refused.problem))
            vendor = nothing
    return Assembled(
        root=root,
        scripts=tuple(vendor.scripts + user.scripts),
        boothooks=tuple(vendor.boothooks + user.boothooks),
        ignition=user.others.get("ignition"),
        butane=user.others.get("butane"),
        problems=tuple(problems),
        needs_network=user.needs_network or vendor.needs_network,
        once={**vendor.once, **user.once},
        places=tuple(user.places + vendor.places),
    )


def _left_out(problem: Problem) -> Problem:
    if problem.level == "warning":
        return problem
    message = f"{problem.message}; all vendor-data is left out"
    if not message.startswith(VENDOR):
        message = f"{VENDOR}: {message}"
    return replace(problem, level="warning", message=message)


def _vendor_wanted(root: Node | None) -> tuple[bool, Node | None]:
    """``vendor_data: {enabled: false}``: the owner wants none of it. And the tree without it."""
    if not isinstance(root, Table):
        return True, root
    entries = [(key, value) for key, value in root.entries if canonical(key.text) != "vendor_data"]
    found = [value for key, value in root.entries if canonical(key.text) == "vendor_data"]
    if not found or not isinstance(found[0], Table):
        return True, root
    settings = {canonical(key.text): value for key, value in found[0].entries}
    enabled = settings.pop("enabled", None)
    off = isinstance(enabled, Text) and enabled.text.lower() in ("false", "no", "off", "n", "0")
    # Another setting stays in the tree, so that its reader says what it does not know.
    return not off, root if settings else table(entries, root)


@dataclass(frozen=True)
class _Given:
    """What fills in templates and words."""

    metadata: Metadata
    environment: Mapping[str, str]
    version: str


class _Side:
    """What user-data, or vendor-data, comes to; part by part."""

    def __init__(self, given: _Given, lines: int = 0, prefix: str = "") -> None:
        self.given = given
        self.lines = lines
        """How many lines the trees of the parts before have."""
        self.prefix = prefix
        self.names: set[str] = set(_OWN_SCRIPTS)
        self.root: Node | None = None
        self.scripts: list[Script] = []
        self.boothooks: list[Script] = []
        self.others: dict[str, Other] = {}
        self.problems: list[Problem] = []
        self.places: list[tuple[int, Place]] = []
        self.needs_network = False
        self.once: Mapping[str, bytes] = {}

    def take(self, parts: Parts) -> None:
        self.problems += parts.problems
        self.needs_network = parts.needs_network
        self.once = parts.once
        for number, part in enumerate(parts.parts, 1):
            part = replace(part, name=self._name(part.name or f"part-{number:03}"))
            try:
                if part.kind == "template":
                    part = self._filled_in(part)
                    part = self._recognised(part)
                self._add(part)
            except Refused as refused:
                self._tell(part.place, refused.problem)

    def _name(self, name: str) -> str:
        """That name, or one like it that no part has yet."""
        wanted = self.prefix + name
        name, count = wanted, 1
        while name in self.names:
            count += 1
            name = f"{wanted}-{count}"
        self.names.add(name)
        return name

    def _tell(self, place: Place, *problems: Problem) -> None:
        self.problems += [place.tell(problem) for problem in problems]

    def _filled_in(self, part: Part) -> Part:
        # Not at the top: templates are rare.
        from proa.machine.cloudconfig.template import instance_data, render

        source = decode(part.content)
        if source.startswith("##"):  # else its type was said outside
            source = "".join(source.partition("\n")[1:])
        text, problems = render(source, instance_data(self.given.metadata, self.given.version))
        self._tell(part.place, *problems)
        place = Place(f"{part.place.name or 'the template'}, filled in", None, part.place.at)
        return replace(part, content=text.encode("utf-8", "replace"), place=place)

    def _recognised(self, part: Part) -> Part:
        """What a filled in template is: its own first line says it."""
        content = part.content.lstrip()
        skipped = part.content.count(b"\n", 0, len(part.content) - len(content))
        kind = recognise(content) if content else "cloud-config"
        if kind is None:
            raise Refused(unknown(content).problem.message, skipped + 1)
        if kind == "script" or kind == "boothook":
            content, complaint = runnable(kind, content)
            self._tell(part.place, *([Problem("warning", complaint)] if complaint else []))
            frequency: Frequency = "per-boot" if kind == "boothook" else part.frequency
            return replace(part, kind=kind, content=content, frequency=frequency, whole=False)
        if kind == "cloud-config":
            return replace(part, kind=kind, content=b"\n" * skipped + content)
        raise Refused(f"a template may become a cloud-config or a script, not {_ARTICLES[kind]}")

    def _add(self, part: Part) -> None:
        match part.kind:
            case "cloud-config":
                self._add_config(part)
            case "script" | "boothook":
                content = part.content
                if part.whole and part.kind == "script":
                    # As CoreOS did. Elsewhere these words are the script's own variables.
                    text = content.decode("utf-8", "surrogateescape")
                    text = self._words_put_in(part.place, text)
                    content = text.encode("utf-8", "surrogateescape")
                script = Script(content, part.name, part.frequency)
                (self.scripts if part.kind == "script" else self.boothooks).append(script)
            case kind:
                if self.prefix:
                    raise Refused(f"{_ARTICLES[kind]} is taken from user-data only")
                if self.others:
                    raise Refused("there is an Ignition or Butane config already; write one")
                self.others[kind] = Other(decode(part.content), part.place)

    def _words_put_in(self, place: Place, text: str) -> str:
        text, problems = substitute(text, self.given.metadata.addresses, self.given.environment)
        self._tell(place, *problems)
        return text

    def _add_config(self, part: Part) -> None:
        text = self._words_put_in(part.place, decode(part.content))
        root = load(text)
        if root is None:
            return
        if not isinstance(root, Table):
            raise Refused("a cloud-config wants a mapping", root.line, root.column)
        root, how, problems = taken_out(root, part.merge_type)
        self._tell(part.place, *problems)
        before = self.lines + (part.place.before or 0) if not self.places else self.lines
        new = moved(root, before)
        self.root = new if self.root is None else merge(self.root, new, how)
        self.places.append((before, part.place))
        self.lines = before + text.count("\n") + 1


_ARTICLES: Mapping[str, str] = {
    "ignition": "an Ignition config",
    "butane": "a Butane config",
    "template": "another template",
    "mime": "a MIME message",
    "archive": "an archive",
    "include": "an #include",
    "include-once": "an #include",
}
