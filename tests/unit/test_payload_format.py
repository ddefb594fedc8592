"""The payload format: what is written is read back, and what is not right is refused in words."""

from __future__ import annotations

import io
import lzma
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proa.wire import payload as form
from proa.wire.bytecode import PayloadError, Reader, Writer
from proa.wire.codec import Codec, Encoding
from proa.wire.erofs import Extent
from proa.wire.payload import (
    MAX_LANES,
    Blob,
    Built,
    Copy,
    Drop,
    Encode,
    Frame,
    GroupEntry,
    Head,
    Hold,
    Image,
    Inner,
    Item,
    Packing,
    Patch,
    Plain,
    Plan,
    Section,
    Source,
    Step,
    Verity,
    Zero,
)
from proa.wire.unpack import Workshop, held, unpack

LZMA = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 1 << 16}]
LCLPPB = (2 * 5 + 0) * 9 + 3

# --- numbers --------------------------------------------------------------------------------------

BIG = 1 << 40


@given(st.lists(st.tuples(st.sampled_from("nsze"), st.integers(-BIG, BIG))))
def test_numbers_come_back(values: list[tuple[str, int]]) -> None:
    out = Writer()
    for kind, value in values:
        match kind:
            case "n":
                out.number(abs(value))
            case "s":
                out.signed(value)
            case "z":
                out.size(abs(value))
            case "e":
                out.signed_size(value)
    read = Reader(out.done(), "numbers")
    for kind, value in values:
        match kind:
            case "n":
                assert read.number("n", BIG) == abs(value)
            case "s":
                assert read.signed("s", BIG) == value
            case "z":
                assert read.size("z", BIG) == abs(value)
            case "e":
                assert read.signed_size("e", BIG) == value
    read.end()


@given(st.integers(1, 1 << 40))
def test_a_number_beyond_its_bound_is_refused(most: int) -> None:
    for value in (most + 1, -most - 1):
        out = Writer()
        out.signed(value)
        with pytest.raises(PayloadError, match="x is more than"):
            Reader(out.done(), "numbers").signed("x", most)
        out = Writer()
        out.signed_size(value)
        with pytest.raises(PayloadError, match="x is more than"):
            Reader(out.done(), "numbers").signed_size("x", most)
    out = Writer()
    out.size(most + 1)
    with pytest.raises(PayloadError, match="x is more than"):
        Reader(out.done(), "numbers").size("x", most)
    out = Writer()
    out.number(most + 1)
    with pytest.raises(PayloadError, match="x is more than"):
        Reader(out.done(), "numbers").number("x", most)


def test_a_number_that_never_ends_is_refused() -> None:
    with pytest.raises(PayloadError, match="x is more than"):
        Reader(b"\x80" * 1000 + b"\0", "numbers").number("x", 5)
    with pytest.raises(PayloadError, match="ends in the middle of x"):
        Reader(b"\x80", "numbers").number("x", 5)


def test_a_count_cannot_ask_for_more_than_is_there() -> None:
    out = Writer()
    out.number(1000)
    out.raw(bytes(1999))
    with pytest.raises(PayloadError, match="1000 things do not fit into 1999 bytes"):
        Reader(out.done(), "a list").count("things", 2)


def test_a_text_is_printable_ascii() -> None:
    for text in (b"\n", b"\x7f", b"\xc3\xa4"):
        with pytest.raises(PayloadError, match="x is not printable ASCII"):
            Reader(bytes([len(text)]) + text, "a text").text("x")


@given(st.binary(max_size=64))
def test_a_reader_raises_one_exception_only(data: bytes) -> None:
    for method in ("number", "signed", "size", "signed_size", "count", "text"):
        try:
            getattr(Reader(data, "noise"), method)("x", 1000)
        except PayloadError as error:
            assert "noise" in str(error)


# --- the head -------------------------------------------------------------------------------------

sha256 = st.binary(min_size=32, max_size=32)


@st.composite
def builts(draw: st.DrawFn, *, windows: bool) -> Built:
    groups = draw(
        st.lists(
            st.builds(GroupEntry, st.integers(0, 1 << 27), st.integers(0, form.MAX_BLOB), sha256),
            max_size=4,
        )
    )
    size = sum(group.length for group in groups)
    count = -(-size // form.WINDOW) if windows else 0
    hashes = [draw(st.binary(min_size=16, max_size=16))] * count
    return Built(size, draw(sha256), tuple(groups), tuple(hashes))


heads = st.builds(
    Head,
    encoder=st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=30),
    source=st.one_of(st.just(b""), sha256),
    source_size=st.integers(0, form.MAX_OUTPUT),
    usr=builts(windows=True),
    verity=st.builds(
        Verity,
        st.integers(0, form.MAX_OUTPUT),
        sha256,
        st.binary(max_size=256),
        st.binary(min_size=16, max_size=16),
    ),
    uki=builts(windows=False),
    scratch=st.integers(0, form.MAX_OUTPUT),
)


