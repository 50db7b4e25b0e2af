"""How values are shown in messages."""

import time

import pytest

from ddimctl.errors import brief


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("fp16", "'fp16'"),
        (3, "3"),
        (0.25, "0.25"),
        (None, "None"),
        ([3, 32, 32], "[3, 32, 32]"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, ...]"),
        ([[[[1]]]], "[[[...]]]"),
        ("a\nb\x1b[2J", r"'a\nb\x1b[2J'"),
        (10**5000, "a huge int"),
    ],
    ids=lambda value: str(type(value)),
)
def test_a_value_is_shown_by_its_repr(value, shown):
    assert brief(value) == shown


@pytest.mark.parametrize(
    "value", ["x" * 10**7, 10**100, b"x" * 10**7, [["y" * 10**6] * 100] * 100, {"k" * 10**6: 1}]
)
def test_long_values_are_cut_at_once(value):
    started = time.monotonic()
    shown = brief(value)
    assert len(shown) < 3000
    assert "..." in shown
    assert time.monotonic() - started < 1
