"""Commands are made from their requests: each option once, and nothing lost between the two."""

import inspect
import re
from collections import Counter
from dataclasses import is_dataclass
from pathlib import Path

import pytest
import typer

from ddimctl.cli.command_reference import reference
from ddimctl.cli.main import COMMANDS, app, main
from ddimctl.cli.options.groups import entries
from ddimctl.errors import RequestError
from ddimctl.jobs.checkpoint_requests import ConvertRequest, InfoRequest
from ddimctl.jobs.evaluate.request import (
    CellImageOptions,
    EvaluateRequest,
    ReferenceRequest,
    ScoreRequest,
    ScoringOptions,
    TableOptions,
)
from ddimctl.jobs.interpolate.request import InterpolateRequest
from ddimctl.jobs.invert.request import InvertRequest, ReconstructRequest
from ddimctl.jobs.option import make_request, with_fields
from ddimctl.jobs.replay.request import ReplayRequest
from ddimctl.jobs.requests import DeviceOptions
from ddimctl.jobs.sample.request import SampleRequest
from ddimctl.jobs.train.request import TrainRequest

# A line with nothing but what its command needs, the job that it begins, and its request.
DEFAULTS = {
    "sample": ("sample.job.sample", SampleRequest()),
    "invert a.png": ("invert.job.invert", InvertRequest((Path("a.png"),))),
    "interpolate a.pt b.pt": (
        "interpolate.job.interpolate",
        InterpolateRequest((Path("a.pt"), Path("b.pt"))),
    ),
    "reconstruct d": ("invert.reconstruct.reconstruct", ReconstructRequest(Path("d"))),
    "evaluate --data d": (
        "evaluate.job.evaluate",
        EvaluateRequest(scoring=ScoringOptions(data=Path("d"))),
    ),
    "reference d": ("evaluate.reference.make_reference", ReferenceRequest(Path("d"))),
    "replay r": ("replay.job.replay", ReplayRequest(Path("r"))),
    "train d --out r": ("train.job.train", TrainRequest(Path("d"), Path("r"))),
    "info": ("info.info", InfoRequest()),
    "convert a b": ("convert.convert", ConvertRequest("a", Path("b"))),
}
JOBS = {line.split()[0]: job for line, (job, _) in DEFAULTS.items()}


@pytest.fixture
def request_of(monkeypatch, tmp_path):
    """request_of(line): what the job of a command line receives; the job itself is not begun."""
    monkeypatch.chdir(tmp_path)

    def run(line, job=None):
        received = []

        def stop(request, report):
            received.append(request)
            raise RequestError("taken")

        monkeypatch.setattr(f"ddimctl.jobs.{job or JOBS[line.split()[0]]}", stop)
        assert main(line.split()) == 2
        (request,) = received
        return request

    return run


def click_parameters(name):
    return typer.main.get_command(app).commands[name].params


def request_class(command):
    kinds = [p.annotation for p in inspect.signature(command).parameters.values()]
    (kind,) = (kind for kind in kinds if is_dataclass(kind))
    return kind


def test_every_option_of_a_request_is_once_in_its_command():
    for command in COMMANDS:
        parameters = click_parameters(command.__name__)
        spelled = [(p.name, tuple(p.opts)) for p in parameters]
        wanted = [
            (entry.name, entry.option.flags or (entry.name,))
            for entry in entries(request_class(command))
        ]
        assert len(wanted) >= 7, command
        assert Counter(spelled) >= Counter(wanted), command
        own = {name for name, _ in Counter(spelled) - Counter(wanted)}
        assert own <= {"samples", "json", "config", "debug"}, command
        flags = Counter(flag for parameter in parameters for flag in parameter.opts)
        assert max(flags.values()) == 1, command


def test_without_flags_a_request_has_its_defaults(request_of):
    assert set(JOBS) == {command.__name__ for command in COMMANDS}
    for line, (_, request) in DEFAULTS.items():
        assert request_of(line) == request, line


def test_what_is_given_is_in_the_request(request_of):
    line = (
        "sample --class a,b --tau 0,5 --size 8x4 -n 3 --save images,grid --eta 0.5 --force"
        " --model-flag num_heads=4 --model-flag image_size=8 --out o --device cpu --clip static"
    )
    assert request_of(line) == make_request(
        SampleRequest,
        classes=("a", "b"),
        timesteps=(0, 5),
        size=(8, 4),
        num=3,
        save=("grid", "images"),
        eta=0.5,
        force=True,
        model_flags=(("num_heads", "4"), ("image_size", "8")),
        out=Path("o"),
        device="cpu",
        clip="static",
    )
    request = request_of("train d --out r --channels 1 --holdout 2% --time-limit 2m --lr 0.1")
    assert (request.channels, request.holdout, request.time_limit) == (1, 0.02, 120)
    assert request.lr == 0.1


