"""LoRA files of diffusers, PEFT and kohya, added to weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compvis_files import LATENT, SD1, SDXL_UNET, unet_weights
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddimctl.checkpoints.families.ldm_unet import compvis_names
from ddimctl.checkpoints.lora import (
    Lora,
    check_parts,
    fuse,
    fused_sha256,
    parse_lora,
    read_lora,
    read_pairs,
)
from ddimctl.errors import CheckpointError, RequestError

FOLDER = LATENT / "sd1-lora"
DIFFUSERS, KOHYA = FOLDER / "pytorch_lora_weights.safetensors", FOLDER / "kohya.safetensors"
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OURS = f"unet.{LAYER}"


@pytest.fixture(scope="module")
def unet() -> dict[str, Tensor]:
    return load_file(SD1 / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.fixture(scope="module")
def text() -> dict[str, Tensor]:
    return load_file(SD1 / "text_encoder" / "model.safetensors")


def lora(tensors: dict[str, Tensor], weight: float = 1.0, **told: Any) -> Lora:
    texts = {"lora_adapter_metadata": json.dumps(told)} if told else {}
    return Lora("file", weight, "", read_pairs(tensors, "file", texts))


def pair(out: int, into: int, rank: int = 2, *kernel: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(out + into)
    ones = (1, 1) if kernel else ()
    return torch.randn(out, rank, *ones), torch.randn(rank, into, *kernel)


@pytest.mark.parametrize("weight", [1.0, 0.5, -2.0])
def test_both_formats_give_what_the_formula_says(
    weight: float, unet: dict[str, Tensor], text: dict[str, Tensor]
) -> None:
    tensors = load_file(KOHYA)
    files = [read_lora(path, weight) for path in (KOHYA, DIFFUSERS)]
    for part, weights, prefix in (("unet", unet, "lora_unet_"), ("text_encoder", text, "lora_te_")):
        kohya, diffusers = (fuse(file, part, weights) for file in files)
        changed = 0
        for key, before in weights.items():
            name = prefix + key.removesuffix(".weight").replace(".", "_")
            wanted = before
            if f"{name}.alpha" in tensors:
                changed += 1
                up, down = tensors[f"{name}.lora_up.weight"], tensors[f"{name}.lora_down.weight"]
                wanted = before + weight * tensors[f"{name}.alpha"] / 4 * (up @ down)
                assert not torch.equal(wanted, before)
            for found in (kohya, diffusers):
                torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-6)
        assert changed == sum(key.startswith(prefix) for key in tensors) / 3


def test_weights_that_do_not_change_are_the_same_tensors(unet: dict[str, Tensor]) -> None:
    found = fuse(read_lora(KOHYA), "unet", unet)
    assert found["conv_in.weight"] is unet["conv_in.weight"]
    before = load_file(SD1 / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(unet[key], before[key]) for key in unet)


def test_half_weights_are_added_in_float32(unet: dict[str, Tensor]) -> None:
    halves = {key: tensor.half() for key, tensor in unet.items()}
    key = f"{LAYER}.weight"
    found = fuse(read_lora(KOHYA), "unet", halves)[key]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, fuse(read_lora(KOHYA), "unet", unet)[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"{OURS}.lora_A.weight", f"{OURS}.lora_B.weight"),
        (f"{OURS}.lora.down.weight", f"{OURS}.lora.up.weight"),
        (f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"),
        (f"base_model.model.{LAYER}.lora_A.weight", f"base_model.model.{LAYER}.lora_B.weight"),
        (
            OURS.replace(".to_q", ".processor.to_q_lora.down.weight"),
            OURS.replace(".to_q", ".processor.to_q_lora.up.weight"),
        ),
        (
            f"lora_unet_{LAYER.replace('.', '_')}.lora_down.weight",
            f"lora_unet_{LAYER.replace('.', '_')}.lora_up.weight",
        ),
    ],
)
def test_spellings_of_one_layer(down: str, up: str, unet: dict[str, Tensor]) -> None:
    b, a = pair(16, 16)
    found = fuse(lora({down: a, up: b}), "unet", unet)
    changed = {key for key in unet if found[key] is not unet[key]}
    assert changed == {f"{LAYER}.weight"}
    torch.testing.assert_close(found[f"{LAYER}.weight"], unet[f"{LAYER}.weight"] + b @ a)


def test_output_projection_of_old_files(unet: dict[str, Tensor]) -> None:
    b, a = pair(16, 16)
    old = f"unet.{LAYER.removesuffix('to_q')}processor.to_out_lora"
    found = fuse(lora({f"{old}.down.weight": a, f"{old}.up.weight": b}), "unet", unet)
    key = f"{LAYER.removesuffix('to_q')}to_out.0.weight"
    assert {key} == {key for key in unet if found[key] is not unet[key]}


def test_text_encoders_of_old_files(text: dict[str, Tensor]) -> None:
    b, a = pair(32, 32)
    module = "text_model.encoder.layers.1.self_attn.q_proj"
    old = f"text_encoder.{module}.lora_linear_layer"
    tensors = {f"{old}.down.weight": a, f"{old}.up.weight": b}
    found = fuse(lora(tensors), "text_encoder", text)[f"{module}.weight"]
    torch.testing.assert_close(found, text[f"{module}.weight"] + b @ a)
    bare = {key.removeprefix("text_model."): tensor for key, tensor in text.items()}
    same = fuse(lora(tensors), "text_encoder", bare)[f"{module.removeprefix('text_model.')}.weight"]
    assert torch.equal(same, found)


@pytest.mark.parametrize(("told", "scale"), [
    ({}, 1.0),
    ({"unet.r": 2, "unet.lora_alpha": 8}, 4.0),
    ({"unet.lora_alpha": 8, "unet.use_rslora": True}, 8 / 2**0.5),
    ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 1}}, 0.5),
    ({"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_q": 1}}, 4.0),
    ({"text_encoder.lora_alpha": 8}, 1.0),
])  # fmt: skip
def test_alpha_from_pefts_metadata(
    told: dict[str, Any], scale: float, unet: dict[str, Tensor]
) -> None:
    b, a = pair(16, 16)
    file = lora({f"{OURS}.lora_A.weight": a, f"{OURS}.lora_B.weight": b}, **told)
    found = fuse(file, "unet", unet)[f"{LAYER}.weight"]
    torch.testing.assert_close(found, unet[f"{LAYER}.weight"] + scale * (b @ a))


@pytest.mark.parametrize(
    "key", ["conv_in", "down_blocks.0.resnets.0.conv1", "mid_block.attentions.0.proj_in"]
)
def test_convolutions(key: str, unet: dict[str, Tensor]) -> None:
    before = unet[f"{key}.weight"]
    b, a = pair(before.shape[0], before.shape[1], 2, *before.shape[2:])
    name = f"lora_unet_{key.replace('.', '_')}"
    tensors = {f"{name}.lora_up.weight": b, f"{name}.lora_down.weight": a}
    tensors[f"{name}.alpha"] = torch.tensor(1.0)
    found = fuse(lora(tensors), "unet", unet)[f"{key}.weight"]
    # the two convolutions one after the other are the difference of the outputs
    x = torch.randn(1, before.shape[1], 8, 8)
    padding = before.shape[2] // 2
    plain = torch.nn.functional.conv2d
    steps = plain(plain(x, a, padding=padding), b) / 2
    both = plain(x, found, padding=padding) - plain(x, before, padding=padding)
    torch.testing.assert_close(both, steps, rtol=1e-4, atol=1e-4)


def test_convolution_in_three_factors(unet: dict[str, Tensor]) -> None:
    name = "lora_unet_conv_in"
    mid = torch.randn(2, 2, 3, 3)
    b, a = pair(16, 4, 2, 1, 1)
    tensors = {f"{name}.lora_up.weight": b, f"{name}.lora_down.weight": a}
    tensors[f"{name}.lora_mid.weight"] = mid
    found = fuse(lora(tensors), "unet", unet)["conv_in.weight"] - unet["conv_in.weight"]
    x, plain = torch.randn(1, 4, 8, 8), torch.nn.functional.conv2d
    torch.testing.assert_close(
        plain(x, found), plain(plain(plain(x, a), mid), b), rtol=1e-4, atol=1e-4
    )


def test_names_of_compvis_as_kohya_has_them_for_sdxl() -> None:
    weights = unet_weights(SDXL_UNET)
    names = compvis_names(weights)
    keys = [key for key in weights if key.endswith(".weight") and weights[key].ndim == 2]
    tensors = {}
    for key in keys:
        b, a = pair(*weights[key].shape)
        spelled = names.of(key).removesuffix(".weight").replace(".", "_")
        tensors |= {f"lora_unet_{spelled}.lora_up.weight": b}
        tensors |= {f"lora_unet_{spelled}.lora_down.weight": a}
    assert "lora_unet_input_blocks_4_1_proj_in.lora_up.weight" in tensors
    assert "lora_unet_middle_block_1_transformer_blocks_2_attn2_to_v.lora_up.weight" in tensors
    found = fuse(lora(tensors), "unet", weights)
    for key in keys:
        b, a = pair(*weights[key].shape)
        torch.testing.assert_close(found[key], weights[key] + b @ a)


def test_several_are_added_up(unet: dict[str, Tensor]) -> None:
    half, whole = read_lora(KOHYA, 0.5), read_lora(KOHYA, 1.0)
    twice, once = fuse(half, "unet", fuse(half, "unet", unet)), fuse(whole, "unet", unet)
    torch.testing.assert_close(twice, once)


def test_hash_depends_on_files_weights_and_order() -> None:
    a, b = read_lora(KOHYA), read_lora(DIFFUSERS)
    lists = [[], [a], [a._replace(weight=0.5)], [b], [a, b], [b, a]]
    hashes = [fused_sha256("0" * 64, each) for each in lists]
    assert hashes[0] == "0" * 64
    assert len({*hashes}) == len(lists)
    assert a.record() == {"name": "kohya.safetensors", "weight": 1.0, "sha256": a.sha256}


def test_options(tmp_path: Path) -> None:
    assert parse_lora("a/style.safetensors") == (Path("a/style.safetensors"), 1.0)
    assert parse_lora("a/style.safetensors:0.8") == (Path("a/style.safetensors"), 0.8)
    assert parse_lora("style.safetensors:-1") == (Path("style.safetensors"), -1.0)
    assert parse_lora(r"C:\style.safetensors") == (Path(r"C:\style.safetensors"), 1.0)
    odd = tmp_path / "style:2"
    odd.touch()
    assert parse_lora(str(odd)) == (odd, 1.0)
    for number in ("high", "nan", "inf", ""):
        with pytest.raises(RequestError, match="is not a weight"):
            parse_lora(f"style.safetensors:{number}")


GOOD = {f"{OURS}.lora_A.weight": pair(16, 16)[1], f"{OURS}.lora_B.weight": pair(16, 16)[0]}
NAME = "lora_unet_conv_in"
ONE = torch.ones(1)
BAD = {
    "loha": ({f"{NAME}.hada_w1_a": ONE}, "of the kind LoHa"),
    "lokr": ({f"{NAME}.lokr_w1": ONE}, "of the kind LoKr"),
    "dora": ({**GOOD, f"{OURS}.dora_scale": ONE}, "of the kind DoRA"),
    "peft's dora": ({**GOOD, f"{OURS}.lora_magnitude_vector": ONE}, "of the kind DoRA"),
    "oft": ({f"{NAME}.oft_blocks": ONE}, "of the kind OFT"),
    "differences": ({f"{NAME}.diff": ONE}, "full weight differences"),
    "embeddings": ({**GOOD, "bundle_emb.style.string_to_param": ONE}, "textual inversion"),
    "flux": ({"transformer.single_blocks.0.attn.to_q.lora_A.weight": ONE}, "not a LoRA for Stable"),
    "a checkpoint": ({"model.diffusion_model.out.2.weight": ONE}, "not a LoRA for Stable"),
    "a bias": ({**GOOD, f"{OURS}.lora_B.bias": ONE}, "is unknown"),
    "empty": ({}, "holds no weights"),
    "half": ({f"{OURS}.lora_A.weight": torch.ones(2, 16)}, "lacks one of its two"),
    "ranks": (
        {f"{OURS}.lora_A.weight": torch.ones(2, 16), f"{OURS}.lora_B.weight": torch.ones(16, 3)},
        "do not fit together",
    ),
    "no rank": (
        {f"{OURS}.lora_A.weight": torch.ones(0, 16), f"{OURS}.lora_B.weight": torch.ones(16, 0)},
        "do not fit together",
    ),
    "vectors": ({f"{OURS}.lora_A.weight": torch.ones(1), f"{OURS}.lora_B.weight": ONE}, "do not fit together"),
    "integers": ({f"{OURS}.lora_A.weight": torch.ones(2, 16, dtype=torch.int8)}, "strange type"),
    "twice": ({**GOOD, f"{OURS}.lora.down.weight": ONE}, "occurs twice"),
    "alpha": ({**GOOD, f"{OURS}.alpha": torch.tensor(float("nan"))}, "alpha of .* is nan"),
    "alphas": ({**GOOD, f"{OURS}.alpha": torch.ones(3)}, "alpha of .* is nan"),
    "a middle": (
        {**GOOD, f"{OURS}.lora_mid.weight": torch.ones(2, 2, 3, 3)},
        "do not fit together",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_other_files_are_refused(name: str, tmp_path: Path) -> None:
    tensors, said = BAD[name]
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointError, match=said) as caught:
        read_lora(tmp_path / "file.safetensors")
    assert "file.safetensors" in caught.value.cause
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"unet.use_dora": True}, "of the kind DoRA"),
        ({"unet.lora_alpha": "high"}, "alpha of .* is 'high'"),
    ],
)
def test_wrong_metadata_is_refused(told: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        lora(GOOD, **told)
    with pytest.raises(CheckpointError, match="lora_adapter_metadata"):
        read_pairs(GOOD, "file", {"lora_adapter_metadata": "[" * 100_000})


def test_a_lora_of_another_network_is_refused(unet: dict[str, Tensor]) -> None:
    b, a = pair(16, 16)
    other = OURS.replace("down_blocks.0", "down_blocks.1")
    strange = lora({**GOOD, f"{other}.lora_A.weight": a, f"{other}.lora_B.weight": b})
    with pytest.raises(
        CheckpointError, match=r"1 of its 2 layers are not in the unet \(down_blocks_1"
    ):
        fuse(strange, "unet", unet)
    b, a = pair(32, 16)
    wide = lora({f"{OURS}.lora_A.weight": a, f"{OURS}.lora_B.weight": b})
    with pytest.raises(CheckpointError, match=r"is \(16, 16\), and the LoRA's \(32, 16\)"):
        fuse(wide, "unet", unet)


def test_a_huge_product_is_refused_before_it_is_made(unet: dict[str, Tensor]) -> None:
    side = 2**20
    huge = {f"{OURS}.lora_A.weight": torch.ones(1, 1).expand(1, side)}
    huge[f"{OURS}.lora_B.weight"] = torch.ones(1, 1).expand(side, 1)
    with pytest.raises(CheckpointError, match="and the LoRA's"):
        fuse(lora(huge), "unet", unet)


def test_parts_that_the_checkpoint_lacks_are_refused() -> None:
    file = read_lora(KOHYA)
    check_parts(file, ("unet", "text_encoder"))
    with pytest.raises(CheckpointError, match="changes the text_encoder"):
        check_parts(file, ("unet",))


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_lora(tmp_path / "missing.safetensors")
    (tmp_path / "page.safetensors").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="a web page"):
        read_lora(tmp_path / "page.safetensors")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_lora(tmp_path / "list.pt")


def test_files_of_torch_save_are_read(tmp_path: Path, unet: dict[str, Tensor]) -> None:
    torch.save({"state_dict": load_file(KOHYA)}, tmp_path / "style.pt")
    found = fuse(read_lora(tmp_path / "style.pt"), "unet", unet)
    assert found.keys() == unet.keys()
    wanted = fuse(read_lora(KOHYA), "unet", unet)
    assert all(torch.equal(found[key], wanted[key]) for key in found)