@given(heads)
def test_a_head_comes_back(head: Head) -> None:
    assert form.load_head(form.dump_head(head)) == head


@given(heads, st.data())
def test_a_head_that_was_cut_or_grew_is_refused(head: Head, data: st.DataObject) -> None:
    whole = form.dump_head(head)
    with pytest.raises(PayloadError):
        form.load_head(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(PayloadError, match="1 bytes too many"):
        form.load_head(whole + b"\0")


HEAD = Head(
    "zstd 1.5.7",
    bytes(32),
    4096,
    Built(8192, bytes(32), (GroupEntry(8192, 100, bytes(32)),), (bytes(16),)),
    Verity(8192, bytes(32), bytes(32), bytes(16)),
    Built(10, bytes(32), (GroupEntry(10, 5, bytes(32)),)),
)


def test_what_is_not_known_is_refused_in_words() -> None:
    whole = form.dump_head(HEAD)
    with pytest.raises(PayloadError, match="not a payload"):
        form.load_head(b"<!doctype html>")
    with pytest.raises(PayloadError, match="another version; this program reads 1"):
        form.load_head(b"PROAPLD2" + whole[8:])
    for feature in (b"\x01", b"\x80\x01"):
        with pytest.raises(PayloadError, match="features that this program does not know"):
            form.load_head(whole[:8] + feature + whole[9:])


def test_a_head_is_bounded() -> None:
    with pytest.raises(PayloadError, match="the head has 1048577 bytes"):
        form.load_head(form.dump_head(HEAD).ljust(form.MAX_HEAD + 1, b"\0"))
    huge = Built(form.MAX_OUTPUT + 1, bytes(32), ())
    with pytest.raises(PayloadError, match="the size of the boot image is more than"):
        form.load_head(form.dump_head(Head(**{**vars(HEAD), "uki": huge})))
    blob = Built(1, bytes(32), (GroupEntry(1, form.MAX_BLOB + 1, bytes(32)),))
    with pytest.raises(PayloadError, match="the size of a blob is more than"):
        form.load_head(form.dump_head(Head(**{**vars(HEAD), "uki": blob})))


def test_groups_must_make_the_output_and_windows_must_cover_usr() -> None:
    short = Built(9, bytes(32), HEAD.uki.groups)
    with pytest.raises(PayloadError, match="the groups of the boot image do not make its 9 bytes"):
        form.load_head(form.dump_head(Head(**{**vars(HEAD), "uki": short})))
    for windows in ((), (bytes(16),) * 2):
        usr = Built(8192, bytes(32), HEAD.usr.groups, windows)
        with pytest.raises(PayloadError, match=f"usr of 8192 bytes has {len(windows)} windows"):
            form.load_head(form.dump_head(Head(**{**vars(HEAD), "usr": usr})))


def test_a_source_is_a_root_hash_or_nothing() -> None:
    with pytest.raises(PayloadError, match="source is not a root hash"):
        form.load_head(form.dump_head(Head(**{**vars(HEAD), "source": bytes(31)})))


# --- the plan -------------------------------------------------------------------------------------

sizes = st.one_of(st.integers(0, 1 << 20), st.integers(0, 255).map(lambda n: n << 12))


@st.composite
def sources(draw: st.DrawFn) -> Source:
    extents = []
    logical = 0
    for _ in range(draw(st.integers(0, 4))):
        algorithm = draw(st.sampled_from(form.ALGORITHMS))
        stored = draw(sizes)
        plain = stored if algorithm == "raw" else draw(sizes)
        extents.append(Extent(logical, plain, draw(sizes), stored, algorithm))
        logical += plain
    inner = draw(st.one_of(st.none(), st.builds(Inner, sizes, sizes, sizes)))
    return Source(draw(st.sampled_from(Image)), tuple(extents), inner)


PARAMETERS = ((101, 22), (102, 19), (103, 21), (104, 7), (105, 3), (106, 256), (107, 8), (201, 1))


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    found = draw(st.lists(sources(), max_size=3))
    lane_count = draw(st.integers(1, MAX_LANES))
    lanes = []
    for lane in range(lane_count):
        items: list[Item] = []
        for _ in range(draw(st.integers(0, 3))):
            if lane + 1 < lane_count and draw(st.booleans()):
                behind = draw(st.integers(lane + 1, lane_count - 1))
                count = draw(st.integers(0, len(PARAMETERS)))
                items.append(Frame(behind, draw(sizes), draw(sizes), PARAMETERS[:count]))
            else:
                source = draw(st.integers(0, len(found)))
                items.append(Patch(source, draw(sizes), draw(sizes)))
        lanes.append(tuple(items))
    steps: list[Step] = []
    waiting: list[int] = []
    held = 0
    for _ in range(draw(st.integers(0, 8))):
        lane = draw(st.sampled_from([*range(lane_count), *waiting]))
        step: Step
        match draw(st.integers(0, 5)):
            case 0:
                step = Copy(draw(sizes), draw(sizes))
            case 1:
                step = Plain(lane, draw(sizes))
            case 2:
                algorithm = draw(st.sampled_from(form.ALGORITHMS))
                step = Encode(lane, algorithm, draw(sizes), draw(sizes))
            case 3:
                step = Zero(draw(sizes))
            case 4:
                step = Hold(lane, draw(sizes))
            case _:
                step = Drop(lane, draw(sizes))
        steps.append(step)
        if isinstance(step, Plain | Encode | Hold | Drop) and step.lane in waiting:
            waiting.remove(step.lane)
        if isinstance(step, Hold):
            waiting.append(MAX_LANES + held)
            held += 1
    steps += [Drop(lane, draw(sizes)) for lane in waiting]
    return Plan(
        tuple(found),
        tuple(lanes),
        tuple(steps),
        draw(st.integers(0, 22)),
        draw(st.integers(0, 1 << 20)),
    )


@given(plans())
def test_a_plan_comes_back(plan: Plan) -> None:
    assert form.load_plan(form.dump_plan(plan)) == plan


@given(plans(), st.data())
def test_a_plan_that_was_cut_or_grew_is_refused(plan: Plan, data: st.DataObject) -> None:
    whole = form.dump_plan(plan)
    with pytest.raises(PayloadError):
        form.load_plan(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(PayloadError, match="1 bytes too many"):
        form.load_plan(whole + b"\0")


@given(st.binary(max_size=200))
def test_noise_is_not_a_plan_nor_a_blob_nor_a_head(noise: bytes) -> None:
    for load in (form.load_plan, load_blob, form.load_head):
        try:
            load(noise)
        except PayloadError:
            continue
    with pytest.raises(PayloadError):
        form.load_head(form.MAGIC + noise)


def refused(plan: Plan, words: str) -> None:
    with pytest.raises(PayloadError, match=words):
        form.load_plan(form.dump_plan(plan))


def plan_of(
    steps: Sequence[Step] = (),
    lanes: Sequence[Sequence[Item]] = ((), ()),
    sources: Sequence[Source] = (),
    level: int = 3,
    cluster: int = 65536,
) -> Plan:
    return Plan(tuple(sources), tuple(map(tuple, lanes)), tuple(steps), level, cluster)


def test_a_plan_names_only_what_it_has() -> None:
    refused(plan_of([Plain(2, 1)]), "a step takes from lane 2 of 2")
    refused(plan_of([Plain(MAX_LANES, 1)]), f"a step takes from lane {MAX_LANES} of 2")
    refused(plan_of(lanes=[[Patch(1, 1, 1)]]), "a patch names source 1 of 0")
    refused(plan_of(lanes=[[Frame(2, 1, 1, ())], []]), "lane 0 takes its bytes from lane 2 of 2")
    refused(plan_of(lanes=[[Frame(4, 1, 1, ())]] * 4), "lane 0 takes its bytes from lane 4 of 4")


def test_lanes_cannot_wait_for_one_another() -> None:
    refused(plan_of(lanes=[[Frame(0, 1, 1, ())], []]), "lane 0 takes its bytes from lane 0")
    refused(plan_of(lanes=[[], [Frame(0, 1, 1, ())]]), "lane 1 takes its bytes from lane 0")


def test_what_is_put_aside_is_used_once_and_only_later() -> None:
    aside = MAX_LANES
    refused(plan_of([Hold(0, 1)]), "put aside is not used")
    refused(plan_of([Plain(aside, 1), Hold(0, 1)]), f"a step takes from lane {aside}")
    refused(plan_of([Hold(0, 1), Plain(aside, 1), Plain(aside, 1)]), f"from lane {aside}")


def test_what_is_put_aside_is_bounded() -> None:
    half = form.MAX_HELD_BYTES // 2
    steps: list[Step] = [
        Hold(0, half),
        Hold(0, half + 1),
        Drop(MAX_LANES, 1),
        Drop(MAX_LANES + 1, 1),
    ]
    refused(plan_of(steps), "a plan puts too much aside")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (plan_of(level=23), "a level is more than 22"),
        (plan_of(cluster=form.MAX_CLUSTER + 1), "the size of clusters is more than"),
        (plan_of(lanes=[()] * (MAX_LANES + 1)), "the number of lanes is more than"),
        (plan_of([Copy(0, form.MAX_OUTPUT + 1)]), "a length is more than"),
        (plan_of([Plain(0, form.MAX_SECTION + 1)]), "a length is more than"),
        (plan_of([Zero(form.MAX_OUTPUT + 1)]), "a length is more than"),
        (plan_of([Encode(0, "zstd", form.MAX_CLUSTER + 1, 1)]), "a plain size is more than"),
        (plan_of([Encode(0, "zstd", 1, form.MAX_CLUSTER + 1)]), "a stored size is more than"),
        (plan_of(lanes=[[Patch(0, form.MAX_SECTION + 1, 0)]]), "the size of a patch is more"),
        (plan_of(lanes=[[Patch(0, 0, form.MAX_CONTROL + 1)]]), "control bytes of a patch is more"),
        (plan_of([Zero(form.MAX_OUTPUT), Zero(1)]), "a plan makes more than"),
        (plan_of([Copy(0, form.MAX_OUTPUT), Copy(0, 1)]), "a plan makes more than"),
        (
            plan_of(lanes=[[Patch(0, form.MAX_SECTION, 0)] * 9]),
            "the lanes of a plan make more than",
        ),
        (plan_of([Zero(1)] * (form.MAX_ENTRIES + 1)), "a plan has more than"),
        (plan_of(sources=[Source(Image.OLD_USR, ())] * (form.MAX_ENTRIES + 1)), "has more than"),
        (plan_of(lanes=[[Patch(0, 0, 0)] * (form.MAX_ENTRIES + 1)]), "a plan has more than"),
        (
            plan_of(
                sources=[
                    Source(Image.OLD_USR, (Extent(0, 1, 0, 1, "raw"),) * form.MAX_ENTRIES),
                ]
                * 2
            ),
            "a plan has more than",
        ),
        (
            plan_of(sources=[Source(Image.OLD_USR, (), Inner(0, 0, form.MAX_SECTION + 1))]),
            "the plain size of a frame is more than",
        ),
        (
            plan_of(
                sources=[
                    Source(
                        Image.OLD_USR,
                        (Extent(0, 1, 0, form.MAX_CLUSTER + 1, "zstd"),),
                    )
                ]
            ),
            "a cluster has 8388609 bytes",
        ),
    ],
)
def test_each_bound_of_a_plan_is_kept(plan: Plan, words: str) -> None:
    refused(plan, words)