def test_variables_are_named_by_command_and_flag(request_of, monkeypatch):
    values = {
        "DDIMCTL_SAMPLE_CLASS": "a,b",
        "DDIMCTL_SAMPLE_TAU": "trailing",
        "DDIMCTL_SAMPLE_MODEL_FLAG": "num_heads=4 image_size=8",
        "DDIMCTL_SAMPLE_NO_METADATA": "true",
        "DDIMCTL_SAMPLE_FORCE": "",
        "DDIMCTL_EVALUATE_NUM": "7",
        "DDIMCTL_INFO_CKPT": "owner/name",
        "DDIMCTL_REPLAY_OUT": "~/again",
        "HOME": "/home/somebody",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    request = request_of("sample")
    assert (request.images.classes, request.sampler.timesteps) == (("a", "b"), "trailing")
    flags = (("num_heads", "4"), ("image_size", "8"))
    assert request.checkpoint.model_flags == flags
    assert (request.output.no_metadata, request.output.force) == (True, False)
    assert request_of("evaluate --data d").images.num == 7
    assert request_of("info").ckpt == "owner/name"
    assert request_of("info other").ckpt == "other"
    assert request_of("replay r").out == Path("/home/somebody/again")


def test_help_does_not_list_the_variables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for command in COMMANDS:
        assert main([command.__name__, "--help"]) == 0
        assert set(re.findall(r"DDIMCTL_\w+", capsys.readouterr().out)) <= {
            "DDIMCTL_CKPT",
            "DDIMCTL_CONFIG",
        }


def test_the_main_options_of_sample_are_on_its_first_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["sample", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    usage = next(number for number, line in enumerate(lines) if "Usage:" in line)
    first = "\n".join(lines[usage + 1 : usage + 25])
    for flag in ("--ckpt", "--steps", "--class", "--guidance", "--out"):
        assert f"│ {flag} " in first


def test_existing_samples_make_a_request_to_score_them(request_of, capsys):
    line = "evaluate --samples s --data d -n 9 --size 8x4 --metric fid --device cuda --batch-size 4"
    assert request_of(line, "evaluate.score.score") == ScoreRequest(
        Path("s"),
        ScoringOptions(data=Path("d"), metrics=("fid",)),
        count=9,
        size=(8, 4),
        device="cuda",
    )
    capsys.readouterr()
    for option in ("--steps 5", "--seed 1", "--class a", "--preset paper-church", "--resume"):
        assert main(["evaluate", "--samples", "s", "--data", "d", *option.split()]) == 2
        assert f", but {option.split()[0]} is for sampling." in capsys.readouterr().err


def test_wrong_values_are_told_in_our_words(capsys):
    cases = {
        "sample --eta 2": "--eta must be between 0 and 1, not 2.0.",
        "sample --eta x": "--eta must be a number, not 'x'.",
        "sample --steps 0": "--steps must be at least 1, not 0.",
        "sample --steps 2.5": "--steps must be a whole number, not '2.5'.",
        "sample -n 0": "--num must be between 1 and 1000000, not 0.",
        f"sample --seed {'9' * 5000}": "--seed must be a smaller number, not '9999",
        "sample --guidance nan": "--guidance must be a finite number.",
        "invert a.png --tolerance 0": "--tolerance must be above 0.",
        "train": "DATA is missing.",
        "train d": "--out is missing.",
    }
    for line, cause in cases.items():
        assert main(line.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"error: {cause}"), said
        assert said.endswith(f"\n  try: ddimctl {line.split()[0]} --help\n")
        assert "Input should" not in said
        assert len(said) < 300


def test_a_wrong_variable_is_named_and_not_its_flag(capsys, monkeypatch):
    monkeypatch.setenv("DDIMCTL_SAMPLE_DRY_RUN", "maybe")
    assert main(["sample"]) == 2
    cause = "error: DDIMCTL_SAMPLE_DRY_RUN must be true or false, not 'maybe'.\n"
    assert capsys.readouterr().err == f"{cause}  try: Correct the value there.\n"


def test_a_group_may_have_the_name_of_its_field():
    by_field = make_request(EvaluateRequest, device="cpu", repeats=2)
    assert by_field.device == DeviceOptions(device="cpu")
    assert by_field.table == TableOptions(repeats=2)
    images = CellImageOptions(num=5)
    whole = make_request(EvaluateRequest, device=DeviceOptions(compile=True), images=images)
    assert (whole.device.compile, whole.count) == (True, 5)
    assert with_fields(by_field, device="cuda", repeats=3) == make_request(
        EvaluateRequest, device="cuda", repeats=3
    )
    for make in (make_request, with_fields):
        with pytest.raises(TypeError, match="no field 'devices'"):
            make(EvaluateRequest if make is make_request else by_field, devices="cpu")


def test_seeds_of_a_table_end_where_seeds_end():
    for settings in ({"num": 5, "repeats": 2}, {"preset": "paper-church"}, {}):
        request = make_request(EvaluateRequest, **settings)
        last = 2**63 - request.count * request.table.repeats
        make_request(EvaluateRequest, seed=last, **settings)
        with pytest.raises(RequestError, match="seeds end at"):
            make_request(EvaluateRequest, seed=last + 1, **settings)


def test_the_reference_shows_what_a_parsed_option_is_by_default():
    assert "| `--save` LIST | grid,images,latents |" in reference()
    assert "| `--steps` LIST | 10,20,50,100 |" in reference()
