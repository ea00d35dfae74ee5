"""Positions: offsets and a client's positions, back and forth in every encoding."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lsprotocol import types

from lorakit.lsp.positions import Positions

CODECS = {"utf-8": ("utf-8", 1), "utf-16": ("utf-16-le", 2), "utf-32": ("utf-32-le", 4)}

TEXTS = st.text(st.sampled_from("a é名ｆ🦙\u0301\n\r\t\u2028\x0c\ufeff"), max_size=40)


def units(text: str, encoding: str) -> int:
    codec, width = CODECS[encoding]
    return len(text.encode(codec)) // width


@pytest.mark.parametrize("encoding", CODECS)
@given(text=TEXTS, data=st.data())
def test_every_offset_has_its_position(encoding: str, text: str, data: st.DataObject) -> None:
    positions = Positions(text, encoding)
    mark = int(text.startswith("\ufeff"))
    offset = data.draw(st.integers(0, len(text) - mark))
    lines = re.split(r"\r\n|\r|\n", text[: offset + mark])
    if text[offset + mark - 1 : offset + mark + 1] == "\r\n":
        # between the two halves of a line end there is no place for a client
        return
    position = positions.position(offset)
    assert position == types.Position(len(lines) - 1, units(lines[-1], encoding))
    assert positions.offset(position) == offset


@pytest.mark.parametrize("encoding", CODECS)
@given(text=TEXTS, line=st.integers(0, 99), character=st.integers(0, 99))
def test_every_position_has_an_offset(encoding: str, text: str, line: int, character: int) -> None:
    offset = Positions(text, encoding).offset(types.Position(line, character))
    assert 0 <= offset <= len(text)
    if line >= len(re.split(r"\r\n|\r|\n", text)):
        assert offset == len(text) - text.startswith("\ufeff")


def test_a_place_inside_of_a_character_is_where_that_begins() -> None:
    assert Positions("a🦙b", "utf-16").offset(types.Position(0, 2)) == 1
    assert Positions("a🦙b", "utf-8").offset(types.Position(0, 4)) == 1
    assert Positions("a🦙b", "utf-16").offset(types.Position(0, 3)) == 2
