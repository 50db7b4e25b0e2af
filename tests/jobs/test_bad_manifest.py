"""Manifests of strangers: --resume takes this run's own or refuses, and touches nothing."""

import copy
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bad_input import FAST, tree, value_or_our_error
from ddimctl.errors import DataError, RequestError
from ddimctl.files.own_output import MANIFEST
from ddimctl.jobs.replay.record import read_record
from ddimctl.jobs.requests import OutputOptions
from ddimctl.jobs.sample.job import sample
from ddimctl.jobs.sample.manifest import check_same_run, read_manifest
from ddimctl.jobs.sample.outputs import Layout
from flat_requests import sample_request

LAYOUT = Layout("sample", "images", 6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(10**30, 10**40)
    | st.floats()
    | st.text(max_size=9)
    | st.sampled_from(["sample", "settings", "images", 10**4000]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["command", "settings", "batch_size", "images", "checkpoint", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)


def told(value):
    """What a table says: a name that is missing says as much as null."""
    if not isinstance(value, dict):
        return value
    return {key: inner for key, inner in value.items() if inner is not None}


@pytest.fixture(scope="module")
def run(tiny_checkpoint, tmp_path_factory):
    """A finished run of one image: the request that made it."""
    out = tmp_path_factory.mktemp("manifest") / "out"
    request = sample_request(
        out=out, ckpt=str(tiny_checkpoint), steps=1, seeds=(0,), save=("images",), resume=True
    )
    sample(request)
    return request


def places(value, at=()):
    """The path to every value inside, the outermost first."""
    yield at
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places(value[key], (*at, key))


@pytest.mark.parametrize("version", [2, 0, -1, "1", 1.0, True, None, [1]])
def test_another_format_version_is_refused_by_name(run, version):
    path = run.output.out / MANIFEST
    whole = path.read_text()
    path.write_text(json.dumps(json.loads(whole) | {"format_version": version}))
    try:
        for refuse in (lambda: sample(run), lambda: read_record(run.output.out)):
            with pytest.raises(DataError, match="has the format version"):
                refuse()
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    "change",
    [
        {"smaller_batches": [[0, 2**40]]},
        {"smaller_batches": [[0, 2]]},
        {"settings": {"batch_size": 2**40}},
        {"settings": {"batch_size": 0}},
    ],
)
def test_numbers_of_a_manifest_are_bounded(run, change):
    path = run.output.out / MANIFEST
    whole = path.read_text()
    found = json.loads(whole)
    found["settings"] |= change.pop("settings", {})
    path.write_text(json.dumps(found | change))
    try:
        with pytest.raises(DataError, match="is not the manifest of a run"):
            read_record(run.output.out)
    finally:
        path.write_text(whole)


def test_any_other_manifest_is_refused_and_nothing_is_touched(run):
    path = run.output.out / "manifest.json"
    whole = path.read_text()
    good = json.loads(whole)
    spots = list(places(good))

    def resumes(text):
        path.write_text(text)
        before = tree(run.output.out)

        def read():
            found = read_manifest(run.output.out, LAYOUT, OutputOptions(resume=True))
            assert found is not None
            check_same_run(found, good, LAYOUT)

        error = value_or_our_error(read)
        assert tree(run.output.out) == before
        assert error is None or isinstance(error, DataError | RequestError)
        return error is None

    @FAST
    @given(st.data())
    def replaced(data):
        strange = copy.deepcopy(good)
        at = data.draw(st.sampled_from(spots))
        value = data.draw(VALUES)
        inner = strange
        for key in at[:-1]:
            inner = inner[key]
        if at and data.draw(st.booleans()):
            del inner[at[-1]]
        elif at:
            inner[at[-1]] = value
        else:
            strange = value
        if resumes(json.dumps(strange)):
            decides = ("command", "checkpoint", "settings", "save", "format")
            assert all(told(strange[key]) == told(good[key]) for key in decides)
            assert [image.get("seed") for image in strange["images"]] == [0]

    @FAST
    @given(st.integers(0, len(whole)), st.text(max_size=12), st.integers(0, 40))
    def edited(at, junk, gone):
        resumes((whole[:at] + junk + whole[at + gone :]).encode("utf-8", "replace").decode())

    try:
        assert resumes(whole)
        replaced()
        edited()
    finally:
        path.write_text(whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"\x00" * 100,
        b'{"command": "sample", "command": "train"}',
        b'{"command": "sample", "settings": {"batch_size": NaN}}',
        b'{"command": "sample", "settings": {"batch_size": 1' + b"0" * 5000 + b"}}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_manifest_is_refused_by_name(run, content):
    path = run.output.out / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        before = tree(run.output.out)
        with pytest.raises(DataError, match=r"manifest\.json is not the manifest"):
            sample(run)
        assert tree(run.output.out) == before
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.touch() or os.truncate(path, 2**40)])
def test_a_manifest_that_never_ends_is_not_read(tmp_path, make):
    make(tmp_path / "manifest.json")
    with pytest.raises(DataError, match="is not the manifest"):
        read_manifest(tmp_path, LAYOUT, OutputOptions(resume=True))
