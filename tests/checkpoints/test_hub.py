"""Hub ids, with the real huggingface_hub against a hub on loopback."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import Hub, Model, serve_hub
from tiny_unets import output, tiny_unet, write_flat

FIRST, SECOND = "1" * 40, "2" * 40
WEIGHTS = "diffusion_pytorch_model.safetensors"

# Prints what came of a hub id as JSON; files are asked for by name, or the checkpoint is loaded.
_SCRIPT = """
import json, sys
from ddimctl.errors import DdimctlError
hub_id, revision, names = json.loads(sys.argv[1])
try:
    if names is None:
        from ddimctl.checkpoints import load_checkpoint
        checkpoint = load_checkpoint(hub_id, revision=revision)
        sys.path.insert(0, sys.argv[2])
        from tiny_unets import output
        found = checkpoint.provenance
        told = {"name": found.name, "output": output(checkpoint).flatten()[:8].tolist()}
    else:
        from ddimctl.checkpoints.hub import hub_source
        found = hub_source(hub_id, revision)
        paths = {name: found.get(name) for name in names}
        told = {"files": {name: path and path.read_text("latin-1") for name, path in paths.items()}}
    told |= {"revision": found.revision, "notes": found.notes}
except DdimctlError as error:
    told = {"error": type(error).__name__, "cause": error.cause, "remedy": error.remedy}
print(json.dumps(told))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        files = {"config.json": b"first config", WEIGHTS: b"weights", "notes.txt": b"notes"}
        later = files | {"config.json": b"second config"}
        hub.models["owner/model"] = Model({"main": FIRST}, {FIRST: files, SECOND: later})
        yield hub


@pytest.fixture
def ask(hub: Hub, tmp_path: Path, clean_env: dict[str, str]) -> Any:
    """ask(hub_id, revision, names, **environment) in a process whose cache is the test's own."""

    def run(
        hub_id: str = "owner/model",
        revision: str | None = None,
        names: tuple[str, ...] | None = ("config.json", WEIGHTS, "ddimctl.json"),
        **environment: str,
    ) -> dict[str, Any]:
        env = clean_env | {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        arguments = json.dumps([hub_id, revision, names])
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, arguments, str(Path(__file__).parent)],
            env=env | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    return run


def test_a_fresh_download_fetches_what_was_asked_and_resolves_the_commit(
    hub: Hub, ask: Any
) -> None:
    found = ask()
    assert found["revision"] == FIRST
    assert found["files"] == {
        "config.json": "first config",
        WEIGHTS: "weights",
        "ddimctl.json": None,
    }
    assert hub.fetched() == ["config.json", WEIGHTS]


def test_a_checkpoint_is_loaded_from_one_set_of_weights(hub: Hub, ask: Any, tmp_path: Path) -> None:
    folder = write_flat(tmp_path / "made", tiny_unet())
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    extra = {"diffusion_pytorch_model.bin": b"unread", "README.md": b"unread"}
    hub.models["google/tiny"] = Model({"main": FIRST}, {FIRST: files | extra})
    found = ask("google/tiny", names=None)
    assert found["name"] == "google/tiny"
    assert found["revision"] == FIRST
    assert found["output"] == pytest.approx(output(tiny_unet()).flatten()[:8].tolist(), abs=1e-5)
    assert hub.fetched() == ["config.json", WEIGHTS]


def test_latent_pipelines_are_refused_before_their_weights_are_fetched(hub: Hub, ask: Any) -> None:
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    files = {"model_index.json": json.dumps(index).encode(), f"unet/{WEIGHTS}": b"huge"}
    hub.models["owner/sd"] = Model({"main": FIRST}, {FIRST: files})
    assert "StableDiffusionPipeline" in ask("owner/sd", names=None)["cause"]
    assert hub.fetched() == ["model_index.json"]