def test_a_copy_and_a_source_begin_in_their_image() -> None:
    refused(plan_of([Copy(-1, 5)]), "a copy begins before its image")
    extent = Extent(0, 5, -1, 5, "raw")
    refused(plan_of(sources=[Source(Image.OLD_USR, (extent,))]), "a source begins before its image")
    refused(plan_of([Copy(5, form.MAX_OUTPUT)]), "a copy ends behind any image")
    end = form.MAX_OUTPUT
    far = tuple(Extent(0, 5, place, 5, "raw") for place in (end - 5, end))
    refused(plan_of(sources=[Source(Image.OLD_USR, far)]), "a source ends behind any image")


@pytest.mark.parametrize(
    "parameter",
    [(100, 22), (101, 24), (102, 23), (103, 23), (107, 10), (160, 1), (400, 8), (101, -1)],
)
def test_a_frame_cannot_ask_for_much_memory_or_for_threads(parameter: tuple[int, int]) -> None:
    lanes = [[Frame(1, 1, 1, (parameter,))], []]
    refused(plan_of(lanes=lanes), "a frame's parameter")


def test_an_image_and_a_kind_that_are_not_known_are_refused() -> None:
    start = bytes([3, 1])
    with pytest.raises(PayloadError, match="image 3 is not known"):
        form.load_plan(start + bytes([1, 3, 0, 0]))
    with pytest.raises(PayloadError, match="the kind of an item is more than 1"):
        form.load_plan(start + bytes([0, 1, 1, 2, 0, 0, 0]))
    with pytest.raises(PayloadError, match="the kind of a step is more than 5"):
        form.load_plan(start + bytes([0, 1, 0, 1, 6, 0]))


