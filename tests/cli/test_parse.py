"""Text of the command line into values."""

import re
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bad_input import FAST, value_or_our_error
from ddimctl.cli.main import main
from ddimctl.errors import RequestError
from ddimctl.jobs import parse

TEXT = st.one_of(
    st.text(max_size=40),
    st.text("0123456789-,.x%dhms# \n", max_size=30),
    st.from_regex(r"[0-9]{1,25}([-x,.][0-9]{1,25}){0,3}[dhms%]?", fullmatch=True),
    st.sampled_from(["9" * 5000, "1," * 500, " " * 5000 + "x", "a\nb\r\u2028c", "٣", "²", "١-٩"]),
)


def size(text):
    return parse.parse_size(text, "--size")


def counts(text):
    return parse.parse_counts(text, "--steps")


def colour(text):
    return parse.parse_colour(text, "--background")


def duration(text):
    return parse.parse_duration(text, "--time-limit")


def share(text):
    return parse.parse_fraction(text, "--holdout")


def saves(text):
    return parse.parse_choices(text, "--save", ("grid", "images", "latents"))


READ = {
    parse.parse_seeds: {
        "7": (7,),
        "0-3": (0, 1, 2, 3),
        "0-3,70": (0, 1, 2, 3, 70),
        "9,2-4,0": (9, 2, 3, 4, 0),
        " 1 , 3 - 4 ": (1, 3, 4),
        "9223372036854775807": (2**63 - 1,),
    },
    parse.parse_timesteps: {kind: kind for kind in (*parse.KINDS, "auto")} | {"999": (999,)},
    parse.parse_classes: {"monster, Old wall,3": ("monster", "Old wall", "3")},
    size: {"64": (64, 64), "32x48": (32, 48), "32X48": (32, 48)},
    counts: {"50, 10,50": (50, 10)},
    colour: {
        "black": (0, 0, 0),
        "White": (255, 255, 255),
        "#ff8000": (255, 128, 0),
        "#FF8000": (255, 128, 0),
        "1,2,255": (1, 2, 255),
        "1, 2, 255": (1, 2, 255),
    },
    duration: {
        "90": 90,
        "90s": 90,
        "30m": 1800,
        "2h30m": 9000,
        "1d": 86400,
        "1d2h3m4s": 93784,
        "1.5h": 5400,
        "2H": 7200,
    },
    share: {"0": 0, "0.02": 0.02, ".5": 0.5, "2%": 0.02, "99.9%": 0.999},
    saves: {"latents, grid,grid": ("grid", "latents")},  # in their own order, and once
}
# The option that the error names, and each text with what else it says.
REFUSED = {
    parse.parse_seeds: (
        "--seeds",
        {
            "": "''",
            "1,,2": "''",
            "a": "'a'",
            "-5": "'-5'",
            "5-3": "'5-3'",
            "1.5": "'1.5'",
            "1,2,1": "1 twice",
            "0-9,4": "4 twice",
            "0-99999999999": "more than 1,000,000",
            "0-999999,1000000": "more than 1,000,000",
            "9223372036854775808": "beyond 2^63",
            "9" * 5000: "...",
        },
    ),
    parse.parse_timesteps: ("--tau", ("linspce", "/nowhere/tau.txt", ",", "", "x" * 5000, "a\0b")),
    parse.parse_classes: ("--class", {"monster,": "", "monster," + "9" * 5000: "too long"}),
    size: ("--size", ("", "0", "32x0", "32x", "x32", "-1", "1x2x3", "99999", "3.5")),
    counts: ("--steps", ("", "0", "1,,2", "-3", "2.5")),
    colour: ("--background", ("", "grey", "#fff", "#gggggg", "1,2", "1,2,256", "1,2,3,4")),
    duration: (
        "--time-limit",
        ("", "0", "0s", "-1", "1x", "30m2h", "1h1h", "h", "2h30", "1e3"),
    ),
    share: ("--holdout", ("", ".", "%", "1", "1.0", "100%", "-0.1", "nan", "1e-3")),
    saves: ("--save", ("", "grid,", "grid,movie")),
}


@pytest.mark.parametrize("read", READ)
def test_text_is_read(read):
    for text, value in READ[read].items():
        assert read(text) == (pytest.approx(value) if read is share else value), text


@pytest.mark.parametrize("read", REFUSED)
def test_wrong_text_is_refused_by_name(read):
    option, texts = REFUSED[read]
    for text in texts:
        with pytest.raises(RequestError) as error:
            read(text)
        assert option in error.value.cause
        assert not isinstance(texts, dict) or texts[text] in error.value.cause


