import json
import shutil

import pytest

import ddimctl
from ddimctl.checkpoints.load import BUNDLED
from ddimctl.errors import RequestError
from ddimctl.jobs.checkpoint import FoundCheckpoint, find_checkpoint, remember, verify


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_local_checkpoint_is_found_again_by_its_hash(tiny_checkpoint, tmp_path):
    checkpoint = ddimctl.load_checkpoint(tiny_checkpoint)
    record = checkpoint.provenance.record()
    with pytest.raises(RequestError, match="Name it with --ckpt"):
        find_checkpoint(record)
    remember(checkpoint, str(tiny_checkpoint))
    found = find_checkpoint(record)
    assert found.spec == str(tiny_checkpoint)
    verify(ddimctl.load_checkpoint(found.spec), record)


def test_a_checkpoint_that_moved_away_or_changed_is_not_taken(tiny_checkpoint, tmp_path):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "mine")
    checkpoint = ddimctl.load_checkpoint(folder)
    record = checkpoint.provenance.record()
    remember(checkpoint, str(folder))
    with pytest.raises(RequestError, match="another version"):
        verify(checkpoint, record | {"sha256": "0" * 64})
    shutil.rmtree(folder)
    with pytest.raises(RequestError, match="was not found"):
        find_checkpoint(record)


def test_hub_ids_come_with_their_commit_and_the_bundled_one_from_the_package():
    record = {"name": "google/ddpm-cifar10-32", "sha256": "1" * 64, "revision": "a" * 40}
    assert find_checkpoint(record) == FoundCheckpoint("google/ddpm-cifar10-32", "a" * 40)
    assert find_checkpoint({"name": "bundled", "sha256": "1" * 64}).spec == "bundled"


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 3}', ""])
def test_a_damaged_index_is_an_empty_one(own_cache, tiny_checkpoint, content):
    own_cache.mkdir()
    (own_cache / "checkpoints.json").write_text(content)
    checkpoint = ddimctl.load_checkpoint(tiny_checkpoint)
    with pytest.raises(RequestError):
        find_checkpoint(checkpoint.provenance.record())
    remember(checkpoint, str(tiny_checkpoint))
    index = json.loads((own_cache / "checkpoints.json").read_text())
    assert index[checkpoint.provenance.sha256] == str(tiny_checkpoint)


@pytest.mark.parametrize("record", [{}, {"name": "x"}, {"name": 3, "sha256": None, "revision": 4}])
def test_strange_records_are_refused(record):
    with pytest.raises(RequestError, match="Name it with --ckpt"):
        find_checkpoint(record)


def edited(checkpoint, folder, **settings):
    """A copy with other settings of its scheduler, and so of the same weights."""
    path = shutil.copytree(checkpoint, folder) / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def test_a_copy_with_other_settings_does_not_take_a_checkpoints_place(tiny_checkpoint, tmp_path):
    copy = edited(tiny_checkpoint, tmp_path / "copy", prediction_type="v_prediction")
    record = ddimctl.load_checkpoint(tiny_checkpoint).provenance.record()
    for spec in (tiny_checkpoint, copy):  # the copy is used last
        remember(ddimctl.load_checkpoint(spec), str(spec))
    assert find_checkpoint(record).spec == str(tiny_checkpoint)
    assert find_checkpoint(record | {"name": "copy"}).spec == str(copy)
    assert find_checkpoint(record | {"name": "moved"}).spec == str(copy)

    other = edited(BUNDLED, tmp_path / "other", prediction_type="epsilon")
    checkpoint = ddimctl.load_checkpoint(other)
    remember(checkpoint, str(other))
    assert find_checkpoint(checkpoint.provenance.record() | {"name": "bundled"}).spec == "bundled"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prediction_type": "v_prediction"}, "another prediction"),
        ({"beta_end": 0.03}, "another schedule"),
    ],
)
def test_other_settings_of_the_same_weights_are_refused(tiny_checkpoint, tmp_path, settings, said):
    checkpoint = ddimctl.load_checkpoint(tiny_checkpoint)
    known = {"schedule": checkpoint.schedule.settings, "prediction": checkpoint.prediction}
    now = ddimctl.load_checkpoint(edited(tiny_checkpoint, tmp_path / "copy", **settings))
    record = checkpoint.provenance.record()
    verify(checkpoint, record, known)
    verify(now, record)  # where nothing is known of them
    with pytest.raises(RequestError, match=said):
        verify(now, record, known)