# --- the blob -------------------------------------------------------------------------------------


def packed(
    data: bytes, packing: Packing = Packing.NONE, plain: int | None = None
) -> tuple[Section, bytes]:
    """Return ``data`` as a section, which may lie about its plain size."""
    plain = len(data) if plain is None else plain
    match packing:
        case Packing.LZMA:
            stored = lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA)
            return Section(packing, len(stored), plain, LCLPPB, 1 << 16), stored
        case Packing.ZSTD:
            stored = b"".join(Codec().zstd.encode_frame([data], 3, 10))
            return Section(packing, len(stored), plain), stored
        case _:
            return Section(packing, len(data), plain), data


def load_blob(data: bytes) -> Blob:
    return form.load_blob(data, len(data))


def blob(plan: Plan, lanes: Sequence[Sequence[bytes]], packing: Packing = Packing.NONE) -> bytes:
    return form.dump_blob(
        packed(form.dump_plan(plan)), [[packed(data, packing) for data in lane] for lane in lanes]
    )


@given(
    st.lists(st.lists(st.binary(max_size=20), min_size=3, max_size=3), max_size=MAX_LANES),
    st.sampled_from(Packing),
)
def test_a_blob_comes_back(lanes: list[list[bytes]], packing: Packing) -> None:
    sections = [[packed(data, packing) for data in lane] for lane in lanes]
    data = form.dump_blob(packed(b"plan"), sections)
    found = load_blob(data)
    assert [list(lane) for lane in found.lanes] == [[s for s, _ in lane] for lane in sections]
    assert data[found.content :] == b"plan" + b"".join(d for lane in sections for _, d in lane)
    for wrong in (data + b"\0", data[:-1]):
        with pytest.raises(PayloadError, match="sections do not fill it"):
            load_blob(wrong)


