"""Tables as text for papers and pages: LaTeX and Markdown."""

import re
from collections.abc import Sequence
from typing import Final

_LATEX: Final = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "η": r"$\eta$",
    "σ̂": r"$\hat{\sigma}$",
    "±": r"$\pm$",
    "≤": r"$\le$",
}
_SPECIAL: Final = re.compile("|".join(map(re.escape, sorted(_LATEX, key=len, reverse=True))))


def latex_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table environment that needs no package; the first column to the left, others to the right."""
    head, *rows = [" & ".join(map(_latex, line)) + r" \\" for line in (columns, *lines)]
    body = "\n".join([r"\hline", head, r"\hline", *rows, r"\hline"])
    form = "l" + "r" * (len(columns) - 1)
    return (
        f"\\begin{{table}}\n\\centering\n\\caption{{{_latex(title)}}}\n"
        f"\\begin{{tabular}}{{{form}}}\n{body}\n\\end{{tabular}}\n\\end{{table}}\n"
    )


def markdown_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The title in bold, and a table in GitHub's form."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    cells = ([text.replace("|", r"\|") for text in line] for line in (columns, rule, *lines))
    return f"**{title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _latex(text: str) -> str:
    return _SPECIAL.sub(lambda found: _LATEX[found[0]], text)
