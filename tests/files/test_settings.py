"""JSON and YAML of strangers: plain values that can be used, or a refusal that says what is wrong."""

import os
from pathlib import Path

import pytest

from ddimctl.errors import DataError
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.settings import parse_json, read_json, read_yaml

LARGE = "1" + "0" * 400


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": NaN}', "a number that is not finite, in 'a'"),
        ('{"a": [1, {"b": Infinity}]}', "a number that is not finite, in 'b'"),
        ('{"a": -Infinity}', "not finite"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": 9223372036854775808}', "an integer of more than 64 bits, in 'a'"),
        ('{"a": -9223372036854775809}', "more than 64 bits"),
        (f'{{"a": {LARGE}}}', "more than 64 bits"),
        (f'{{"a": {LARGE * 20}}}', "more than 64 bits"),
        ('{"a": "\\ud800"}', "a lone surrogate"),
        ('{"a\\udfff": 1}', "a lone surrogate"),
        ('["\\udc80"]', "a lone surrogate"),
        ('{"a": 1, "a": 1}', "names 'a' twice"),
        ("[" * 101 + "]" * 101, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"{\x00", "not valid JSON"),
    ],
)
def test_what_cannot_be_used_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(Refused, match=said) as caught:
        parse_json(text)
    assert len(caught.value.cause.splitlines()) == 1
    assert len(caught.value.cause) < 200
    assert caught.value.remedy


def test_plain_values_come_as_they_are() -> None:
    text = '{"a": [1, -2.5, true, null, {"b": "\\ud83d\\ude00 \u00e4"}], "c": 9223372036854775807}'
    expected = {"a": [1, -2.5, True, None, {"b": "\U0001f600 \u00e4"}], "c": 2**63 - 1}
    assert parse_json(text) == expected
    assert parse_json(text.encode()) == expected
    assert parse_json("[" * 99 + "1" + "]" * 99)


def test_infinities_and_names_of_files_pass_where_they_are_expected() -> None:
    assert parse_json('{"a": -Infinity}', infinite=True) == {"a": -float("inf")}
    with pytest.raises(Refused, match="not finite"):
        parse_json('{"a": NaN}', infinite=True)
    name = os.fsdecode(b"caf\xe9")
    assert parse_json('{"a": "caf\\udce9"}', paths=True) == {"a": name}
    with pytest.raises(Refused, match="a lone surrogate"):
        parse_json('{"a": "\\ud800"}', paths=True)


@pytest.mark.timeout(20)
def test_a_file_holds_one_object_of_a_size(tmp_path: Path) -> None:
    (path := tmp_path / "a.json").write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with pytest.raises(Refused, match="too large"):
        read_json(path, 7)
    for content, said in (("[1]", "JSON object"), ("", "empty"), ("<html>", "a web page")):
        path.write_text(content)
        with pytest.raises(Refused, match=said):
            read_json(path)
    path.write_text("{")
    os.truncate(path, 2**40)
    with pytest.raises(Refused, match="too large"):
        read_json(path)
    os.mkfifo(tmp_path / "pipe")
    for other, said in ((tmp_path / "pipe", "a pipe"), (tmp_path, "a folder")):
        with pytest.raises(Refused, match=said):
            read_json(other)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: .nan", "not finite, in 'a'"),
        ("a:\n  b: -.inf", "not finite, in 'b'"),
        (f"a: {LARGE}", "more than 64 bits"),
        ('a: "\\ud800"', "a lone surrogate"),
        ("a: &x [1]\nb: *x", "aliases"),
        ("a: {", "cannot be read"),
        ("[1]", "by name"),
        ("a: " + "[" * 150 + "]" * 150, "nested too deeply"),
        ("a: " + "x" * 2**16, "too large"),
    ],
)
def test_the_same_holds_of_yaml(tmp_path: Path, text: str, said: str) -> None:
    (path := tmp_path / "config.yml").write_text(text)
    with pytest.raises(Refused, match=said) as caught:
        read_yaml(path)
    assert len(caught.value.cause.splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Refused("is empty.", "Get it."), "here is empty. Get it."),
        (Refused("is empty."), "here is empty. Otherwise."),
        (FileNotFoundError(2, "x"), "here: there is no such file. Check the path."),
        (PermissionError(13, "x"), "here: no permission to read it. Check its owner"),
        (OSError(5, "Input/output error"), "here cannot be read: Input/output error."),
    ],
)
def test_a_refusal_becomes_the_callers_error(error: Exception, said: str) -> None:
    with pytest.raises(DataError) as caught, refusals("here", DataError, "Otherwise."):
        raise error
    assert str(caught.value).startswith(said)