def test_each_bound_of_a_blob_is_kept() -> None:
    def load(section: Section, *, plan: bool = False) -> None:
        empty = Section(Packing.NONE, 0, 0)
        first, rest = (section, empty) if plan else (empty, section)
        load_blob(form.dump_blob((first, b""), [[(rest, b"")] * 3]))

    for section, words in [
        (Section(Packing.ZSTD, form.MAX_BLOB + 1, 0), "the size of a section is more"),
        (Section(Packing.ZSTD, 0, form.MAX_SECTION + 1), "the unpacked size of a section is more"),
        (Section(Packing.LZMA, 0, 0, 225, 0), "the settings of LZMA is more than 224"),
        (Section(Packing.LZMA, 0, 0, 0, form.MAX_DICTIONARY + 1), "the dictionary of LZMA is more"),
        (Section(Packing.LZMA, 0, 0, 9 * 1 + 4, 0), "settings of LZMA that do not exist"),
        (Section(Packing.NONE, 1, 2), "has two sizes"),
    ]:
        with pytest.raises(PayloadError, match=words):
            load(section)
    with pytest.raises(PayloadError, match="the unpacked size of a section is more"):
        load(Section(Packing.ZSTD, 0, form.MAX_PLAN + 1), plan=True)
    with pytest.raises(PayloadError, match="the number of lanes is more than"):
        load_blob(bytes([MAX_LANES + 1]))
    with pytest.raises(PayloadError, match="packed in a way that this program does not know"):
        load_blob(bytes([0, 3, 0, 0]))
    with pytest.raises(PayloadError, match="a blob has"):
        load_blob(bytes(form.MAX_BLOB + 1))


@pytest.mark.parametrize("packing", [Packing.LZMA, Packing.ZSTD])
def test_the_windows_of_all_sections_are_bounded_together(packing: Packing) -> None:
    section = Section(packing, 0, form.MAX_SECTION, 0, form.MAX_DICTIONARY)
    empty = (Section(Packing.NONE, 0, 0), b"")
    with pytest.raises(PayloadError, match="a blob asks for too much memory"):
        load_blob(form.dump_blob(empty, [[(section, b"")] * 3] * MAX_LANES))


# --- groups ---------------------------------------------------------------------------------------

OLD = bytes(range(256)) * 64


