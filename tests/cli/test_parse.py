"""Text of the command line into values."""

import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_input import FAST, value_or_our_error
from ddimctl.cli.main import main
from ddimctl.cli.options import parse
from ddimctl.errors import RequestError

TEXT = st.one_of(
    st.text(max_size=40),
    st.text("0123456789-,.x%dhms# \n", max_size=30),
    st.from_regex(r"[0-9]{1,25}([-x,.][0-9]{1,25}){0,3}[dhms%]?", fullmatch=True),
    st.sampled_from(["9" * 5000, "1," * 500, " " * 5000 + "x", "a\nb\r\u2028c", "٣", "²", "١-٩"]),
)


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


def test_class_that_no_folder_could_be_named_is_refused():
    with pytest.raises(RequestError, match="too long"):
        parse.parse_classes("monster," + "9" * 5000)


def is_share(value):
    return 0 <= value < 1


PARSERS = {
    "--seeds": (
        parse.parse_seeds,
        lambda seeds: len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds),
    ),
    "--tau": (parse.parse_tau, lambda tau: tau in parse.KINDS or min(tau) >= 0),
    "--class": (parse.parse_classes, lambda names: all(0 < len(name) <= 255 for name in names)),
    "--size": (
        lambda text: parse.parse_size(text, "--size"),
        lambda size: len(size) == 2 and all(1 <= side <= parse.MAX_SIDE for side in size),
    ),
    "--steps": (
        lambda text: parse.parse_counts(text, "--steps"),
        lambda counts: min(counts) >= 1 and len(set(counts)) == len(counts),
    ),
    "--background": (
        lambda text: parse.parse_colour(text, "--background"),
        lambda colour: len(colour) == 3 and all(0 <= level <= 255 for level in colour),
    ),
    "--time-limit": (
        lambda text: parse.parse_duration(text, "--time-limit"),
        lambda seconds: 0 < seconds < 1e15,
    ),
    "--holdout": (lambda text: parse.parse_fraction(text, "--holdout"), is_share),
    "--save": (
        lambda text: parse.parse_choices(text, "--save", ("grid", "images")),
        lambda chosen: set(chosen) <= {"grid", "images"},
    ),
}


@pytest.mark.parametrize("option", PARSERS)
def test_any_text_is_a_value_in_range_or_a_request_error(option):
    function, in_range = PARSERS[option]

    @FAST
    @given(TEXT)
    def holds(text):
        values = []
        error = value_or_our_error(lambda: values.append(function(text)))
        if error is None:
            assert in_range(values[0])
            return
        assert isinstance(error, RequestError)
        assert option in error.cause
        assert len(error.cause) < 200

    holds()


@pytest.mark.parametrize("option", PARSERS)
def test_no_text_takes_much_memory(option):
    for text in ("0-99999999999", "0-9223372036854775807", "9" * 10**5, "1 " * 10**5, "," * 10**5):
        tracemalloc.start()
        try:
            value_or_our_error(lambda text=text: PARSERS[option][0](text))
            assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
        finally:
            tracemalloc.stop()


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 50)), min_size=1, max_size=5))
@FAST
def test_ranges_of_seeds_read_back(ranges):
    wanted = [seed for first, more in ranges for seed in range(first, first + more + 1)]
    text = ",".join(f"{first}-{first + more}" for first, more in ranges)
    if len(set(wanted)) == len(wanted):
        assert parse.parse_seeds(text) == tuple(wanted)
    else:
        with pytest.raises(RequestError, match="twice"):
            parse.parse_seeds(text)


@given(st.integers(0, 9), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
@FAST
def test_durations_read_back(days, hours, minutes, seconds):
    parts = {"d": days, "h": hours, "m": minutes, "s": seconds}
    text = "".join(f"{number}{unit}" for unit, number in parts.items() if number)
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if whole:
        assert parse.parse_duration(text, "--time-limit") == whole
        assert parse.parse_duration(str(whole), "--time-limit") == whole


@given(st.lists(st.integers(1, parse.MAX_SIDE), min_size=2, max_size=2))
@FAST
def test_sizes_read_back(size):
    assert parse.parse_size("{}x{}".format(*size), "--size") == tuple(size)


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
@FAST
def test_colours_read_back(colour):
    for text in ("#{:02x}{:02X}{:02x}".format(*colour), "{},{}, {}".format(*colour)):
        assert parse.parse_colour(text, "--background") == tuple(colour)


@given(st.integers(0, 9999))
@FAST
def test_shares_read_back(of_ten_thousand):
    share = of_ten_thousand / 10_000
    for text in (f"{share:.4f}", f"{100 * share:.2f}%"):
        assert parse.parse_fraction(text, "--holdout") == pytest.approx(share)


# --- whole command lines -------------------------------------------------------------------------

OPTIONS = {
    "sample": (
        *("--steps", "--tau", "--eta", "--variance", "--clip", "--guidance", "--seeds", "-n"),
        *("--seed", "--class", "--size", "--save", "--scale", "--columns", "--format", "--latents"),
        *("--batch-size", "--precision", "--weights", "--out"),
    ),
    "interpolate": ("--seeds", "--frames", "--path", "--grid", "--video", "--fps", "--tau"),
    "invert": ("--steps", "--tolerance", "--method", "--fit", "--tau", "--size", "--out"),
    "reconstruct": ("--steps", "--decode-steps", "--method", "--tau", "--limit", "--holdout"),
}
NUMBERS = st.sampled_from(
    ["nan", "inf", "-inf", "1e999", "-0", "1_0", "0x10", "1e3", "-1", "9" * 25, "9" * 5000, ""]
)


@pytest.mark.parametrize("command", OPTIONS)
def test_any_value_of_an_option_is_taken_or_refused_in_two_lines(command, capsys, monkeypatch):
    """The job itself is not begun: a value that is taken ends in an error of this test's."""
    taken = RequestError("taken")

    def refuse(job, request):
        raise taken

    monkeypatch.setattr(f"ddimctl.cli.commands.{command}.run_job", refuse)
    subject = {"interpolate": ["a.pt"], "invert": ["a.png"], "reconstruct": ["a"]}.get(command, [])

    @settings(FAST, max_examples=40)
    @given(st.sampled_from(OPTIONS[command]), st.one_of(NUMBERS, TEXT))
    def holds(option, text):
        value = [f"{option}={text}"] if option.startswith("--") else [option, text]
        code = main([command, *subject, *value])
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert re.fullmatch(r"error: .+\n(  try: .+\n)?", err), err

    holds()
