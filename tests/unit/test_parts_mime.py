"""A MIME message comes apart as Python's own library takes it apart, with the lines besides."""

from __future__ import annotations

import email
from email.message import Message
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText

from hypothesis import given
from hypothesis import strategies as st

from proa.machine.cloudconfig.mime import is_mime, split

texts = st.text(st.sampled_from("a:-#=\n \t\u00e4"), max_size=40)
leaves: st.SearchStrategy[Message] = st.one_of(
    st.builds(MIMEText, texts, st.sampled_from(["plain", "cloud-config"]), st.just("utf-8")),
    st.builds(
        MIMEText,
        st.text(st.sampled_from("a:-#=\n \t"), max_size=40),
        st.just("x-shellscript"),
        st.just("us-ascii"),
    ),
    st.builds(MIMEApplication, st.binary(max_size=40)),
)


def multipart(parts: list[Message]) -> Message:
    made = MIMEMultipart()
    for number, part in enumerate(parts):
        if number % 2:
            part["Content-Disposition"] = f'attachment; filename="{number}.sh"'
        made.attach(part)
    return made


messages = st.lists(
    leaves | st.lists(leaves, min_size=1, max_size=3).map(multipart), min_size=1, max_size=4
).map(multipart)


@given(messages, st.sampled_from([b"\n", b"\r\n"]))
def test_parts_types_names_and_contents_are_those_of_pythons_library(
    made: Message, line_end: bytes
) -> None:
    data = made.as_bytes().replace(b"\n", line_end)
    assert is_mime(data)
    expected = [part for part in email.message_from_bytes(data).walk() if not part.is_multipart()]
    found = split(data)
    assert [leaf.content_type for leaf in found] == [part.get_content_type() for part in expected]
    assert [leaf.name for leaf in found] == [part.get_filename("") for part in expected]
    assert [leaf.content for leaf in found] == [part.get_payload(decode=True) for part in expected]


@given(messages)
def test_the_lines_before_a_content_are_the_lines_before_it(made: Message) -> None:
    data = made.as_bytes()
    lines = data.split(b"\n")
    for leaf in split(data):
        assert lines[leaf.head_line - 2].startswith(b"--")
        assert lines[leaf.head_line - 1].lower().startswith(b"content-type: ")
        if leaf.lines_before is not None:
            behind = b"\n".join(lines[leaf.lines_before :])
            assert behind.startswith(leaf.content)
