"""Every numeric option of every command, with numbers that no run can have: exit code 2, one line."""

import math
from typing import get_args

import pytest

from ddimctl.cli.main import COMMANDS, main
from ddimctl.cli.options.groups import entries
from ddimctl.jobs.option import MAX_NUMBER

NEEDED = {
    "invert": ["a.png"],
    "interpolate": ["a.pt", "b.pt"],
    "reconstruct": ["d"],
    "evaluate": ["--data", "d"],
    "reference": ["d"],
    "replay": ["r"],
    "train": ["d", "--out", "r"],
    "convert": ["a", "b"],
}
IMPOSSIBLE = (
    "nan",
    "inf",
    "-inf",
    "1e308",
    str(2**63),
    str(-(2**63)),
    "",
    "\u0661\u0662",
    "\uff11",
)


def _is_number(kind) -> bool:
    return {int, float} & {kind, *get_args(kind)} != set()


# Options whose text is parsed into numbers, by what stands for their value.
_PARSED = ("LIST", "HxW", "ROWSxCOLUMNS", "SHARE", "TIME", "1|3")
_OF_WORDS = ("--class", "--metric", "--method", "--variance", "--save")


def _is_numeric(entry) -> bool:
    option = entry.option
    if option.parse:
        return option.metavar in _PARSED and option.name not in _OF_WORDS
    return bool(option.flags) and _is_number(entry.type)


def numeric_options():
    for command in COMMANDS:
        hints = command.__annotations__.values()
        request = next(hint for hint in hints if hasattr(hint, "__dataclass_fields__"))
        for entry in filter(_is_numeric, entries(request)):
            name = command.__name__
            yield pytest.param(name, entry, id=f"{name} {entry.option.name}")


def said(capsys, name, entry, text):
    """What the command says of `--option=text`."""
    code = main([name, f"{entry.option.name}={text}", *NEEDED.get(name, [])])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    cause, *rest = err.splitlines()
    assert len(rest) <= 1
    assert all(line.startswith("  try: ") for line in rest)
    return cause


@pytest.mark.usefixtures("no_jobs")
@pytest.mark.parametrize(("name", "entry"), [*numeric_options()])
def test_impossible_numbers_are_refused_in_one_line(name, entry, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for text in IMPOSSIBLE:
        cause = said(capsys, name, entry, text)
        assert cause.startswith("error: ") and cause != "error: taken", text
        assert entry.option.name in cause, text
    if entry.option.parse:
        return
    for number in (0, -1):  # these may be in range
        low = -MAX_NUMBER if entry.option.low is None else entry.option.low
        high = MAX_NUMBER if entry.option.high is None else entry.option.high
        cause = said(capsys, name, entry, str(number))
        if not low <= number <= high:
            assert cause != "error: taken"
            assert entry.option.name in cause


def test_every_bound_is_a_number_that_a_run_can_have():
    found = [param.values[1].option for param in numeric_options()]
    assert len(found) > 40
    for option in found:
        for bound in (option.low, option.high):
            assert bound is None or (math.isfinite(bound) and abs(bound) < 2**63)