@given(st.lists(st.integers(0, 10**6), unique=True, min_size=1, max_size=20))
@FAST
def test_written_seeds_read_back(seeds):
    assert parse.parse_seeds(",".join(map(str, seeds))) == tuple(seeds)


def test_tau_list_means_the_same_on_the_line_and_in_a_file(tmp_path):
    path = tmp_path / "tau.txt"
    for text in ("0,250,999", "0 250 999", " 0, 250,\n999,", "0,\t250 , 999"):
        path.write_text(text)
        assert parse.parse_timesteps(text) == parse.parse_timesteps(str(path)) == (0, 250, 999)


def test_wrong_tau_file_is_refused_by_name(tmp_path):
    path = tmp_path / "bad.txt"
    for content in (b"", b"  \n", b"0,x", b"1.5", b"-1", b"\xff\xfe\x00", b"9" * 30):
        path.write_bytes(content)
        with pytest.raises(RequestError, match="--tau"):
            parse.parse_timesteps(str(path))


def test_huge_tau_file_is_not_read(tmp_path):
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(RequestError, match="too large"):
        parse.parse_timesteps(str(path))


PARSERS = {
    "--seeds": (
        parse.parse_seeds,
        lambda seeds: len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds),
    ),
    "--tau": (parse.parse_timesteps, lambda tau: tau in parse.KINDS or min(tau) >= 0),
    "--class": (parse.parse_classes, lambda names: all(0 < len(name) <= 255 for name in names)),
    "--size": (
        size,
        lambda sides: len(sides) == 2 and all(1 <= side <= parse.MAX_SIDE for side in sides),
    ),
    "--steps": (counts, lambda each: min(each) >= 1 and len(set(each)) == len(each)),
    "--background": (
        colour,
        lambda levels: len(levels) == 3 and all(0 <= level <= 255 for level in levels),
    ),
    "--time-limit": (duration, lambda seconds: 0 < seconds < 1e15),
    "--holdout": (share, lambda fraction: 0 <= fraction < 1),
    "--save": (saves, lambda chosen: set(chosen) <= {"grid", "images", "latents"}),
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


def test_no_text_takes_much_memory():
    tracemalloc.start()
    try:
        for read, _ in PARSERS.values():
            for text in (
                "0-99999999999",
                "0-9223372036854775807",
                "9" * 10**5,
                "1 " * 10**5,
                "," * 10**5,
            ):
                tracemalloc.reset_peak()
                value_or_our_error(lambda read=read, text=text: read(text))
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
        assert duration(text) == whole
        assert duration(str(whole)) == whole


@given(st.lists(st.integers(1, parse.MAX_SIDE), min_size=2, max_size=2))
@FAST
def test_sizes_read_back(sides):
    assert size("{}x{}".format(*sides)) == tuple(sides)


@given(st.lists(st.integers(0, 255), min_size=3, max_size=3))
@FAST
def test_colours_read_back(levels):
    for text in ("#{:02x}{:02X}{:02x}".format(*levels), "{},{}, {}".format(*levels)):
        assert colour(text) == tuple(levels)


@given(st.integers(0, 9999))
@FAST
def test_shares_read_back(of_ten_thousand):
    fraction = of_ten_thousand / 10_000
    for text in (f"{fraction:.4f}", f"{100 * fraction:.2f}%"):
        assert share(text) == pytest.approx(fraction)


# --- whole command lines -------------------------------------------------------------------------

OPTIONS = {
    "sample": (
        *("--steps", "--tau", "--eta", "--variance", "--clip", "--guidance", "--seeds", "-n"),
        *("--seed", "--class", "--size", "--save", "--scale", "--columns", "--format", "--latents"),
        *("--batch-size", "--precision", "--weights", "--out"),
    ),
    "interpolate": ("--seeds", "--frames", "--path", "--grid", "--video", "--fps", "--hold"),
    "invert": ("--steps", "--tolerance", "--method", "--fit", "--tau", "--size", "--out"),
    "reconstruct": ("--steps", "--decode-steps", "--method", "--tau", "--limit", "--holdout"),
}
NUMBERS = st.sampled_from(
    ["nan", "inf", "-inf", "1e999", "-0", "1_0", "0x10", "1e3", "-1", "9" * 25, "9" * 5000, ""]
)


@pytest.mark.parametrize("command", OPTIONS)
def test_any_value_of_an_option_is_taken_or_refused_in_two_lines(command, capsys, no_jobs):
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
    assert main([command, *subject, *(["--seeds", "1,2"] if command == "interpolate" else [])]) == 2
    assert capsys.readouterr().err == "error: taken\n"
