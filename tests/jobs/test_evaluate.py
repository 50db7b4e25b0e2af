import base64
import csv
import io
import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from ddimctl.checkpoints import load_checkpoint
from ddimctl.errors import DataError, NumericsError, RequestError, Stopped, StorageError
from ddimctl.jobs import checkpoint as jobs_checkpoint
from ddimctl.jobs.evaluate import cells as preset_checks
from ddimctl.jobs.evaluate import job as evaluating
from ddimctl.jobs.evaluate import paper_tables as presets
from ddimctl.jobs.evaluate import reference as measuring
from ddimctl.jobs.evaluate import score as scoring
from ddimctl.jobs.evaluate.cells import differences
from ddimctl.jobs.evaluate.job import evaluate
from ddimctl.jobs.evaluate.paper_tables import PRESETS, Preset, is_within_band, paper_timesteps
from ddimctl.jobs.evaluate.reference import Preparation, make_reference
from ddimctl.jobs.evaluate.report import FILES, combine, tables
from ddimctl.jobs.evaluate.request import ReferenceRequest, ScoreRequest, ScoringOptions
from ddimctl.jobs.sample import auto_timesteps
from ddimctl.metrics.inception import Extractor
from flat_requests import changed, evaluate_request


def image(path, seed=0, size=(16, 16), mode="RGB"):
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (4, 4, len(mode)), generator=generator, dtype=torch.uint8)
    Image.frombytes(mode, (4, 4), levels.numpy().tobytes()).resize(size).save(path)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for seed in range(10):
        image(folder / f"{seed}.png", seed, (20, 16))
    return folder


@pytest.fixture
def request_for(tiny_checkpoint, data, tmp_path):
    def make(count=8, **settings):
        common = {"data": data, "steps": (2, 3), "out": tmp_path / "out", "num": count}
        rows = settings.pop("rows", (0.0,))
        common["eta"] = tuple(row for row in rows if not isinstance(row, str)) or None
        common["variance"] = tuple(row for row in rows if isinstance(row, str))
        return evaluate_request(**(common | {"ckpt": str(tiny_checkpoint)} | settings))

    return make


@pytest.fixture
def fake_inception(monkeypatch):
    """Eight colours of places instead of 2048 features; says how often it was asked."""
    asked = []

    def features(images):
        asked.append(len(images))
        return torch.nn.functional.adaptive_avg_pool2d(images.float(), 2).flatten(1)[:, :8]

    monkeypatch.setattr(measuring, "DIMENSIONS", 8)
    monkeypatch.setattr(
        measuring, "load_inception", lambda path, device: Extractor(features, {"network": "fake"})
    )
    return asked


def event_phase(event):
    return getattr(event, "phase", "")