def control(size: int, *copies: tuple[int, int, int], old: int = 0) -> bytes:
    """Return a control stream of plain copies (length, offset, extra) without differences."""
    out = Writer()
    for number in (0, old, len(copies), 0, 0):
        out.number(number)
    for column in (0, 2):
        for copy in copies:
            out.number(copy[column])
    at = 0
    for length, offset, _ in copies:
        out.signed(offset - at)
        at = offset + length
    assert size == sum(length + extra for length, _, extra in copies)
    return out.done()


def new(data: bytes, source: int = 0) -> tuple[Patch, list[bytes]]:
    """Return a patch that gives ``data``, without old bytes, and its three streams."""
    made = control(len(data), (0, 0, len(data)))
    return Patch(source, len(data), len(made)), [made, b"", data]


def shop(old: bytes = OLD) -> Workshop:
    def read(image: Image, offset: int, size: int) -> bytes:
        if offset + size > len(old):
            raise OSError("behind the end")
        return old[offset : offset + size]

    return Workshop(read, Codec(), io.BytesIO)


def output(plan: Plan, lanes: Sequence[Sequence[bytes]], packing: Packing = Packing.NONE) -> bytes:
    return b"".join(unpack(held(blob(plan, lanes, packing)), shop()))


TEXT = b"The quick brown fox jumps over the lazy dog. " * 40


def test_a_copy_a_hole_and_new_bytes() -> None:
    patch, streams = new(TEXT)
    plan = plan_of([Copy(100, 50), Zero(7), Plain(0, len(TEXT)), Copy(0, 1)], [[patch]])
    for packing in Packing:
        assert output(plan, [streams], packing) == OLD[100:150] + bytes(7) + TEXT + OLD[:1]


def test_long_runs_come_in_pieces() -> None:
    plan = plan_of([Zero(1 << 20), Copy(0, 1 << 20)])
    old = bytes(1 << 20)
    empty = [[b""] * 3] * 2
    pieces = list(unpack(held(blob(plan, empty)), shop(old)))
    assert max(map(len, pieces)) == 1 << 18
    assert b"".join(pieces) == bytes(2 << 20)


@pytest.mark.parametrize("algorithm", ["zstd", "lz4"])
def test_a_cluster_is_encoded(algorithm: str) -> None:
    codec = Codec()
    level = 3 if algorithm == "zstd" else 0
    encoding = Encoding(algorithm, level, 8192)  # type: ignore[arg-type]
    whole = TEXT * 3
    if algorithm == "zstd":
        stored = codec.zstd.compressor(level, encoding.window_log).encode(whole, 8192 + 32)
        assert stored is not None
    else:
        stored, taken = codec.lz4.encode(whole, 8192)
        assert taken == len(whole)
    patch, streams = new(whole)
    step = Encode(0, algorithm, len(whole), len(stored))  # type: ignore[arg-type]
    plan = plan_of([step], [[patch]], level=level, cluster=8192)
    assert output(plan, [streams]) == stored
    wrong = Encode(0, algorithm, len(whole), len(stored) + 1)  # type: ignore[arg-type]
    with pytest.raises(PayloadError, match=f"{algorithm}: 5400 bytes do not become"):
        output(plan_of([wrong], [[patch]], level=level, cluster=8192), [streams])


def test_a_cluster_that_is_stored_as_it_is_cannot_be_encoded() -> None:
    patch, streams = new(TEXT)
    with pytest.raises(PayloadError, match="no encoder for raw"):
        output(plan_of([Encode(0, "raw", len(TEXT), len(TEXT))], [[patch]]), [streams])


def test_what_is_put_aside_comes_later_and_what_is_dropped_never() -> None:
    patch, streams = new(b"headmiddletail")
    aside = MAX_LANES
    steps: list[Step] = [Hold(0, 4), Drop(0, 6), Hold(0, 4), Plain(aside + 1, 4), Plain(aside, 4)]
    assert output(plan_of(steps, [[patch]]), [streams]) == b"tailhead"
    again: list[Step] = [Hold(0, 4), Drop(0, 10), Hold(aside, 4), Drop(aside + 1, 4)]
    assert output(plan_of(again, [[patch]]), [streams]) == b""
    with pytest.raises(PayloadError, match="3 bytes are taken of 4 put aside"):
        output(plan_of([Hold(0, 4), Drop(0, 10), Plain(aside, 3)], [[patch]]), [streams])


