from ddimctl.cli.output.table import table_lines

CELLS = [("S", "10", "20", "50"), ("η = 0.2", "1.5", "13.25", "7"), ("σ̂", "2", "3", "4")]


def test_columns_are_aligned_and_a_hat_takes_no_place():
    assert table_lines(CELLS) == [
        "S         10     20  50",
        "η = 0.2  1.5  13.25   7",
        "σ̂          2      3   4",
    ]


def test_what_does_not_fit_follows_below():
    wide = table_lines(CELLS)
    assert table_lines(CELLS, 23) == wide
    assert table_lines(CELLS, 22) == [
        "S         10     20",
        "η = 0.2  1.5  13.25",
        "σ̂          2      3",
        "",
        "S        50",
        "η = 0.2   7",
        "σ̂         4",
    ]
    assert len(table_lines(CELLS, 3)) == 3 * 3 + 2  # nothing is cut
