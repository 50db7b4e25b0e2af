"""Text of the command line into values."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddimctl.cli import parse
from ddimctl.errors import RequestError

TEXT = st.one_of(st.text(max_size=40), st.text("0123456789-,.x%dhms# \n", max_size=30))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", (7,)),
        ("0-3", (0, 1, 2, 3)),
        ("0-3,70", (0, 1, 2, 3, 70)),
        ("9,2-4,0", (9, 2, 3, 4, 0)),
        (" 1 , 3 - 4 ", (1, 3, 4)),
        ("9223372036854775807", (2**63 - 1,)),
    ],
)
def test_seeds_are_read_in_order(text, expected):
    assert parse.parse_seeds(text) == expected


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "''"),
        ("1,,2", "''"),
        ("a", "'a'"),
        ("-5", "'-5'"),
        ("5-3", "'5-3'"),
        ("1.5", "'1.5'"),
        ("1,2,1", "1 twice"),
        ("0-9,4", "4 twice"),
        ("0-99999999999", "more than 1,000,000"),
        ("0-999999,1000000", "more than 1,000,000"),
        ("9223372036854775808", "beyond 2^63"),
        ("9" * 5000, "..."),
    ],
)
def test_wrong_seeds_are_refused_by_name(text, fault):
    with pytest.raises(RequestError) as error:
        parse.parse_seeds(text)
    assert "--seeds" in error.value.cause
    assert fault in error.value.cause


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=20))
def test_written_seeds_read_back(seeds):
    assert parse.parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


@pytest.mark.parametrize("kind", ["linspace", "trailing", "uniform", "quadratic", "auto"])
def test_tau_kind_is_itself(kind):
    assert parse.parse_tau(kind) == kind


@pytest.mark.parametrize("text", ["0,250,999", "0 250 999", " 0, 250,\n999,", "0,\t250 , 999"])
def test_tau_list_means_the_same_on_the_line_and_in_a_file(text, tmp_path):
    path = tmp_path / "tau.txt"
    path.write_text(text)
    assert parse.parse_tau(text) == parse.parse_tau(str(path)) == (0, 250, 999)


def test_one_timestep_is_a_list():
    assert parse.parse_tau("999") == (999,)


@pytest.mark.parametrize(
    "content", [b"", b"  \n", b"0,x", b"1.5", b"-1", b"\xff\xfe\x00", b"9" * 30]
)
def test_wrong_tau_file_is_refused_by_name(content, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="--tau"):
        parse.parse_tau(str(path))


@pytest.mark.parametrize("text", ["linspce", "/nowhere/tau.txt", ",", "", "x" * 5000, "a\0b"])
def test_tau_that_is_nothing_is_refused(text):
    with pytest.raises(RequestError, match="--tau"):
        parse.parse_tau(text)


def test_huge_tau_file_is_not_read(tmp_path):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(RequestError, match="too large"):
        parse.parse_tau(str(path))


@pytest.mark.parametrize(
    ("text", "expected"), [("64", (64, 64)), ("32x48", (32, 48)), ("32X48", (32, 48))]
)
def test_size_is_height_then_width(text, expected):
    assert parse.parse_size(text, "--size") == expected


@pytest.mark.parametrize("text", ["", "0", "32x0", "32x", "x32", "-1", "1x2x3", "99999", "3.5"])
def test_wrong_size_is_refused(text):
    with pytest.raises(RequestError, match="--size"):
        parse.parse_size(text, "--size")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("black", (0, 0, 0)),
        ("White", (255, 255, 255)),
        ("#ff8000", (255, 128, 0)),
        ("#FF8000", (255, 128, 0)),
        ("1,2,255", (1, 2, 255)),
        ("1, 2, 255", (1, 2, 255)),
    ],
)
def test_colours(text, expected):
    assert parse.parse_colour(text, "--background") == expected


@pytest.mark.parametrize("text", ["", "grey", "#fff", "#gggggg", "1,2", "1,2,256", "1,2,3,4"])
def test_wrong_colour_is_refused(text):
    with pytest.raises(RequestError, match="--background"):
        parse.parse_colour(text, "--background")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("2h30m", 9000),
        ("1d", 86400),
        ("1d2h3m4s", 93784),
        ("1.5h", 5400),
        ("2H", 7200),
    ],
)
def test_durations(text, seconds):
    assert parse.parse_duration(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "1x", "30m2h", "1h1h", "h", "2h30", "1e3"])
def test_wrong_duration_is_refused(text):
    with pytest.raises(RequestError, match="--time-limit"):
        parse.parse_duration(text, "--time-limit")


@pytest.mark.parametrize(
    ("text", "share"), [("0", 0), ("0.02", 0.02), (".5", 0.5), ("2%", 0.02), ("99.9%", 0.999)]
)
def test_shares(text, share):
    assert parse.parse_fraction(text, "--holdout") == pytest.approx(share)


@pytest.mark.parametrize("text", ["", ".", "%", "1", "1.0", "100%", "-0.1", "nan", "1e-3"])
def test_wrong_share_is_refused(text):
    with pytest.raises(RequestError, match="--holdout"):
        parse.parse_fraction(text, "--holdout")


def test_choices_come_in_their_own_order_and_once():
    choices = ("grid", "images", "latents")
    assert parse.parse_choices("latents, grid,grid", "--save", choices) == ("grid", "latents")


@pytest.mark.parametrize("text", ["", "grid,", "grid,movie"])
def test_unknown_choice_is_refused(text):
    with pytest.raises(RequestError, match="--save"):
        parse.parse_choices(text, "--save", ("grid", "images"))


def test_classes_keep_their_spelling():
    assert parse.parse_classes("monster, Old wall,3") == ("monster", "Old wall", "3")


def test_empty_class_is_refused():
    with pytest.raises(RequestError, match="--class"):
        parse.parse_classes("monster,")


@pytest.mark.parametrize(
    "function",
    [
        parse.parse_seeds,
        parse.parse_tau,
        parse.parse_classes,
        lambda text: parse.parse_size(text, "--size"),
        lambda text: parse.parse_colour(text, "--background"),
        lambda text: parse.parse_duration(text, "--time-limit"),
        lambda text: parse.parse_fraction(text, "--holdout"),
        lambda text: parse.parse_choices(text, "--save", ("grid",)),
    ],
)
@given(TEXT)
def test_no_text_raises_anything_but_a_request_error(function, text):
    try:
        function(text)
    except RequestError as error:
        assert error.cause
        assert len(error.cause) < 200