def test_the_second_time_nothing_is_fetched(hub: Hub, ask: Any) -> None:
    first = ask()
    hub.fetched()
    assert ask() == first
    assert hub.fetched() == []


def test_offline_with_a_warm_cache_works_without_a_request(hub: Hub, ask: Any) -> None:
    first = ask()
    hub.log.clear()
    assert ask(HF_HUB_OFFLINE="1") == first
    assert ask(revision=FIRST, HF_HUB_OFFLINE="1") == first
    assert hub.log == []


def test_offline_with_a_cold_cache_names_the_variable(hub: Hub, ask: Any) -> None:
    told = ask(HF_HUB_OFFLINE="1")
    assert told["error"] == "CheckpointError"
    assert "not in the cache" in told["cause"]
    assert "HF_HUB_OFFLINE" in told["remedy"]
    assert hub.log == []


@pytest.mark.parametrize("trouble", ["down", "unreachable"])
def test_a_hub_that_does_not_answer_leaves_the_cache_with_a_note(
    hub: Hub, ask: Any, trouble: str
) -> None:
    first = ask()
    hub.broken = trouble == "down"
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9"} if trouble == "unreachable" else {}
    again = ask(**environment)
    assert again["files"] == first["files"]
    assert again["revision"] == FIRST
    assert "does not answer" in again["notes"][0]


def test_an_unreachable_hub_with_a_cold_cache_names_the_network(ask: Any) -> None:
    told = ask(HF_ENDPOINT="http://127.0.0.1:9")
    assert "does not answer" in told["cause"]
    assert "network" in told["remedy"]


def test_an_unknown_id_gets_both_readings(ask: Any) -> None:
    told = ask("owner/modle")
    assert told["error"] == "CheckpointError"
    assert "'owner/modle' is neither an existing path nor a model" in told["cause"]
    assert "HF_TOKEN" in told["remedy"]


def test_a_missing_revision_is_named(ask: Any) -> None:
    assert "no revision 'v9'" in ask(revision="v9")["cause"]


def test_a_gated_model_asks_for_access(hub: Hub, ask: Any) -> None:
    hub.models["owner/model"].gated = True
    told = ask()
    assert "gated" in told["cause"]
    assert "HF_TOKEN" in told["remedy"]


def test_an_invalid_id_is_told(ask: Any) -> None:
    assert "neither an existing path nor a valid hub id" in ask("owner/..name--x")["cause"]


def test_the_token_of_the_environment_is_sent(hub: Hub, ask: Any) -> None:
    ask(HF_TOKEN="hf_abc")
    assert hub.tokens == {"Bearer hf_abc"}


def test_a_moved_branch_is_followed_and_unchanged_weights_are_not_fetched_again(
    hub: Hub, ask: Any
) -> None:
    ask()
    hub.fetched()
    hub.models["owner/model"].branches["main"] = SECOND
    found = ask()
    assert found["revision"] == SECOND
    assert found["files"]["config.json"] == "second config"
    assert hub.fetched() == ["config.json"]
    assert ask(HF_HUB_OFFLINE="1")["revision"] == SECOND


def test_a_pinned_commit_stays_when_the_branch_moves(hub: Hub, ask: Any) -> None:
    hub.models["owner/model"].branches["main"] = SECOND
    found = ask(revision=FIRST)
    assert found["revision"] == FIRST
    assert found["files"]["config.json"] == "first config"


def test_a_branch_by_name_resolves_to_its_commit(hub: Hub, ask: Any) -> None:
    hub.models["owner/model"].branches["ema"] = SECOND
    assert ask(revision="ema")["revision"] == SECOND
    assert ask(revision="ema", HF_HUB_OFFLINE="1")["revision"] == SECOND


def test_a_cache_that_cannot_be_written_is_a_storage_error(ask: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    told = ask(HF_HOME=str(tmp_path / "file"))
    assert told["error"] == "StorageError"
    assert "HF_HOME" in told["remedy"]
