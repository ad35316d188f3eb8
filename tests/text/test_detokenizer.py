from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.text.detokenizer import Detokenizer
from headrace.text.tokenizer import Tokenizer


def cut(ids: list[int], points: list[int]) -> list[list[int]]:
    """The ids in consecutive groups, as steps would deliver them."""
    marks = [0, *sorted(point % (len(ids) + 1) for point in points), len(ids)]
    return [ids[a:b] for a, b in pairwise(marks)]


def first_stop(text: str, stop: list[str]) -> tuple[str, str | None]:
    """What must come out: cut before the stop string that ends first; the longest if several end there."""
    for end in range(1, len(text) + 1):
        found = [s for s in stop if text[:end].endswith(s)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(data=st.data(), points=st.lists(st.integers(0, 1000), max_size=6), start=st.booleans())
@settings(max_examples=200, deadline=None)
def test_pieces_equal_the_whole_for_any_tokens(tokenizer: Tokenizer, data, points, start) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.size + 3), max_size=40))
    detokenizer = Detokenizer(tokenizer, start=start)
    text = "".join([detokenizer.push(group) for group in cut(ids, points)]) + detokenizer.finish()
    assert text == tokenizer.decode(ids, start=start)
    assert detokenizer.num_tokens == len(ids)


@given(st.binary(max_size=40))
@settings(max_examples=200, deadline=None)
def test_pieces_equal_the_whole_for_any_bytes(tokenizer: Tokenizer, data: bytes) -> None:
    detokenizer = Detokenizer(tokenizer)
    ids = [tokenizer._byte_token(byte) for byte in data]
    text = "".join([detokenizer.push([i]) for i in ids]) + detokenizer.finish()
    assert text == data.decode("utf-8", "replace")


@given(st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_no_half_characters(tokenizer: Tokenizer, text: str) -> None:
    text = text.replace("\ufffd", "")
    detokenizer, shown = Detokenizer(tokenizer), ""
    for byte in text.encode():
        piece = detokenizer.push([tokenizer._byte_token(byte)])
        assert "\ufffd" not in piece
        shown += piece
    assert shown + detokenizer.finish() == text


def test_a_broken_character_waits_until_it_cannot_be_completed(plain: Tokenizer) -> None:
    first, second, third = (plain._byte_token(byte) for byte in "東".encode())
    detokenizer = Detokenizer(plain)
    assert detokenizer.push([first]) == "" and detokenizer.push([second]) == ""
    assert detokenizer.push([plain._byte_token(0x41)]) == "\ufffdA"
    assert detokenizer.push([first, second]) == "" and detokenizer.push([third]) == "東"
    assert detokenizer.push([first]) == "" and detokenizer.finish() == "\ufffd"


@given(
    text=st.text("ab 東", max_size=24),
    stop=st.lists(st.text("ab 東", min_size=1, max_size=5), min_size=1, max_size=3),
    points=st.lists(st.integers(0, 1000), max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_stop_strings(plain: Tokenizer, text: str, stop: list[str], points: list[int]) -> None:
    ids = [plain._byte_token(byte) for byte in text.encode()]
    detokenizer, shown, taken = Detokenizer(plain, stop), "", 0
    expected, found = first_stop(text, stop)
    for group in cut(ids, points):
        shown += detokenizer.push(group)
        taken += len(group)
        known = plain.decode(ids[:taken]).rstrip("\ufffd")
        if detokenizer.stopped is None:  # all that is held could begin a stop string
            fronts = [s[:k] for s in stop for k in range(1, len(s)) if known.endswith(s[:k])]
            assert shown == known[: len(known) - max(map(len, fronts), default=0)]
    assert shown + detokenizer.finish() == expected
    assert detokenizer.stopped == found
    assert found is None or detokenizer.push(ids) == ""


def test_a_stop_string_across_tokens(plain: Tokenizer) -> None:
    detokenizer = Detokenizer(plain, ["\n\nEND"])
    assert detokenizer.push(plain.encode("ok\n", add_special=False)) == "ok"
    assert detokenizer.push(plain.encode("\nEN", add_special=False)) == ""
    ids = plain.encode("D and more", add_special=False)
    assert detokenizer.push(ids) == "" and detokenizer.stopped == "\n\nEND"
    assert detokenizer.num_tokens < 3 + 3 + len(ids)
    assert detokenizer.finish() == ""


def test_what_was_held_comes_out_at_the_end(plain: Tokenizer) -> None:
    detokenizer = Detokenizer(plain, ["lady"])
    assert detokenizer.push(plain.encode("a lad", add_special=False)) == "a "
    assert detokenizer.finish() == "lad" and detokenizer.stopped is None


def test_a_stop_string_made_of_a_broken_character(plain: Tokenizer) -> None:
    detokenizer = Detokenizer(plain, ["\ufffd"])
    assert detokenizer.push([plain._byte_token(0xE6)]) == "" and detokenizer.finish() == ""
    assert detokenizer.stopped == "\ufffd"


def test_stop_strings_wait_for_min_tokens(plain: Tokenizer) -> None:
    ids = [plain._byte_token(byte) for byte in b"ababab"]
    detokenizer = Detokenizer(plain, ["ab"], min_tokens=2)
    assert detokenizer.push(ids) == "ab" and detokenizer.stopped == "ab" and detokenizer.num_tokens == 4


def test_special_tokens_show_only_when_asked(plain: Tokenizer) -> None:
    ids = plain.encode("a<|end|>b", add_special=False)
    assert Detokenizer(plain).push(ids) == "ab"
    assert Detokenizer(plain, skip_special=False).push(ids) == "a<|end|>b"


@pytest.mark.parametrize("stop", [["a" * 1024], ["a" * k + "b" for k in range(1, 65)]])
def test_time_grows_with_the_text_only(plain: Tokenizer, stop: list[str]) -> None:
    token = plain._byte_token(ord("a"))

    def seconds(count: int) -> float:
        detokenizer = Detokenizer(plain, [s + "x" for s in stop])
        begin = time.perf_counter()
        for _ in range(count):
            detokenizer.push([token])
        return time.perf_counter() - begin

    small = min(seconds(1000) for _ in range(3))
    assert min(seconds(4000) for _ in range(3)) < 8 * small + 0.01
