"""Options from a file and from the environment: who wins, and what is refused."""

import json
import os

import pytest

from ddimctl.cli.main import main


@pytest.fixture
def plan(capsys, monkeypatch, tmp_path, tiny_checkpoint):
    """plan(TOML, *arguments): the settings that `sample --dry-run` would use, or (code, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DDIMCTL_CKPT", str(tiny_checkpoint))

    def run(text, *arguments, command="sample"):
        (tmp_path / "own.toml").write_text(text)
        named = [] if "DDIMCTL_CONFIG" in os.environ else ["--config", "own.toml"]
        code = main([command, *named, "--dry-run", "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        return (code, err) if code else json.loads(out)

    return run


def test_flag_over_environment_over_file_over_default(plan, monkeypatch):
    assert plan("")["settings"]["steps"] == 20
    assert plan("[sample]\nsteps = 7")["settings"]["steps"] == 7
    monkeypatch.setenv("DDIMCTL_SAMPLE_STEPS", "8")
    assert plan("[sample]\nsteps = 7")["settings"]["steps"] == 8
    assert plan("[sample]\nsteps = 7", "--steps", 9)["settings"]["steps"] == 9


def test_a_commands_table_comes_before_what_is_common(plan):
    text = "steps = 5\neta = 0.5\nframes = 3\n[sample]\nsteps = 6\n[train]\nsteps = 100"
    settings = plan(text)["settings"]
    assert (settings["steps"], settings["eta"]) == (6, 0.5)
    found = plan(text, "--seeds", "1,2", command="interpolate")
    assert (found["settings"]["steps"], found["frames"]) == (5, 3)


def test_lists_and_names_are_as_flags_take_them(plan):
    found = plan("[sample]\nseeds = [4, 9]\ntau = [0, 10, 999]\nbatch_size = 1\nsize = 8")
    assert found["seeds"] == [4, 9]
    assert found["settings"]["timesteps"] == [0, 10, 999]
    assert (found["settings"]["batch_size"], found["settings"]["size"]) == (1, [8, 8])
    assert plan("[sample]\nbatch-size = 1\nnum = 3")["seeds"] == [0, 1, 2]
    flags = ["num_heads=4", "num_head_channels=8"]
    code, err = plan(f"[sample]\nmodel-flag = {flags}")
    assert code == 2
    assert "--model-flag" in err  # a folder says it itself


def test_the_checkpoint_of_a_file_is_that_of_the_environment(
    capsys, monkeypatch, tmp_path, tiny_checkpoint, tiny_class_checkpoint
):
    file = tmp_path / "own.toml"
    file.write_text(f'ckpt = "{tiny_class_checkpoint}"')

    def count(*arguments):
        assert main(["info", "--json", *map(str, arguments)]) == 0
        return json.loads(capsys.readouterr().out)["classes"]

    monkeypatch.setenv("DDIMCTL_CKPT", "")
    assert count("--config", file)["count"] == 5
    assert count("--config", file, tiny_checkpoint) is None
    monkeypatch.setenv("DDIMCTL_CKPT", str(tiny_checkpoint))
    assert count("--config", file) is None


def test_the_file_may_be_named_for_all_commands(plan, monkeypatch, tmp_path, capsys):
    (tmp_path / "all.toml").write_text("[sample]\nsteps = 3")
    assert main(["--config", "all.toml", "sample", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["steps"] == 3
    monkeypatch.setenv("DDIMCTL_CONFIG", "all.toml")
    assert plan("")["settings"]["steps"] == 3


def test_required_options_may_come_from_the_file(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.toml").write_text('[train]\nout = "run"\nholdout = 0.5\nchannels = 3')
    assert main(["train", "--config", "own.toml", "no-such-folder"]) == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_what_is_wrong_is_named(plan):
    for text, said in (
        (
            "[sample]\nstepz = 3",
            "own.toml: [sample]: unknown option 'stepz'. Did you mean 'steps'?",
        ),
        ("[train]\nsave = 3", "own.toml: [train]: unknown option 'save'."),
        ("stepz = 3", "own.toml: unknown option 'stepz'. Did you mean 'steps'?"),
        ("[smaple]\nsteps = 3", "own.toml: unknown table 'smaple'. Did you mean 'sample'?"),
        ("config = 'x'", "own.toml: unknown option 'config'."),
        ("[sample]\nhelp = true", "own.toml: [sample]: unknown option 'help'."),
        (
            "[sample]\nsteps = 'many'",
            "own.toml: [sample] steps must be a whole number, not 'many'.",
        ),
        ("[sample]\nsteps = 0", "own.toml: [sample] steps must be at least 1, not 0."),
        ("[sample]\nsteps = true", "own.toml: [sample] steps cannot be true."),
        ("[sample]\nsteps = 2.5", "own.toml: [sample] steps must be a whole number, not '2.5'."),
        ("[sample]\nsteps = [3]", "own.toml: [sample] steps cannot be a list."),
        ("[sample]\nsteps = {a = 3}", "own.toml: [sample] steps cannot be "),
        ("[sample]\nguidance = nan", "own.toml: [sample] guidance must be a finite number."),
        ("[sample]\nforce = 1", "own.toml: [sample] force must be true or false, not 1."),
        (
            "clip = 'statik'",
            "own.toml: clip must be one of none, static, dynamic, not 'statik'. "
            "Did you mean 'static'?",
        ),
        ("[sample", "own.toml is not TOML: "),
        ("steps = 1\nsteps = 2", "own.toml is not TOML: "),
    ):
        code, err = plan(text)
        assert code == 2
        assert f"error: {said}" in err
        assert len(err.splitlines()) == 2


def test_a_wrong_variable_is_named(plan, monkeypatch):
    monkeypatch.setenv("DDIMCTL_SAMPLE_STEPS", "many")
    code, err = plan("")
    assert code == 2
    assert err.startswith("error: DDIMCTL_SAMPLE_STEPS must be a whole number, not 'many'.")


def test_a_contradiction_names_the_side_that_nobody_typed(plan, monkeypatch):
    code, err = plan("seeds = '1,2'\n[sample]\neta = 1", "-n", 3)
    assert code == 2
    assert (
        err.splitlines()[1]
        == "  try: Leave one of the two out. --seeds comes from own.toml: seeds."
    )
    code, err = plan("[sample]\neta = 1", "--solver", "ipndm")
    assert "--eta comes from own.toml: [sample] eta." in err
    assert "--solver comes from" not in err
    assert "comes from" not in plan("[sample]\neta = 1", "--solver", "ipndm", "--eta", 0.5)[1]
    monkeypatch.setenv("DDIMCTL_SAMPLE_SEEDS", "4")
    assert "--seeds comes from DDIMCTL_SAMPLE_SEEDS." in plan("", "--seed", 1)[1]


def test_a_path_may_begin_at_home(plan, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert plan('[sample]\nout = "~/runs/a"')["out"] == str(tmp_path / "home/runs/a")
    monkeypatch.setenv("DDIMCTL_SAMPLE_OUT", "~/b")
    assert plan('[sample]\nout = "~/runs/a"')["out"] == str(tmp_path / "home/b")
    assert plan("", "--out", "~/c")["out"] == "~/c"  # a shell has seen it


def test_a_file_that_cannot_be_read(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("missing.toml", ".", "bytes.toml"):
        assert main(["sample", "--config", name]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("line", ['ckpt = "a\\u0000b"', '[info]\nrevision = "\\u0000"'])
def test_a_zero_character_is_refused_by_name(run_here, tmp_path, line):
    (tmp_path / "c.toml").write_text(line)
    code, _, err = run_here("info", "--config", "c.toml")
    assert code == 2
    assert "holds a zero character" in err


@pytest.mark.parametrize(
    "spec",
    [
        ["~nosuchuser/model"],
        ["x" * 5000],
        ["x/" * 2500],
        ["a..b/c--d"],
        ["a" * 90 + "/" + "b" * 90],
        ["google/ddpm", "--revision", "a b"],
        ["google/ddpm", "--revision", "\udcff"],
        ["google/ddpm", "--revision", "../x"],
        ["google/ddpm", "--revision", "x" * 5000],
    ],
)
def test_names_that_no_disk_and_no_hub_can_have_are_refused(run_here, spec):
    code, out, err = run_here("info", *spec)
    assert (code in (1, 2), out) == (True, "")
    assert len(err.splitlines()) <= 2


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    from ddimctl.files.dataset.datasets import user_cache

    def none():
        raise RuntimeError("Could not determine home directory.")

    for name in ("DDIMCTL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", none)
    assert user_cache().name.startswith("ddimctl-")