def tree(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# --- evaluate -----------------------------------------------------------------------------------


def test_every_cell_is_sampled_scored_and_told(finish, request_for, tmp_path):
    finished = finish(evaluate, request_for(rows=(0.0, 1.0, "large")))
    out = tmp_path / "out"
    rows = finished.result.rows
    assert [(row["eta"], row["variance"], row["steps"]) for row in rows] == [
        (0.0, "eta", 2), (1.0, "eta", 2), (None, "large", 2),
        (0.0, "eta", 3), (1.0, "eta", 3), (None, "large", 3),
    ]  # fmt: skip
    assert all(row["pictures"] == 8 and row["swd"] > 0 for row in rows)
    assert len({row["swd"] for row in rows}) == 6
    assert {"swd_1", "swd_2"} < set(rows[0])
    cells = {f"{row}-S{S}" for row in ("eta0", "eta1", "large") for S in (2, 3)}
    assert {path.name for path in (out / "cells").iterdir()} == cells
    assert tree(out / "cells" / "eta1-S3") == {
        "grid.png", "manifest.json", "score.json", *(f"images/00000{i}.png" for i in range(8)),
    }  # fmt: skip
    assert {path.name for path in out.iterdir()} == {*FILES, "cells", "reference.safetensors"} - {
        "curve.svg"
    }
    manifest = json.loads((out / "cells" / "large-S3" / "manifest.json").read_text())
    assert (manifest["settings"]["variance"], manifest["settings"]["steps"]) == ("large", 3)
    assert "scores of each cell use only 8 images" in finished.notices()
    assert "scores of the data use only 10 images" in finished.notices()


def test_the_report_can_be_read(finish, request_for, tmp_path):
    result = finish(evaluate, request_for(rows=(0.0, 0.5))).result
    out = tmp_path / "out"
    stored = json.loads((out / "table.json").read_text())
    assert stored["rows"] == list(result.rows)
    assert stored["settings"]["reference"]["pictures"] == 10
    lines = list(csv.DictReader((out / "table.csv").open()))
    assert [float(line["swd"]) for line in lines] == [row["swd"] for row in result.rows]
    (table,) = tables(result.rows)
    assert "not FID" in table.title
    assert table.columns == ("S", "2", "3")
    assert [line[0] for line in table.lines] == ["η = 0", "η = 0.5"]
    assert table.lines[0][1] == f"{result.rows[0]['swd']:#.4g}"

    page = (out / "index.html").read_text()
    assert f"<td>{table.lines[1][2]}</td>" in page
    assert "prefers-color-scheme: dark" in page
    assert not re.search(r"<script|https?://|url\(|<link", page)
    inlined = [
        base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)
    ]
    assert inlined == [(out / name).read_bytes() for name in ("curve.png", "seeds.png")]
    for content in inlined:
        Image.open(io.BytesIO(content)).verify()
    first = f"η = 0.5 | {' | '.join(table.lines[1][1:])} |"
    assert f"| {first}\n" in (out / "table.md").read_text()
    assert (
        f"$\\eta$ = 0.5 & {' & '.join(table.lines[1][1:])} \\\\" in (out / "table.tex").read_text()
    )

    again = request_for(rows=(0.0, 0.5), plot_format="svg", resume=True)
    finish(evaluate, again)
    curve = (out / "curve.svg").read_bytes()
    assert "η = 0.5".encode() in curve
    assert base64.b64encode(curve).decode() in (out / "index.html").read_text()


def test_the_same_seeds_are_shown_side_by_side(finish, request_for, tmp_path):
    finish(evaluate, request_for(steps=(2, 3)))
    with Image.open(tmp_path / "out" / "seeds.png") as grid:
        width, height = grid.size
        assert width > 8 * 128
        assert height > 2 * 128
        cell = grid.crop((12, 12, 12 + 128, 12 + 128)).resize((16, 16), Image.Resampling.NEAREST)
    with Image.open(tmp_path / "out" / "cells" / "eta0-S2" / "images" / "000000.png") as first:
        assert cell.tobytes() == first.convert("RGB").tobytes()


def test_resume_makes_only_what_is_missing(finish, request_for, tmp_path):
    first = finish(evaluate, request_for()).result
    out = tmp_path / "out"
    kept = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*.png")}
    (out / "cells" / "eta0-S3" / "images" / "000005.png").unlink()
    (out / "cells" / "eta0-S3" / "score.json").unlink()
    (out / "index.html").unlink()
    again = finish(evaluate, request_for(resume=True))
    assert again.result.rows == first.rows
    assert (out / "index.html").exists()
    changed = {path for path, time in kept.items() if path.stat().st_mtime_ns != time}
    assert all("eta0-S3" in str(path) for path in changed)
    phases = [event.phase for event in again.events if hasattr(event, "phase")]
    assert "measuring" in phases
    third = finish(evaluate, request_for(resume=True))
    phases = {event.phase for event in third.events if hasattr(event, "phase")}
    assert not phases & {"sampling", "measuring"}
    assert third.result.rows == first.rows


def test_a_stopped_evaluation_goes_on_to_the_same_scores(finish, request_for, tmp_path):
    whole = finish(evaluate, request_for(batch_size=2)).result
    (tmp_path / "out").rename(tmp_path / "whole")
    seen = []
    with pytest.raises(Stopped, match="--resume"):

        def on_event(event):
            seen.append(getattr(event, "phase", "") == "sampling")
            if sum(seen) == 12:  # in the second cell
                signal.raise_signal(signal.SIGTERM)

        evaluate(request_for(batch_size=2), on_event)
    made = len(list((tmp_path / "out" / "cells" / "eta0-S3" / "images").iterdir()))
    assert 0 < made < 8
    again = finish(evaluate, request_for(batch_size=2, resume=True)).result
    assert again.rows == whole.rows


