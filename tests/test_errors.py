"""How values are shown in messages."""

import time

from ddimctl.errors import brief


def test_a_value_is_shown_by_its_repr():
    cases = (
        ("fp16", "'fp16'"),
        (3, "3"),
        (0.25, "0.25"),
        (None, "None"),
        ([3, 32, 32], "[3, 32, 32]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, ...]"),
        ([[[[1]]]], "[[[...]]]"),
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        (10**5000, "a huge int"),
    )
    for value, shown in cases:
        assert brief(value) == shown


def test_long_values_are_cut_at_once():
    long = "x" * 10**7
    started = time.monotonic()
    for value in (long, 10**100, long.encode(), [["y" * 10**6] * 100] * 100, {"k" * 10**6: 1}):
        shown = brief(value)
        assert len(shown) < 3000
        assert "..." in shown
    assert time.monotonic() - started < 5
