"""What a machine does to a long training: damaged files, signals, full memory and disks, NaN."""

import errno
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from ddimctl.errors import (
    DataError,
    DeviceError,
    NumericsError,
    RequestError,
    Stopped,
    StorageError,
)
from ddimctl.jobs.train import report as training_report
from ddimctl.jobs.train import state as training_state
from ddimctl.jobs.train import step as training_update
from ddimctl.jobs.train.job import train
from ddimctl.jobs.train.request import FREE_ON_RESUME, TrainRequest
from training_runs import (
    OPTIONS,
    assert_equal,
    assert_same_run,
    last_state,
    make_images,
    make_network,
    signal_at,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    make_images(folder / "pictures")
    make_network(folder / "network.json")
    return folder


@pytest.fixture
def request_for(folder, tmp_path):
    def make(out="run", **settings):
        settings = {
            "model": str(folder / "network.json"),
            "device": "cpu",
            "steps": 4,
            "batch_size": 8,
            "warmup": 2,
            "ema": 0.9,
            "save_every": 2,
            "sample_every": 100,
            "log_every": 2,
        } | settings
        data = settings.pop("data", folder / "pictures")
        return TrainRequest(data=data, out=tmp_path / out, **settings)

    return make


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    """A run of four steps, to be copied."""
    out = tmp_path_factory.mktemp("finished") / "run"
    model = str(folder / "network.json")
    settings = {"steps": 4, "batch_size": 8, "warmup": 2, "ema": 0.9, "save_every": 2}
    settings |= {"sample_every": 100, "log_every": 2, "device": "cpu"}
    train(TrainRequest(data=folder / "pictures", out=out, model=model, **settings))
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def states(run):
    return sorted(path.name for path in (run / "state").iterdir())


def flip_bit(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


# states


def test_a_flipped_bit_anywhere_is_found_which_torch_would_not(copied):
    path = copied / "state" / "step-00000004.pt"
    size, unseen = path.stat().st_size, 0
    for at in [*random.Random(0).sample(range(size), 12), size - 1]:
        flip_bit(path, at)
        state, damaged = training_state.load_newest_state(copied / "state")
        assert state["step"] == 2
        assert "step-00000004.pt is damaged" in damaged[0]
        try:
            torch.load(path, weights_only=True)
            unseen += 1
        except Exception:
            pass
        flip_bit(path, at)
    assert unseen > 6
    assert training_state.load_newest_state(copied / "state")[0]["step"] == 4


@pytest.mark.parametrize("harm", ["flipped", "cut", "empty"])
def test_a_damaged_newest_state_is_left_out_for_the_one_before(
    finish, finished, copied, request_for, harm
):
    path = copied / "state" / "step-00000004.pt"
    if harm == "flipped":
        flip_bit(path, path.stat().st_size // 2)
    else:
        os.truncate(path, 0 if harm == "empty" else path.stat().st_size - 100)
    resumed = finish(train, request_for(resume=True))
    assert "step-00000004.pt is damaged" in resumed.notices()
    assert "continuing from step 2" in resumed.notices()
    assert_same_run(copied, finished)


def test_a_damaged_later_state_does_not_push_out_good_ones(finish, copied, request_for):
    flip_bit(copied / "state" / "step-00000004.pt", 10_000)
    finish(train, request_for(resume=True, time_limit=0.0))
    assert states(copied) == [f"step-0000000{step}.pt" for step in (2, 3, 4)]
    resumed = finish(train, request_for(resume=True))
    assert "continuing from step 3" in resumed.notices()


def test_when_all_states_are_damaged_nothing_is_removed(finish, copied, request_for):
    for path in (copied / "state").iterdir():
        flip_bit(path, 10_000)
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with pytest.raises(DataError, match=r"no state in .* is whole.*step-00000002\.pt is damaged"):
        finish(train, request_for(resume=True))
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


class Stranger:
    def __reduce__(self):
        return print, ("this must never run",)


def seal(path, content):
    path.write_bytes(content + b"ddimstat" + hashlib.sha256(content).digest())


def forge(path, content, **how):
    """A sealed state with this content."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    seal(path, buffer.getvalue())


def test_states_of_other_formats_and_of_strangers_are_refused(copied, capsys):
    path = copied / "state" / "step-00000004.pt"
    forge(path, {"format_version": 99})
    with pytest.raises(DataError, match=r"step-00000004\.pt has the format version 99, not 2"):
        training_state.load_newest_state(copied / "state")
    forge(path, {"format_version": 2, "step": Stranger()}, pickle_module=pickle)
    with pytest.raises(DataError, match="is not a state of ddimctl train: it would call"):
        training_state.load_newest_state(copied / "state")
    assert "never" not in capsys.readouterr().out


def test_a_sealed_state_has_the_checksums_of_its_archive(copied):
    path = copied / "state" / "step-00000004.pt"
    content = path.read_bytes()[:-40]
    weights = training_state.load_newest_state(copied / "state")[0]["unet"]["conv_in.weight"]
    content = bytearray(content)
    content[content.find(weights.numpy().tobytes())] ^= 4
    seal(path, bytes(content))
    with pytest.raises(DataError, match=r"it is damaged: the checksum of .* is wrong"):
        training_state.load_newest_state(copied / "state")


@pytest.mark.timeout(20)
def test_a_pipe_is_no_state(copied):
    path = copied / "state" / "step-00000004.pt"
    path.unlink()
    os.mkfifo(path)
    state, problems = training_state.load_newest_state(copied / "state")
    assert state["step"] == 2
    assert problems == [f"{path} is a pipe or a device, not a file."]


WRONG_VALUES = [
    ("step", None),
    ("step", -1),
    ("step", 2**70),
    ("skipped", "0"),
    ("loss_sum", "1"),
    ("loss_count", 1.5),
    ("metrics", {}),
    ("metrics", [1]),
    ("metrics", [{"loss": 1.0}]),
    ("metrics", [{"step": 2, "loss": float("nan")}]),
    ("metrics", [{"step": 2, "loss": "low"}]),
    ("run", None),
    ("run", {}),
    ("run", {"settings": {1: 2}, "network": {}, "data": {}, "steps": 4}),
    ("unet", []),
    ("optimizer", torch.ones(2)),
]


@pytest.mark.parametrize(("name", "value"), WRONG_VALUES, ids=str)
def test_a_sealed_state_with_other_content_is_refused(copied, name, value):
    path = copied / "state" / "step-00000004.pt"
    state = training_state.load_newest_state(copied / "state")[0]
    for content in (state | {name: value}, {k: v for k, v in state.items() if k != name}):
        forge(path, content)
        with pytest.raises(
            DataError, match=r"00004\.pt is not a state of ddimctl train\."
        ) as error:
            training_state.load_newest_state(copied / "state")
        assert error.value.remedy


def test_a_state_of_another_network_is_refused(finish, copied, request_for):
    path = copied / "state" / "step-00000004.pt"
    state = training_state.load_newest_state(copied / "state")[0]
    weight, moments = next(iter(state["unet"])), state["optimizer"]["state"]
    short = moments[0] | {"exp_avg": torch.zeros(3)}
    for part, content in (
        ("unet", state["unet"] | {weight: torch.zeros(2)}),
        ("unet", state["unet"] | {weight: "text"}),
        ("unet", state["unet"] | {"another": torch.zeros(2)}),
        ("ema", {}),
        ("optimizer", {}),
        ("optimizer", state["optimizer"] | {"state": moments | {0: short}}),
        ("optimizer", state["optimizer"] | {"state": moments | {0: {}}}),
        ("optimizer", state["optimizer"] | {"state": {len(moments): moments[0]}}),
        ("optimizer", state["optimizer"] | {"param_groups": []}),
    ):
        forge(path, state | {part: content})
        with pytest.raises(DataError, match="the state of step 4 is of another network") as error:
            finish(train, request_for(resume=True))
        assert error.value.remedy


# what may change on resume


def test_every_other_setting_is_compared_and_shown(finish, copied, request_for):
    changed = {"lr": 0.01, "seed": 7, "flip": True, "clip_grad": 0.5, "precision": "bf16"}
    with pytest.raises(RequestError) as error:
        finish(train, request_for(resume=True, **changed))
    for text in (
        "--lr was 0.0002, is 0.01",
        "--seed was 0, is 7",
        "--flip was False, is True",
        "--clip-grad was 1.0, is 0.5",
        "--precision was 'fp32', is 'bf16'",
    ):
        assert text in error.value.cause
    assert error.value.exit_code == 2


def test_a_network_file_that_changed_is_shown(finish, copied, request_for, tmp_path):
    other = make_network(tmp_path / "other.json")
    other.write_text(other.read_text().replace('"dropout": 0.1', '"dropout": 0.2'))
    with pytest.raises(RequestError, match=r"the network's dropout was 0\.1, is 0\.2"):
        finish(train, request_for(resume=True, model=str(other)))


def test_other_images_are_counted(finish, copied, request_for, folder, tmp_path):
    data = shutil.copytree(folder / "pictures", tmp_path / "fewer")
    next((data / "left").iterdir()).unlink()
    with pytest.raises(RequestError, match=r"it had 40 training images .* has 39 training images"):
        finish(train, request_for(resume=True, data=data))


def test_free_settings_may_change(finish, copied, request_for, folder, tmp_path):
    moved = shutil.copytree(folder / "pictures", tmp_path / "moved")
    network = make_network(tmp_path / "elsewhere.json")
    resumed = finish(train,
            request_for(
                resume=True, data=moved, model=str(network), steps=6, grad_accum=2, log_every=1,
                save_every=3, sample_every=6, weights_dtype="fp16", time_limit=600.0,
            )
        )  # fmt: skip
    assert resumed.result.step == 6
    assert "--steps was 4, is 6: the learning rate now decays" in resumed.notices()
    assert set(TrainRequest.__dataclass_fields__) >= FREE_ON_RESUME


# signals


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_the_first_signal_saves_and_exits_75(forks, folder, tmp_path, name):
    at = signal_at("step-00000002.pt", 1, "before", name)
    command = ("train", folder / "pictures", "--out", tmp_path / "run")
    ended = forks.run(*command, "--model", folder / "network.json", *OPTIONS, prelude=at)
    assert ended.code == 75
    assert f"stopped: {name}: stopped after step 2 of 6, state saved." in ended.text
    assert states(tmp_path / "run") == ["step-00000002.pt"]


def test_a_signal_while_images_are_read_stops_before_the_first_step(
    finish, request_for, folder, tmp_path
):
    data = make_images(tmp_path / "unread")
    (data / "left" / "00.png").unlink()  # so that no cache has it

    def on_event(event):
        if getattr(event, "phase", "") == "reading":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM: stopped before the first step"):
        train(request_for(data=data), on_event)
    assert finish(train, request_for(data=data, resume=True, steps=1)).result.step == 1


@pytest.mark.parametrize(("during", "signals"), [("gather", 2), ("make_denoiser", 2)])
def test_a_signal_cuts_reports_short_and_the_resumed_run_makes_up_for_them(
    finish, request_for, tmp_path, monkeypatch, during, signals
):
    """In the evaluation at the second save; in the second grid, which is at the last step."""
    settings = {"holdout": 0.2, "sample_every": 2, "steps": 4}
    finish(train, request_for("whole", **settings))
    original, calls = getattr(training_report, during), []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == signals:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training_report, during, interrupting)
        with pytest.raises(Stopped, match=r"SIGTERM: stopped after step \d of 4, state saved"):
            finish(train, request_for(**settings))
    assert len(calls) == signals  # nothing was begun after it
    finish(train, request_for(resume=True, **settings))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_second_signal_while_the_state_is_written_leaves_the_one_before(
    finish, request_for, tmp_path, monkeypatch
):
    finish(train, request_for("whole"))
    with monkeypatch.context() as patch:
        original = training_state._HashedFile.write

        def interrupted(self, data):
            if (tmp_path / "run" / "metrics.jsonl").exists():  # at the second save
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, data)

        patch.setattr(training_state._HashedFile, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            finish(train, request_for())
    assert states(tmp_path / "run") == ["step-00000002.pt"]
    finish(train, request_for(resume=True))
    assert_same_run(tmp_path / "run", tmp_path / "whole")


# memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=["CUDA", "CPU"],
)
def test_out_of_memory_names_the_parts_to_try_and_they_work(
    finish, request_for, tmp_path, monkeypatch, error
):
    original = training_update.make_batch

    def too_large(request, data, model, first, count, device):
        if count > 4 and first >= 3 * 8:
            raise error
        return original(request, data, model, first, count, device)

    monkeypatch.setattr(training_update, "make_batch", too_large)
    with pytest.raises(DeviceError, match="out of memory") as told:
        finish(train, request_for())
    assert told.value.remedy == (
        "Continue with --resume --grad-accum 2: 4 images at once instead of 8."
    )
    assert states(tmp_path / "run") == ["step-00000002.pt"]
    resumed = finish(train, request_for(resume=True, grad_accum=2))
    assert "continuing from step 2" in resumed.notices()
    assert resumed.result.step == 4


# numbers


def test_a_skipped_update_touches_neither_weights_nor_optimizer(
    finish, request_for, tmp_path, monkeypatch
):
    """The state saved after two good updates and a bad one, against that after the two."""
    original = training_update.add_noise

    def broken_from(call):
        calls = []

        def add_noise(*arguments):
            calls.append(1)
            return original(*arguments) * (torch.nan if len(calls) >= call else 1)

        return add_noise

    finish(train, request_for("two", time_limit=600.0, lr_decay="constant", steps=2))
    monkeypatch.setattr(training_update, "add_noise", broken_from(3))
    finish(train, request_for("three", lr_decay="constant", steps=3, log_every=1))
    good, bad = last_state(tmp_path / "two"), last_state(tmp_path / "three")
    assert (bad["step"], bad["skipped"], bad["skipped_in_a_row"]) == (3, 1, 1)
    assert bad["metrics"][-1]["skipped"] == 1
    assert bad["metrics"][-1]["loss"] is None
    for name in ("unet", "ema"):
        assert_equal(good[name], bad[name])
    assert_equal(good["optimizer"]["state"], bad["optimizer"]["state"])


def test_after_too_many_skipped_updates_the_last_good_state_is_there(
    finish, request_for, tmp_path, monkeypatch
):
    finish(train, request_for(steps=2))
    good = last_state(tmp_path / "run")
    monkeypatch.setattr(training_update, "SKIP_LIMIT", 3)
    nan = torch.full((), torch.nan)
    monkeypatch.setattr(
        training_update, "_weighted", lambda run, difference, t: difference.sum() * nan
    )
    with pytest.raises(NumericsError, match="not finite in 4 consecutive updates"):
        finish(train, request_for(resume=True, steps=40))
    kept = last_state(tmp_path / "run")
    assert (kept["step"], kept["skipped_in_a_row"]) == (4, 2)
    for name in ("unet", "ema"):
        assert_equal(good[name], kept[name])


def test_an_evaluation_that_is_not_finite_does_not_end_the_run(
    finish, request_for, tmp_path, monkeypatch
):
    original = training_report.add_noise
    monkeypatch.setattr(training_report, "add_noise", lambda *a: original(*a) * torch.inf)
    assert finish(train, request_for()).result.step == 4
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["train_loss"] is None


# one folder, one disk


def test_a_second_run_is_told_who_holds_the_folder(request_for):
    tried = []

    def on_event(event):
        if not tried:
            tried.append(event)
            train(request_for(resume=True))

    with pytest.raises(RequestError, match="is in use by `ddimctl train`, process"):
        train(request_for(), on_event)
    train(request_for())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("full", ["state", "checkpoint/unet", "."])
def test_a_full_disk_ends_the_run_and_the_resumed_one_is_whole(
    finish, finished, request_for, tmp_path, monkeypatch, full
):
    """No space for the files of one folder, from the second save on."""
    fsync, run = os.fsync, tmp_path / "run"

    def refuse(descriptor):
        file = Path(f"/proc/self/fd/{descriptor}").readlink()
        if (run / "metrics.jsonl").exists() and file.parent == run / full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(StorageError, match=r"no space is left on the disk.*--resume"):
            finish(train, request_for())
    assert "step-00000002.pt" in states(run)
    assert not list(run.rglob(".ddimctl-*"))
    finish(train, request_for(resume=True))
    assert_same_run(run, finished)


def test_a_state_that_the_disk_cuts_short_never_replaces_the_one_before(forks, folder, tmp_path):
    """The kernel itself refuses: a limit on the size of files."""
    out = tmp_path / "run"
    model = ("--model", folder / "network.json")
    command = ("train", folder / "pictures", "--out", out, *model, *OPTIONS, "--resume")
    at = signal_at("step-00000002.pt", 1, "before", "SIGTERM")
    assert forks.run(*command, prelude=at).code == 75
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    ended = forks.run(*command, prelude=limit)
    assert ended.code == 1
    assert "step-00000002.pt cannot be written: the file is too large for this disk." in ended.text
    assert states(out) == ["step-00000002.pt"]
    assert forks.run(*command).code == 0
    assert forks.run(*command[:2], "--out", tmp_path / "whole", *model, *OPTIONS).code == 0
    assert_same_run(out, tmp_path / "whole")
