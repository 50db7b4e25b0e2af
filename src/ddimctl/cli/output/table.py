"""A table in aligned columns of text."""

import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence

_GAP = "  "


def terminal_width() -> int | None:
    """The columns of the terminal that shows stdout; None where it goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def table_lines(cells: Sequence[Sequence[str]], width: int | None = None) -> list[str]:
    """The rows of cells, the first column to the left, the others to the right.

    width: columns that a line may have; what does not fit follows below, each time with the first
    column. Nothing is cut: a single column that is too wide makes its lines longer.
    """
    widths = [max(map(_columns, column)) for column in zip(*cells, strict=True)]
    lines: list[str] = []
    for block in _blocks(widths, width):
        lines += [""] if lines else []
        lines += [_GAP.join(_padded(row, widths, block)).rstrip() for row in cells]
    return lines


def _blocks(widths: Sequence[int], width: int | None) -> Iterator[list[int]]:
    """Which columns, beside the first, stand beside each other."""
    block, used = list[int](), widths[0]
    for column in range(1, len(widths)):
        needed = len(_GAP) + widths[column]
        if block and width is not None and used + needed > width:
            yield block
            block, used = [], widths[0]
        block.append(column)
        used += needed
    yield block


def _padded(row: Sequence[str], widths: Sequence[int], block: Sequence[int]) -> Iterator[str]:
    yield row[0] + " " * (widths[0] - _columns(row[0]))
    for column in block:
        yield " " * (widths[column] - _columns(row[column])) + row[column]


def _columns(text: str) -> int:
    """Columns of a terminal; the hat of σ̂ takes none."""
    return sum(not unicodedata.combining(char) for char in text)