def test_a_frame_is_made_of_another_lane() -> None:
    frame = b"".join(Codec().zstd.encode_with([TEXT], PARAMETERS, len(TEXT)))
    patch, streams = new(TEXT)
    lanes: list[list[Item]] = [[Frame(1, len(TEXT), len(frame), PARAMETERS)], [patch]]
    plan = plan_of([Plain(0, len(frame))], lanes)
    assert output(plan, [[b""] * 3, streams]) == frame
    for stored in (len(frame) - 1, len(frame) + 1):
        lanes[0] = [Frame(1, len(TEXT), stored, PARAMETERS)]
        with pytest.raises(PayloadError, match=f"{len(frame)} bytes instead of {stored}"):
            output(plan_of([Plain(0, len(frame))], lanes), [[b""] * 3, streams])
    lanes[0] = [Frame(1, len(TEXT) + 1, len(frame), PARAMETERS)]
    with pytest.raises(PayloadError, match="a lane ends 1 bytes early"):
        output(plan_of([Plain(0, len(frame))], lanes), [[b""] * 3, streams])


def old_frame(plain: int) -> tuple[bytes, Source]:
    frame = b"".join(Codec().zstd.encode_frame([TEXT], 3))
    old = b"#" * 11 + frame + b"#" * 9
    extents = (Extent(0, 20, 0, 20, "raw"), Extent(20, len(old) - 20, 20, len(old) - 20, "raw"))
    return old, Source(Image.OLD_UKI, extents, Inner(11, len(frame), plain))


def test_a_patch_can_look_into_an_old_frame() -> None:
    old, source = old_frame(len(TEXT))
    made = control(30, (10, 4, 0), (20, 500, 0), old=len(TEXT))
    plan = plan_of([Plain(0, 30)], [[Patch(1, 30, len(made))]], [source])
    data = blob(plan, [[made, b"", b""]])
    assert b"".join(unpack(held(data), shop(old))) == TEXT[4:14] + TEXT[500:520]


@pytest.mark.parametrize(("away", "words"), [(-1, "more than it should"), (1, "less than it")])
def test_an_old_frame_holds_what_was_said(away: int, words: str) -> None:
    old, source = old_frame(len(TEXT) + away)
    made = control(10, (10, 4, 0), old=len(TEXT) + away)
    plan = plan_of([Plain(0, 10)], [[Patch(1, 10, len(made))]], [source])
    with pytest.raises(PayloadError, match=words):
        b"".join(unpack(held(blob(plan, [[made, b"", b""]])), shop(old)))


def test_an_old_frame_that_is_damaged_is_refused() -> None:
    old, source = old_frame(len(TEXT))
    damaged = bytearray(old)
    damaged[12] ^= 0xFF
    made = control(10, (10, 4, 0), old=len(TEXT))
    plan = plan_of([Plain(0, 10)], [[Patch(1, 10, len(made))]], [source])
    with pytest.raises(PayloadError, match="zstd"):
        b"".join(unpack(held(blob(plan, [[made, b"", b""]])), shop(bytes(damaged))))


def test_the_file_for_an_old_frame_is_closed() -> None:
    old, source = old_frame(len(TEXT))
    opened: list[io.BytesIO] = []

    def scratch() -> io.BytesIO:
        opened.append(io.BytesIO())
        return opened[-1]

    made = control(10, (10, 4, 0), old=len(TEXT))
    again = control(1, (0, 0, 1))
    items = [Patch(1, 10, len(made)), Patch(0, 1, len(again)), Patch(1, 10, len(made))]
    plan = plan_of([Plain(0, 21)], [items], [source])
    workshop = Workshop(shop(old).read, Codec(), scratch)
    pieces = list(unpack(held(blob(plan, [[made + again + made, b"", b"#"]])), workshop))
    assert b"".join(pieces) == TEXT[4:14] + b"#" + TEXT[4:14]
    assert [file.closed for file in opened] == [True, True]


def test_an_old_cluster_that_is_damaged_is_refused() -> None:
    source = Source(Image.OLD_USR, (Extent(0, 4096, 0, 100, "zstd"),))
    made = control(10, (10, 4, 0), old=4096)
    plan = plan_of([Plain(0, 10)], [[Patch(1, 10, len(made))]], [source])
    with pytest.raises(PayloadError, match="the cluster at 0"):
        output(plan, [[made, b"", b""]])


def test_a_read_error_of_the_old_image_stays_one() -> None:
    with pytest.raises(OSError, match="behind the end"):
        output(plan_of([Copy(len(OLD), 1)]), [[b""] * 3] * 2)