def test_the_checkpoint_is_opened_once(finish, request_for, monkeypatch):
    opened = []
    original = jobs_checkpoint.open_checkpoint
    monkeypatch.setattr(
        jobs_checkpoint,
        "open_checkpoint",
        lambda *given, **named: opened.append(1) or original(*given, **named),
    )
    finish(evaluate, request_for(rows=(0.0, 1.0)))
    assert len(opened) == 1


def test_timesteps_are_chosen_for_each_number_of_steps(finish, request_for, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_timesteps, "IMAGES", 1)
    monkeypatch.setenv("DDIMCTL_CACHE", str(tmp_path / "cache"))
    guess = finish(evaluate, request_for(timesteps="auto", dry_run=True))
    assert guess.result.settings["timesteps"] == {}
    assert guess.result.settings["evaluations"] == [2, 3]
    assert "takes 120 evaluations" in guess.notices()
    finished = finish(evaluate, request_for(timesteps="auto", rows=(0.0, 1.0)))
    phases = [event_phase(event) for event in finished.events]
    assert phases.count("choosing timesteps") == 120  # one probe for both
    found = finished.result.settings["timesteps"]
    assert list(found) == ["S = 2", "S = 3"]
    for row in ("eta0", "eta1"):
        for S in (2, 3):
            path = tmp_path / f"out/cells/{row}-S{S}/manifest.json"
            settings = json.loads(path.read_text())["settings"]
            assert (settings["tau"], settings["timesteps"]) == ("auto", found[f"S = {S}"])
    page = (tmp_path / "out/index.html").read_text()
    assert ", ".join(map(str, found["S = 3"])) in page
    again = finish(evaluate, request_for(timesteps="auto", dry_run=True, out=tmp_path / "other"))
    assert again.result.settings["timesteps"] == found
    with pytest.raises(RequestError, match="too few for --steps 60"):
        finish(evaluate, request_for(timesteps="auto", steps=(2, 60), out=tmp_path / "other"))


def test_progress_names_the_cell(finish, request_for):
    finished = finish(evaluate, request_for())
    cells = {
        event.facts.get("cell")
        for event in finished.events
        if event_phase(event) == "sampling" or getattr(event, "total", 0) == 8
    }
    assert cells == {"eta0-S2", "eta0-S3"}


def test_numbers_that_are_not_finite_name_the_cell(finish, request_for, monkeypatch):
    def fails(*given, **named):
        raise NumericsError("seed 3: values are no longer finite.", "Try --clip static.")

    monkeypatch.setattr(evaluating, "decode", fails)
    with pytest.raises(NumericsError, match=r"^eta0-S2: seed 3: ") as caught:
        finish(evaluate, request_for())
    assert caught.value.remedy == "Try --clip static."


