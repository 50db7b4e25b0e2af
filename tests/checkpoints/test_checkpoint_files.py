"""What is saved loads again, here and in plain diffusers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import DDIMPipeline, UNet2DModel
from tiny_unets import output, tiny_unet

from ddimctl.checkpoints import Checkpoint, Provenance, checkpoint_files, load_checkpoint
from ddimctl.diffusion.schedules import make_schedule


def _checkpoint(unet: UNet2DModel) -> Checkpoint:
    classes = unet.config.num_class_embeds
    return Checkpoint(
        unet=unet,
        schedule=make_schedule("cosine", 500),
        prediction="v",
        learned_variance=False,
        sample_shape=(3, 16, 16),
        size_divisor=2,
        provenance=Provenance("run", "diffusers", "ema"),
        num_classes=classes and classes - 1,
        null_class=classes and classes - 1,
        class_names=("été", "wall") if classes else (),
        background=(0, 128, 255),
    )


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("classes", [None, 3])
def test_a_saved_checkpoint_loads_as_it_was(tmp_path: Path, classes: int | None) -> None:
    saved = _checkpoint(tiny_unet(num_class_embeds=classes).to(memory_format=torch.channels_last))
    _write(tmp_path, checkpoint_files(saved, training={"steps": 10}))
    loaded = load_checkpoint(tmp_path)
    labels = None if classes is None else torch.tensor([0, 2])
    torch.testing.assert_close(output(loaded, labels), output(saved, labels))
    for key, weight in saved.unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[key], weight)
    assert torch.equal(loaded.schedule.alpha_bar, saved.schedule.alpha_bar)
    for name in ("prediction", "sample_shape", "num_classes", "null_class", "class_names"):
        assert getattr(loaded, name) == getattr(saved, name)
    assert loaded.background == (0, 128, 255)
    assert loaded.provenance.weights == "ema"
    assert loaded.provenance.notes == ()  # nothing was assumed, nothing of the user's ignored


def test_plain_diffusers_loads_a_saved_checkpoint(tmp_path: Path) -> None:
    saved = _checkpoint(tiny_unet())
    _write(tmp_path, checkpoint_files(saved))
    pipeline = DDIMPipeline.from_pretrained(tmp_path)
    assert torch.equal(output(pipeline.unet), output(saved.unet))
    torch.testing.assert_close(
        pipeline.scheduler.alphas_cumprod.double(), saved.schedule.alpha_bar, rtol=3e-4, atol=1e-6
    )
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.scheduler.config.clip_sample is False


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path: Path) -> None:
    saved = _checkpoint(tiny_unet())
    whole, half = checkpoint_files(saved), checkpoint_files(saved, dtype=torch.float16)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert len(half[weights]) < 0.6 * len(whole[weights])
    loaded = load_checkpoint(_write(tmp_path, half))
    assert {weight.dtype for weight in loaded.unet.parameters()} == {torch.float32}
    torch.testing.assert_close(output(loaded), output(saved), rtol=0.05, atol=0.01)


def test_the_same_checkpoint_gives_the_same_bytes() -> None:
    assert checkpoint_files(_checkpoint(tiny_unet())) == checkpoint_files(_checkpoint(tiny_unet()))


def test_learned_variance_survives(tmp_path: Path) -> None:
    saved = replace(_checkpoint(tiny_unet(out_channels=6)), learned_variance=True)
    assert load_checkpoint(_write(tmp_path, checkpoint_files(saved))).learned_variance
