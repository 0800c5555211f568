from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmcli.errors import InputError
from llmcli.generation.text_stream import TextStream


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    places = [0, *sorted(border % (len(data) + 1) for border in borders), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


def up_to_first_stop(text: str, stops: list[str]) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        begins = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begins:
            return text[: min(begins)], True
    return text, False


def run(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    stream = TextStream(stops)
    out = []
    for piece in pieces:
        out.append(stream.push(piece))
        if stream.stopped:
            break
    return [*out, stream.finish()], stream.stopped


# Few letters make stop strings match, overlap and nearly match all the time.
letters = st.text(alphabet="abé€😀", max_size=30)
stop_lists = st.lists(st.text(alphabet="abé€😀", min_size=1, max_size=4), max_size=3)


@given(letters, stop_lists, st.lists(st.integers(0, 200), max_size=40))
def test_any_split_gives_the_text_up_to_the_first_stop(text: str, stops: list[str], borders: list[int]) -> None:
    out, stopped = run(cut(text.encode(), borders), stops)
    assert ("".join(out), stopped) == up_to_first_stop(text, stops)


@given(st.binary(max_size=30), stop_lists, st.lists(st.integers(0, 200), max_size=40))
def test_invalid_bytes_become_replacement_characters_however_split(
    data: bytes, stops: list[str], borders: list[int]
) -> None:
    out, stopped = run(cut(data, borders), stops)
    assert ("".join(out), stopped) == up_to_first_stop(data.decode(errors="replace"), stops)


@given(letters, stop_lists, st.lists(st.integers(0, 200), max_size=40))
def test_only_what_is_undecided_is_held_back(text: str, stops: list[str], borders: list[int]) -> None:
    stream = TextStream(stops)
    seen, shown = b"", ""
    for piece in cut(text.encode(), borders):
        seen += piece
        shown += stream.push(piece)
        if stream.stopped:
            break
        whole = seen.decode(errors="ignore")
        assert whole.startswith(shown)
        held = whole[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_a_stop_across_token_borders_leaks_nothing() -> None:
    assert run([b"one\n", b"Us", b"er", b": two"], ["\nUser:"]) == (["one", "", "", "", ""], True)
    assert run([b"one\n", b"Us", b"ed"], ["\nUser:"]) == (["one", "", "\nUsed", ""], False)


def test_a_split_character_waits_for_its_last_byte() -> None:
    assert run(["é".encode()[:1], "é".encode()[1:], b"!"], [])[0] == ["", "é", "!", ""]
    assert run(["é".encode()[:1]], [])[0] == ["", "\ufffd"]


def test_held_text_comes_out_when_generation_ends_without_the_stop() -> None:
    assert run([b"ab"], ["abc"])[0] == ["", "ab"]


def test_fork_continues_independently() -> None:
    stream = TextStream(["xy"])
    stream.push(b"a\xe2\x82")
    other = stream.fork()
    assert stream.push(b"\xac!") == "€!"
    assert other.push(b"\xacxy") == "€"
    assert (stream.stopped, other.stopped) == (False, True)


@pytest.mark.parametrize("stop", ["", 5])
def test_an_empty_stop_is_refused(stop: str) -> None:
    with pytest.raises(InputError, match="stop"):
        TextStream([stop])