def test_a_damaged_image_of_a_cell_is_made_again(finish, request_for, tmp_path):
    rows = finish(evaluate, request_for()).result.rows
    cell = tmp_path / "out/cells/eta0-S3"
    (cell / "score.json").unlink()
    whole = (cell / "images/000005.png").read_bytes()
    (cell / "images/000005.png").write_bytes(whole[: len(whole) // 2])
    assert finish(evaluate, request_for(resume=True)).result.rows == rows
    assert (cell / "images/000005.png").read_bytes() == whole


def test_samples_are_measured_as_data_are(finish, data):
    how = Preparation((16, 16))
    measure, cpu = measuring.make_measure(("swd",), None, torch.device("cpu")), torch.device("cpu")
    whole = finish(measuring.measure_images, data, how, measure, cpu, limit=7).result.summary
    streamed = finish(measuring.measure_samples, data, how, measure, cpu, 7).result
    assert torch.equal(whole["patches"], streamed["patches"])
    assert int(streamed["count"]) == 7
    with pytest.raises(DataError, match="holds 10 images, not 11"):
        finish(measuring.measure_samples, data, how, measure, cpu, 11)


def test_resume_with_more_cells_adds_them(finish, request_for):
    first = finish(evaluate, request_for(steps=(2,))).result
    more = finish(evaluate, request_for(steps=(2, 4), resume=True)).result
    assert more.rows[0] == first.rows[0]
    assert more.rows[1]["steps"] == 4


def test_resume_of_another_run_is_refused(finish, request_for):
    finish(evaluate, request_for())
    with pytest.raises(RequestError, match="the settings differ from the first run's"):
        finish(evaluate, request_for(count=6, resume=True))
    with pytest.raises(RequestError, match="holds an evaluation already"):
        finish(evaluate, request_for())
    assert finish(evaluate, request_for(count=6, force=True)).result.rows[0]["pictures"] == 6


def test_other_data_are_scored_anew(finish, request_for, tmp_path):
    first = finish(evaluate, request_for()).result
    (tmp_path / "other").mkdir()
    for seed in range(4):
        image(tmp_path / "other" / f"{seed}.png", 90 + seed)
    other = finish(evaluate, request_for(data=tmp_path / "other", resume=True))
    assert other.result.rows[0]["swd"] != first.rows[0]["swd"]
    assert not any(getattr(event, "phase", "") == "sampling" for event in other.events)


def test_repeats_are_of_other_seeds_and_give_half_a_range(finish, request_for, tmp_path):
    result = finish(evaluate, request_for(steps=(2,), repeats=3, count=4)).result
    (row,) = result.rows
    cells = tmp_path / "out" / "cells"
    names = ("eta0-S2", "eta0-S2-repeat2", "eta0-S2-repeat3")
    found = [json.loads((cells / name / "score.json").read_text())["scores"] for name in names]
    values = [scores["swd"] for scores in found]
    assert row["swd"] == pytest.approx(sum(values) / 3)
    assert row["swd_half_range"] == pytest.approx((max(values) - min(values)) / 2)
    assert sorted(path.name for path in (cells / names[2] / "images").iterdir()) == [
        f"{seed:06d}.png" for seed in range(8, 12)
    ]
    assert " ± " in tables(result.rows)[0].lines[0][1]


def test_a_dry_run_counts_and_writes_nothing(finish, request_for, tmp_path):
    result = finish(evaluate, request_for(dry_run=True, repeats=2)).result
    assert result.settings["evaluations_in_all"] == 2 * 8 * (2 + 3)
    assert result.rows == ()
    assert not (tmp_path / "out").exists()


def test_a_cell_that_cannot_be_is_refused_before_anything_is_sampled(finish, request_for, tmp_path):
    with pytest.raises(RequestError, match="more than the"):
        finish(evaluate, request_for(steps=(2, 5000)))
    with pytest.raises(RequestError, match="no learned variance"):
        finish(evaluate, request_for(rows=(0.0, "learned")))
    assert not (tmp_path / "out").exists()


def test_missing_data_are_refused(finish, request_for, tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        finish(evaluate, request_for(data=tmp_path / "nothing"))
    with pytest.raises(RequestError, match="--data or --reference"):
        finish(evaluate, request_for(data=None))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        finish(evaluate, request_for(data=tmp_path / "empty", resume=True))


def test_a_missing_extra_is_told_before_anything_is_sampled(
    finish, request_for, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(RequestError, match="torch-fidelity") as caught:
        finish(evaluate, request_for(metrics=("swd", "fid")))
    assert "ddimctl[fid]" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_metrics_can_be_added_without_sampling_again(finish, request_for, fake_inception):
    first = finish(evaluate, request_for()).result
    more = finish(evaluate, request_for(metrics=("swd", "fid", "kid"), resume=True))
    assert not any(getattr(event, "phase", "") == "sampling" for event in more.events)
    for before, row in zip(first.rows, more.result.rows, strict=True):
        assert row["swd"] == before["swd"]
        assert row["fid"] > 0
        assert {"kid", "kid_std", "fid_half_range"} <= set(row)
    assert [table.title for table in tables(more.result.rows)][1:] == ["FID", "KID"]
    assert sum(fake_inception) == 10 + 2 * 8


# --- the paper's tables -------------------------------------------------------------------------


def test_timesteps_of_the_paper():
    assert paper_timesteps(True, 10, 1000) == (0, 9, 39, 88, 158, 246, 355, 483, 632, 800)
    counts = [len(paper_timesteps(True, S, 1000)) for S in (10, 20, 50, 100, 1000)]
    assert counts == [10, 20, 49, 96, 688]
    assert paper_timesteps(False, 10, 1000) == tuple(range(0, 1000, 100))
    assert len(paper_timesteps(False, 30, 1000)) == 31
    for S in (1, 1001):
        with pytest.raises(RequestError, match=r"2 \.\.\. 1000"):
            paper_timesteps(False, S, 1000)


def test_numbers_of_the_paper():
    cifar = PRESETS["paper-cifar10"]
    assert cifar.fid[0.0][10] == 13.36
    assert cifar.fid["large"][1000] == 3.17
    assert (cifar.etas, cifar.variances) == ((0.0, 0.2, 0.5, 1.0), ("large",))
    assert PRESETS["paper-church"].fid[1.0] == {10: 51.56, 20: 23.37, 50: 11.16, 100: 8.27}
    assert is_within_band(4.9, 4.67)
    assert not is_within_band(5.0, 4.67)
    assert is_within_band(380, 367.43)
    assert not is_within_band(390, 367.43)


def test_the_paper_is_judged_only_where_the_experiment_is_the_same():
    assert combine([{"fid": 4.7}], 4.67, True)["within_band"] is True
    assert combine([{"fid": 7.0}], 4.67, True)["within_band"] is False
    assert combine([{"fid": 7.0}], 4.67, False)["within_band"] is None
    assert "paper_fid" not in combine([{"swd": 7.0}], 4.67, True)
    row = {"eta": 0.0, "variance": "eta", "steps": 50, **combine([{"fid": 7.0}], 4.67, True)}
    assert tables([row])[0].lines == (("η = 0", "7.000 (4.67, off)"),)


def test_a_preset_brings_timesteps_clipping_and_numbers(
    finish, request_for, fake_inception, tmp_path, monkeypatch
):
    numbers = {0.0: {10: 5.0}, "large": {10: 9.0}}
    tiny = Preset("nowhere", "nothing", 16, True, numbers)
    monkeypatch.setitem(presets.PRESETS, "paper-tiny", tiny)
    request = request_for(
        preset="paper-tiny", steps=(10, 60), rows=(0.0, "large"), metrics=("fid",), count=2
    )
    finished = finish(evaluate, request)
    rows = {(row["variance"], row["steps"]): row for row in finished.result.rows}
    assert rows["eta", 10]["paper_fid"] == 5.0
    assert rows["large", 10]["paper_fid"] == 9.0
    assert rows["eta", 10]["within_band"] is None
    assert "paper_fid" not in rows["eta", 60]
    assert [rows["eta", S]["evaluations"] for S in (10, 60)] == [10, 58]
    assert "repeated timesteps are left out" in finished.notices()
    settings = {
        name: json.loads((tmp_path / f"out/cells/{name}-S10/manifest.json").read_text())["settings"]
        for name in ("eta0", "large")
    }
    assert settings["eta0"]["timesteps"][-1] == 800
    assert (settings["eta0"]["clip"], settings["large"]["clip"]) == ("none", "static")


def test_what_is_unlike_the_paper_is_named(tiny_checkpoint):
    like = load_checkpoint(str(tiny_checkpoint))
    paper = evaluate_request(num=50_000)
    assert differences("paper-cifar10", like, paper, 50_000) == []
    assert differences("paper-celeba", like, paper, 7) == []  # of which nobody says how many
    assert differences("paper-cifar10", like, changed(paper, solver="ipndm"), 10_000) == [
        "10,000 images of data, not 50,000",
        "--solver ipndm",
    ]
    bundled = load_checkpoint()
    assert differences("paper-cifar10", bundled, changed(paper, clip="none"), 50_000) == [
        "a network that predicts v, not eps",
        "another noise schedule",
        "a class-conditional network",
        "--clip none",
    ]


def test_a_preset_says_what_is_unlike_and_judges_only_its_like(
    finish, request_for, fake_inception, monkeypatch, tmp_path
):
    tiny = Preset("nowhere", "nothing", 16, True, {0.0: {10: 5.0}}, images=10)
    monkeypatch.setitem(presets.PRESETS, "paper-tiny", tiny)
    asked = {"preset": "paper-tiny", "steps": (10,), "metrics": ("fid",), "count": 2}
    finished = finish(evaluate, request_for(**asked))
    assert "not the paper's experiment: 2 images a cell, not 50,000. " in finished.notices()
    assert finished.result.rows[0]["within_band"] is None
    page = (tmp_path / "out/index.html").read_text()
    assert "not judged, since here are 2 images a cell, not 50,000." in page
    monkeypatch.setattr(preset_checks, "IMAGES", 2)
    finished = finish(evaluate, request_for(**asked, resume=True))
    assert "unlike" not in finished.notices()
    assert finished.result.rows[0]["within_band"] is False


def test_a_preset_of_another_size_is_refused(finish, request_for):
    with pytest.raises(RequestError, match="32x32 images, the checkpoint of 16x16"):
        finish(evaluate, request_for(preset="paper-cifar10"))


# --- references ---------------------------------------------------------------------------------


@pytest.fixture
def reference(finish, data, tmp_path):
    def make(name="r.safetensors", size=(16, 16), **settings):
        settings["size"] = size
        request = ReferenceRequest(data, out=tmp_path / name, **settings)
        return finish(make_reference, request).result[0]

    return make


def measured(job, request):
    """How many images were measured before the job ended with an error; which."""
    events = []
    with pytest.raises((RequestError, StorageError)) as raised:
        job(request, events.append)
    return sum(getattr(event, "phase", "") == "measuring" for event in events), raised.value


def test_a_reference_that_cannot_be_written_is_refused_before_it_is_made(data, tmp_path):
    (tmp_path / "file").touch()
    for out, said in (("r.pt", "ends in .safetensors"), ("file/r.safetensors", "a file, not a")):
        count, error = measured(make_reference, ReferenceRequest(data, out=tmp_path / out))
        assert (count, said in str(error)) == (0, True)


@pytest.mark.parametrize(
    ("source", "name"),
    [(".", "data.v1"), ("../data.v1", "data.v1"), ("../zipped.zip", "zipped")],
)
def test_a_reference_has_its_datas_name(finish, data, tmp_path, monkeypatch, source, name):
    folder = data.rename(tmp_path / "data.v1")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)
    monkeypatch.chdir(folder)
    path, _ = finish(make_reference, ReferenceRequest(Path(source), size=(16, 16))).result
    assert (str(path), path.exists()) == (f"{name}.reference.safetensors", True)


def test_what_to_do_about_sizes_and_damage_is_said_for_this_command(finish, data):
    image(data / "wide.png", 1, (30, 16))
    with pytest.raises(RequestError, match="else --size 64"):
        finish(make_reference, ReferenceRequest(data, out=data / "r.safetensors"))
    (data / "0.png").write_bytes(b"no image")
    request = ScoreRequest(data, ScoringOptions(data=data), count=9, size=(16, 16))
    with pytest.raises(DataError, match=r"0\.png: .*in evaluate: -n"):
        finish(scoring.score, request)


def test_a_reference_scores_as_its_data_do(finish, request_for, reference, tmp_path):
    path = reference()
    with_data = finish(evaluate, request_for()).result
    given = request_for(data=None, reference=path)
    given = changed(given, out=tmp_path / "again")
    with_reference = finish(evaluate, given).result
    assert with_reference.rows == with_data.rows
    assert with_reference.settings["reference"] == with_data.settings["reference"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": (8, 8)}, r"the size is \(8, 8\), here \(16, 16\)"),
        ({"channels": 1}, "channels is 1, here 3"),
        ({"background": (255, 255, 255)}, "background"),
    ],
)
def test_a_reference_prepared_otherwise_is_refused(settings, says, finish, request_for, reference):
    request = request_for(data=None, reference=reference(**settings))
    with pytest.raises(RequestError, match=says):
        finish(evaluate, request)


def test_a_reference_without_the_metric_is_refused(
    finish, request_for, reference, fake_inception, monkeypatch
):
    request = request_for(data=None, reference=reference(), metrics=("swd", "fid"))
    with pytest.raises(RequestError, match="holds no reference for fid, only for swd"):
        finish(evaluate, request)
    path = reference("fid.safetensors", metrics=("fid",))
    monkeypatch.setattr(
        measuring, "load_inception", lambda *_: Extractor(lambda x: x, {"network": "another"})
    )
    with pytest.raises(RequestError, match="other settings"):
        finish(evaluate, request_for(data=None, reference=path, metrics=("fid",)))


def test_a_damaged_reference_is_refused(finish, request_for, reference, tmp_path):
    from safetensors.torch import save_file

    path = reference()
    content = path.read_bytes()
    for bad in (b"", b"hello", content[:-100]):
        path.write_bytes(bad)
        with pytest.raises(DataError, match="reference file"):
            finish(evaluate, request_for(data=None, reference=path))
    facts = json.dumps({"kind": "reference", "metrics": {"swd": {}}})
    save_file({"count": torch.tensor(3)}, path, {"ddimctl": facts})
    with pytest.raises(DataError, match="damaged"):
        finish(evaluate, request_for(data=None, reference=path))
    save_file({"latents": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not a reference file"):
        finish(evaluate, request_for(data=None, reference=path))
    with pytest.raises(RequestError, match="no such file"):
        finish(evaluate, request_for(data=None, reference=tmp_path / "none.safetensors"))


def test_a_reference_is_not_overwritten(reference):
    path = reference()
    before = path.read_bytes()
    with pytest.raises(RequestError, match="exists"):
        reference()
    assert reference(force=True).read_bytes() == before


# --- images that exist ------------------------------------------------------------------------


def test_images_scored_against_themselves_are_at_no_distance(finish, data):
    result = finish(
        scoring.score, ScoreRequest(data, ScoringOptions(data=data), size=(16, 16))
    ).result
    assert result.scores == {"swd": 0, "swd_1": 0, "swd_2": 0}
    assert result.samples["pictures"] == 10


def test_both_sides_get_the_samples_size(finish, data, tmp_path):
    (tmp_path / "square").mkdir()
    for seed in range(3):
        image(tmp_path / "square" / f"{seed}.png", seed, (24, 24))
    result = finish(
        scoring.score, ScoreRequest(tmp_path / "square", ScoringOptions(data=data))
    ).result
    assert result.reference["size"] == result.samples["size"] == [24, 24]


def test_exactly_so_many_images_are_scored(finish, data):
    request = ScoreRequest(data, ScoringOptions(data=data), size=(16, 16), count=4)
    assert finish(scoring.score, request).result.samples["pictures"] == 4
    with pytest.raises(DataError, match="holds 10 images, not 11"):
        finish(scoring.score, changed(request, count=11))


def test_a_reference_brings_its_preparation(finish, data, reference):
    path = reference(size=(12, 10), channels=1)
    result = finish(scoring.score, ScoreRequest(data, ScoringOptions(reference=path))).result
    assert result.scores["swd"] == 0
    assert (result.samples["size"], result.samples["channels"]) == ([12, 10], 1)
    with pytest.raises(RequestError, match="prepared differently"):
        finish(scoring.score, ScoreRequest(data, ScoringOptions(reference=path), size=(9, 9)))


@pytest.mark.parametrize("resumable", [True, False])
def test_a_signal_in_the_measuring_is_resumable_only_where_something_is_kept(
    resumable, data, request_for, monkeypatch
):
    monkeypatch.setattr(measuring, "_BATCH", 2)
    job, request = scoring.score, ScoreRequest(data, ScoringOptions(data=data), size=(16, 16))
    if resumable:
        job, request = evaluate, request_for()

    def on_event(event):
        if getattr(event, "phase", "") == "measuring":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Stopped if resumable else KeyboardInterrupt):
        job(request, on_event)