def test_a_patch_without_a_source_sees_no_old_bytes() -> None:
    made = control(10, (10, 0, 0), old=10)
    plan = plan_of([Plain(0, 10)], [[Patch(0, 10, len(made))]])
    with pytest.raises(PayloadError, match="without a source"):
        output(plan, [[made, b"", b""]])


def test_a_lane_ends_when_the_steps_do() -> None:
    patch, streams = new(TEXT)
    with pytest.raises(PayloadError, match="a lane ends 1 bytes early"):
        output(plan_of([Plain(0, len(TEXT) + 1)], [[patch]]), [streams])
    with pytest.raises(PayloadError, match="a lane has bytes that nothing takes"):
        output(plan_of([Plain(0, len(TEXT) - 1)], [[patch]]), [streams])
    with pytest.raises(PayloadError, match="a plan has other lanes than its blob"):
        output(plan_of([Plain(0, len(TEXT))], [[patch], []]), [streams])


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_section_ends_when_its_patches_do(packing: Packing, which: int) -> None:
    patch, streams = new(TEXT)
    streams[which] += b"#"
    with pytest.raises(PayloadError, match="a section unpacks to more than is used"):
        output(plan_of([Plain(0, len(TEXT))], [[patch]]), [streams], packing)


@pytest.mark.parametrize("packing", [Packing.LZMA, Packing.ZSTD])
@pytest.mark.parametrize("away", [-1, 1])
def test_a_section_unpacks_to_what_it_says(packing: Packing, away: int) -> None:
    patch, streams = new(TEXT)
    sections = [packed(data, packing) for data in streams[:2]]
    sections.append(packed(TEXT, packing, len(TEXT) + away))
    plan = plan_of([Plain(0, len(TEXT))], [[patch]])
    data = form.dump_blob(packed(form.dump_plan(plan)), [sections])
    with pytest.raises(PayloadError, match=r"a section (unpacks to|has)"):
        list(unpack(held(data), shop()))


@pytest.mark.parametrize("packing", [Packing.LZMA, Packing.ZSTD])
@pytest.mark.parametrize("part", ["lane", "plan"])
@pytest.mark.parametrize("wrong", ["cut", "grown", "noise"])
def test_a_section_is_whole(packing: Packing, part: str, wrong: str) -> None:
    patch, streams = new(TEXT)
    plan = packed(form.dump_plan(plan_of([Plain(0, len(TEXT))], [[patch]])), packing)
    lane = [packed(data, packing) for data in streams]
    section, data = lane[2] if part == "lane" else plan
    data = {"cut": data[:-1], "grown": data + b"\0", "noise": b"\xff" * len(data)}[wrong]
    changed = Section(section.packing, len(data), section.plain, section.lclppb, section.dictionary)
    if part == "lane":
        lane[2] = changed, data
    else:
        plan = changed, data
    with pytest.raises(PayloadError):
        list(unpack(held(form.dump_blob(plan, [lane])), shop()))


@pytest.mark.parametrize("packing", [Packing.LZMA, Packing.ZSTD])
def test_a_bomb_is_refused_without_holding_it(packing: Packing) -> None:
    patch, streams = new(TEXT)
    lane = [packed(data) for data in streams]
    lane[2] = packed(bytes(16 << 20), packing, len(TEXT))
    plan = packed(form.dump_plan(plan_of([Plain(0, len(TEXT))], [[patch]])))
    data = form.dump_blob(plan, [lane])
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="unpacks to more than is used"):
            list(unpack(held(data), shop()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_plan_that_is_a_bomb_is_refused_without_holding_it() -> None:
    bomb = packed(bytes(32 << 20), Packing.ZSTD, 100)
    data = form.dump_blob(bomb, [])
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="unpacks to more than is used"):
            list(unpack(held(data), shop()))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_of_zstd_with_a_large_window_is_refused() -> None:
    patch, streams = new(TEXT * 200)
    lane = [packed(data) for data in streams]
    # Without a size in its header, a frame's window is what was asked for.
    stored = b"".join(Codec().zstd.encode_frame([TEXT * 200], 3, 24))
    lane[2] = Section(Packing.ZSTD, len(stored), len(TEXT * 200)), stored
    plan = packed(form.dump_plan(plan_of([Plain(0, len(TEXT * 200))], [[patch]])))
    with pytest.raises(PayloadError, match="zstd: Frame requires too much memory"):
        list(unpack(held(form.dump_blob(plan, [lane])), shop()))
