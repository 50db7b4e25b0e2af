"""Tables for papers and pages."""

from ddimctl.files.tables import latex_table, markdown_table

COLUMNS = ("S", "10", "20_x")
LINES = (("η = 0.2", "3.1 ± 0.2", "-"), ("σ̂", "100 %", "a|b {c} \\ ~^"))


def test_markdown():
    assert markdown_table("FID", COLUMNS, LINES) == (
        "**FID**\n\n"
        "| S | 10 | 20_x |\n"
        "| --- | ---: | ---: |\n"
        "| η = 0.2 | 3.1 ± 0.2 | - |\n"
        "| σ̂ | 100 % | a\\|b {c} \\ ~^ |\n"
    )


def test_latex():
    assert latex_table("FID & KID", COLUMNS, LINES) == (
        "\\begin{table}\n\\centering\n\\caption{FID \\& KID}\n"
        "\\begin{tabular}{lrr}\n"
        "\\hline\n"
        "S & 10 & 20\\_x \\\\\n"
        "\\hline\n"
        "$\\eta$ = 0.2 & 3.1 $\\pm$ 0.2 & - \\\\\n"
        "$\\hat{\\sigma}$ & 100 \\% & a|b \\{c\\} \\textbackslash{} "
        "\\textasciitilde{}\\textasciicircum{} \\\\\n"
        "\\hline\n"
        "\\end{tabular}\n\\end{table}\n"
    )
