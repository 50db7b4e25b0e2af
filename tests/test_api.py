"""The public Python API: its page and its notebook run, its arguments are checked, in its words."""

import ast
import inspect
import json
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import ddimctl
from ddimctl.errors import python_words

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/python-api.md").read_text("utf-8")
FUNCTIONS = [
    name
    for name in ddimctl.__all__
    if inspect.isfunction(getattr(ddimctl, name)) and name != "__version__"
]


@pytest.fixture(scope="module")
def ckpt(tiny_class_checkpoint):
    return ddimctl.load_checkpoint(tiny_class_checkpoint)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint):
    return ddimctl.load_checkpoint(tiny_checkpoint)


def noise_of(ckpt, count=2):
    return ddimctl.seeded_noise(range(count), ckpt.sample_shape)


TAU = (0, 500, 999)


def test_the_page_has_an_example_of_every_function_and_they_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    code = "\n".join(examples)
    names = {}
    exec(compile(code, "python-api.md", "exec"), names)
    called = {
        node.func.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert set(FUNCTIONS) <= called
    assert {path.name for path in tmp_path.iterdir()} == {"grid.png", "latents.pt"}
    said = capsys.readouterr().out
    assert f"    {said.splitlines()[0]}\n" in PAGE  # repr(ckpt)
    for line in re.findall(r"print\([a-z.]+\)  # (.+)", PAGE):
        assert line + "\n" in said, line
    assert (names["again"] - names["x"]).abs().max() < 1 / 255
    for name in ddimctl.__all__:
        assert name in PAGE or name in (
            "Inversion",
            "LatentFile",
            "Schedule",
            "Step",
            "__version__",
        )


def test_the_notebook_runs():
    notebook = json.loads((ROOT / "examples/python_api.ipynb").read_text("utf-8"))
    shown, names = [], {}
    names["display"] = shown.append
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert len(shown) == 5
    assert all(isinstance(image, Image.Image) for image in shown)
    assert (names["again"] - names["x_0"][12][:2]).abs().max() < 1 / 255


def test_a_checkpoint_is_one_line_and_moves(ckpt, plain):
    for each in (ckpt, plain):
        assert re.fullmatch(r"Checkpoint\('.+', 3x16x16, \w+, T=1000, .*cpu\)", repr(each))
    assert "5 classes" in repr(ckpt)
    assert "classes" not in repr(plain)
    assert repr(ckpt.schedule).startswith("Schedule(linear, T=1000, alpha_bar 0.9999 ... ")
    assert ckpt.to("cpu") is ckpt
    assert ckpt.device == torch.device("cpu")
    with pytest.raises(ddimctl.RequestError, match=r"^unknown device 'tpu'\. Choose auto, cpu"):
        ckpt.to("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(ddimctl.DeviceError, match=r"^device cuda: .* Use device cpu\.$"):
            ckpt.to("cuda")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_checkpoint_samples_alike_on_cuda(ckpt):
    x_T = noise_of(ckpt)
    here = ddimctl.sample(ckpt, x_T, timesteps=TAU, labels=[0, 1])
    try:
        with pytest.raises(ddimctl.RequestError, match="x_T is on cpu, the checkpoint on cuda:0"):
            ddimctl.sample(ckpt.to("cuda"), x_T, timesteps=TAU, labels=[0, 1])
        there = ddimctl.sample(ckpt, x_T.to(ckpt.device), timesteps=TAU, labels=[0, 1])
    finally:
        ckpt.to("cpu")
    torch.testing.assert_close(there.cpu(), here, atol=1e-3, rtol=1e-3)


def test_seeds_are_the_noise_of_each_step(plain):
    x_T = noise_of(plain)
    seeded = ddimctl.sample(plain, x_T, timesteps=TAU, eta=1.0, seeds=range(2))
    by_hand = ddimctl.sample(
        plain,
        x_T,
        timesteps=TAU,
        eta=1.0,
        noise=lambda t, x: ddimctl.seeded_noise(range(2), x.shape[1:], t),
    )
    assert torch.equal(seeded, by_hand)
    second = ddimctl.sample(plain, x_T[1:], timesteps=TAU, eta=1.0, seeds=[1])
    torch.testing.assert_close(second, seeded[1:], atol=1e-3, rtol=1e-3)
    with pytest.raises(ddimctl.RequestError, match="Pass seeds=, one for each image, or noise="):
        ddimctl.sample(plain, x_T, timesteps=TAU, eta=1.0)


def test_a_trajectory_ends_at_the_sample_and_leaves_no_mode_behind(plain):
    x_T, told = noise_of(plain), []
    x_0 = ddimctl.sample(
        plain, x_T, timesteps=TAU, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    steps = []
    for step in ddimctl.trajectory(plain, x_T, timesteps=TAU):
        assert torch.is_grad_enabled()
        steps.append((step.t, step.t_next))
    assert steps == [(999, 500), (500, 0), (0, -1)]
    assert torch.equal(step.x, x_0)
    x_0.clamp_(-1, 1).requires_grad_()  # an ordinary tensor
    told.clear()
    ddimctl.invert(
        plain,
        x_0.detach(),
        timesteps=TAU,
        method="naive",
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(2, 6), (4, 6), (6, 6)]


def test_what_sampling_cannot_take(ckpt, plain):
    x, labels = noise_of(plain), [0, 1]
    for given, message in (
        ({"x_T": x[0]}, r"^x_T must be \(N, C, H, W\), not \(3, 16, 16\)\. Pass x_T\[None\]\.$"),
        ({"x_T": x.half()}, r"^x_T must be float32, not torch.float16\. Pass x_T\.float"),
        ({"x_T": (x * 9).byte()}, "^x_T must be float32, not torch.uint8"),
        ({"x_T": x.numpy()}, "^x_T must be a tensor"),
        ({"x_T": x[:0]}, "^x_T is empty"),
        ({"x_T": x[:, :1]}, r"^x_T is \(2, 1, 16, 16\); this checkpoint takes \(N, 3, H, W\)"),
        ({"x_T": x[..., :15]}, "sides that are multiples of"),
        ({"x_T": x.to("meta")}, "^x_T is on meta, the checkpoint on cpu"),
        ({"timesteps": ()}, "^timesteps is an empty list. Pass timesteps such as timesteps 0,250"),
        (
            {"timesteps": (0, 1000)},
            "^each of timesteps must be a whole number from 0 to 999, not 1000",
        ),
        ({"timesteps": (0, 2.5)}, "whole number from 0 to 999, not 2.5"),
        ({"timesteps": (5, 5)}, "^timesteps holds 5 twice"),
        ({"timesteps": "linspace"}, "^timesteps must be a list of whole numbers, not 'linspace'"),
        ({"timesteps": 20}, "^timesteps must be a list of whole numbers, not 20"),
        ({"eta": 1.5}, r"^eta must be between 0 and 1, not 1\.5"),
        ({"eta": math.nan}, "^eta must be a finite number, not nan"),
        ({"eta": "0"}, "^eta must be a finite number, not '0'"),
        ({"eta": True}, "^eta must be a finite number, not True"),
        ({"eta": 10**400}, "^eta must be a finite number"),
        ({"variance": "small"}, "^unknown variance 'small'"),
        ({"variance": "large"}, "^variance large requires eta = 1, .* Leave eta out"),
        ({"solver": "heun"}, "^unknown solver 'heun'"),
        ({"solver": "ipndm", "eta": 0.5}, "^solver ipndm .* Use solver ddim"),
        ({"clip": "hard"}, "^unknown clipping 'hard'"),
        ({"guidance": 2.0}, "^guidance needs a checkpoint trained with a null class"),
        ({"guidance": None}, "^guidance must be a finite number, not None"),
        ({"labels": labels}, "^this checkpoint knows no classes. Leave labels out."),
        ({"noise": 3}, "^noise must be a function, not 3"),
        ({"progress": 3}, "^progress must be a function, not 3"),
        ({"seeds": [0]}, "^seeds are 1, the images 2"),
        ({"seeds": [0, -1]}, "^each of seeds must be a whole number from 0, not -1"),
        ({"seeds": labels, "noise": lambda t, x: x}, "^seeds and noise both say"),
        ({"ckpt": "bundled"}, r"^ckpt must be a checkpoint, not 'bundled'\. Use ddimctl\.load_che"),
    ):
        with pytest.raises((ddimctl.RequestError, ddimctl.DataError), match=message):
            ddimctl.sample(**{"ckpt": plain, "x_T": x, "timesteps": TAU} | given)
    for given, message in (
        (None, "^this checkpoint needs (class )?labels"),
        ([0], "^labels are 1, the images 2"),
        ([0, 99], "^this checkpoint has no class 99. It has 0 to 4"),
        (["floor", "wall"], "^each of labels must be a whole number from 0, not 'floor'"),
        (
            torch.tensor([0.0, 1.0]),
            r"^labels must be whole numbers \(N,\), not \(2,\) torch.float32",
        ),
        (torch.tensor([[0, 1]]), r"^labels must be whole numbers \(N,\), not \(1, 2\)"),
    ):
        if given is None and ckpt.null_class is not None:
            continue
        with pytest.raises(ddimctl.RequestError, match=message):
            ddimctl.sample(ckpt, x, timesteps=TAU, labels=given)


def test_timesteps_in_any_order_and_labels_of_any_kind_are_the_same(ckpt):
    x = noise_of(ckpt)
    samples = [
        ddimctl.sample(ckpt, x, timesteps=timesteps, labels=labels)
        for timesteps, labels in (
            (TAU, [0, 4]),
            (torch.tensor(TAU[::-1]), torch.tensor([0, 4], dtype=torch.int32)),
            (list(TAU), (0, 4)),
        )
    ]
    assert all(torch.equal(samples[0], each) for each in samples)


def test_what_the_others_cannot_take(plain, tmp_path):
    x = noise_of(plain)
    image = Image.new("RGB", (20, 10))
    for call, message in (
        (lambda: ddimctl.timesteps("lin", 3), "^unknown kind of timesteps 'lin'"),
        (
            lambda: ddimctl.timesteps("linspace", 2.0),
            "^steps must be a whole number from 1, not 2.0",
        ),
        (lambda: ddimctl.timesteps("linspace", 0), "^steps must be a whole number from 1, not 0"),
        (lambda: ddimctl.timesteps("linspace", 2000), "^steps 2000 is more than the 1000 distinct"),
        (lambda: ddimctl.timesteps("linspace", 2, 0), "^num_train_timesteps must be"),
        (lambda: ddimctl.make_schedule("cosin"), "^unknown schedule 'cosin'"),
        (lambda: ddimctl.make_schedule("linear", 2.5), "^num_train_timesteps must be a whole"),
        (lambda: ddimctl.make_schedule("linear", beta_end=2.0), r"numbers in \(0, 1\]"),
        (
            lambda: ddimctl.make_schedule("linear", beta_end="x"),
            "^beta_end must be a finite number",
        ),
        (lambda: ddimctl.load_checkpoint(7), "^spec must be a path, a hub id or None, not 7"),
        (lambda: ddimctl.load_checkpoint(size=32), r"^size must be \(height, width\), not 32"),
        (lambda: ddimctl.load_checkpoint(size=(0, 1)), "^height must be a whole number from 1"),
        (lambda: ddimctl.load_checkpoint(weights="best"), "^unknown weights 'best'"),
        (lambda: ddimctl.load_checkpoint(device="gpu"), "^unknown device 'gpu'"),
        (lambda: ddimctl.load_checkpoint(dtype=torch.int8), "^dtype must be float32"),
        (lambda: ddimctl.load_checkpoint(flags=["a"]), "^flags must be a dict"),
        (lambda: ddimctl.load_checkpoint(revision=1), "^revision must be text"),
        (lambda: ddimctl.load_checkpoint(download=1), "^download must be True or False"),
        (lambda: ddimctl.load_checkpoint(vae=1), "^vae must be a path, a hub id or None"),
        (lambda: ddimctl.load_checkpoint(lora="a"), "^lora must be a list of files, not 'a'"),
        (lambda: ddimctl.load_checkpoint(lora=[1]), "^each of lora must be a path"),
        (lambda: ddimctl.load_checkpoint("bundled", revision="x"), "Leave revision out.$"),
        (lambda: ddimctl.seeded_noise([-1], (3,)), "^each of seeds must be a whole number from 0"),
        (lambda: ddimctl.seeded_noise(3, (3,)), "^seeds must be a list of whole numbers, not 3"),
        (lambda: ddimctl.seeded_noise([1], (3, 0)), "^each of shape must be a whole number from 1"),
        (lambda: ddimctl.seeded_noise([1], (3,), t=-2), "^t must be a whole number from 0"),
        (lambda: ddimctl.seeded_noise([1], (3,), device="mps"), "^unknown device 'mps'"),
        (lambda: ddimctl.slerp(x[0], x[:1], 0.5), "do not fit together"),
        (lambda: ddimctl.slerp(x[0], x[1], "half"), "^weight must be a finite number"),
        (lambda: ddimctl.slerp(x[0], -x[0], 0.5), "or use path lerp"),
        (lambda: ddimctl.interpolate(x[:1]), "^latents holds one"),
        (lambda: ddimctl.interpolate(x, frames=1), "^frames 1 is less than the 2 inputs"),
        (lambda: ddimctl.interpolate(x, path="arc"), "^path must be one of slerp, lerp, not 'arc'"),
        (lambda: ddimctl.interpolate(x, grid=(3, 3)), "^grid needs four inputs, not 2"),
        (lambda: ddimctl.interpolate(x, grid=3), r"^grid must be \(rows, columns\), not 3"),
        (lambda: ddimctl.interpolate(x, loop="yes"), "^loop must be True or False"),
        (
            lambda: ddimctl.invert(plain, x, timesteps=TAU, method="edict"),
            "^unknown inversion method 'edict'",
        ),
        (
            lambda: ddimctl.invert(plain, x, timesteps=TAU, tolerance=0),
            "^tolerance 0 is not above 0",
        ),
        (lambda: ddimctl.invert(plain, x[0], timesteps=TAU), r"^x_0 must be .* Pass x_0\[None\]"),
        (
            lambda: ddimctl.invert(plain, x / 0, timesteps=TAU),
            "^x_0 has values that are not finite",
        ),
        (lambda: ddimctl.search_timesteps(plain, x, steps=99), "too few for steps 99"),
        (lambda: ddimctl.search_timesteps(plain, x, steps=3, batch_size=0), "^batch_size must be"),
        (lambda: ddimctl.save_latents(tmp_path / "a.npy", x), r"Use .pt or .safetensors"),
        (lambda: ddimctl.save_latents(tmp_path / "a.pt", x[0]), r"Pass latents\[None\]"),
        (lambda: ddimctl.save_latents(3, x), "^path must be a file's path, not 3"),
        (lambda: ddimctl.save_latents(tmp_path / "a.pt", x, labels=[0, 1]), "Pass ckpt="),
        (lambda: ddimctl.save_latents(tmp_path / "a.pt", x, plain), "Pass timesteps="),
        (lambda: ddimctl.load_latents(tmp_path / "none.pt"), "none.pt"),
        (lambda: ddimctl.load_latents(None), "^path must be a file's path, not None"),
        (lambda: ddimctl.prepare_image(x, plain), "^source must be a path or an image of Pillow"),
        (lambda: ddimctl.prepare_image(image, "x"), "^ckpt must be a checkpoint, not 'x'"),
        (lambda: ddimctl.prepare_image(image, plain, fit="fill"), "^fit must be one of crop, pad"),
        (lambda: ddimctl.prepare_image(image, plain, size=(15, 15)), "must be multiples of"),
        (lambda: ddimctl.prepare_image("none.png", plain), "none.png"),
        (lambda: ddimctl.to_pil(x[0]), r"^x_0 must be .* Pass x_0\[None\]"),
        (lambda: ddimctl.to_pil(x[:, :2]), "^an image of 2 channels"),
        (lambda: ddimctl.make_grid(x, columns=0), "^columns must be a whole number from 1, not 0"),
        (lambda: ddimctl.make_grid(x, scale=0.5), "^scale must be a whole number from 1 to 64"),
        (lambda: ddimctl.make_grid(x, labels="ab"), "^labels must be a list of texts"),
        (lambda: ddimctl.make_grid(x, labels=["a"]), "^labels are 1, the images 2"),
    ):
        with pytest.raises(ddimctl.DdimctlError, match=message) as caught:
            call()
        assert "--" not in str(caught.value), message
    assert list(tmp_path.iterdir()) == []


def test_errors_are_translated_whatever_the_flag():
    with pytest.raises(ddimctl.RequestError) as caught, python_words():
        raise ddimctl.RequestError("--tau holds 3.", "Use --decode-steps, or --tau auto -- or not.")
    assert caught.value.cause == "timesteps holds 3."
    assert caught.value.remedy == "Use decode_steps, or timesteps auto -- or not."
    assert str(caught.value) == f"{caught.value.cause} {caught.value.remedy}"


def test_saved_latents_are_decoded_by_the_command(ckpt, tiny_class_checkpoint, tmp_path, run_cli):
    x_T = noise_of(ckpt)
    ddimctl.save_latents(tmp_path / "a.pt", x_T, ckpt, timesteps=TAU, labels=[1, 2])
    latents, metadata = ddimctl.load_latents(str(tmp_path / "a.pt"))
    assert torch.equal(latents, x_T)
    assert metadata["timesteps"] == list(TAU)
    assert (metadata["labels"], metadata["top"], metadata["method"]) == ([1, 2], 999, "unknown")
    assert "seeds" not in metadata
    order = f"sample --latents a.pt --ckpt {tiny_class_checkpoint} --out out --save samples"
    done = run_cli(*order.split())
    assert done.code == 0, done.stderr
    theirs = torch.load(tmp_path / "out/samples.pt", weights_only=True)["samples"]
    ours = ddimctl.sample(ckpt, x_T, timesteps=TAU, labels=[1, 2])
    torch.testing.assert_close(theirs, ours, atol=1e-3, rtol=1e-3)
    ddimctl.save_latents(tmp_path / "a.pt", x_T, ckpt, timesteps=TAU, labels=[1, 2], seeds=[5, 7])
    assert ddimctl.load_latents(tmp_path / "a.pt").metadata["seeds"] == [5, 7]
    ddimctl.save_latents(tmp_path / "plain.safetensors", x_T)
    assert ddimctl.load_latents(tmp_path / "plain.safetensors").metadata == {}


def test_images_are_prepared_as_files_are(plain, tmp_path):
    image = Image.linear_gradient("L").resize((20, 40)).convert("RGBA")
    image.putalpha(128)
    image.save(tmp_path / "a.png")
    for fit in ("crop", "pad", "stretch"):
        x = ddimctl.prepare_image(tmp_path / "a.png", plain, fit=fit)
        assert (x.shape, x.dtype) == ((1, 3, 16, 16), torch.float32)
        assert torch.equal(ddimctl.prepare_image(image, plain, fit=fit), x)
    wide = ddimctl.prepare_image(str(tmp_path / "a.png"), plain, size=(16, 32))
    assert wide.shape == (1, 3, 16, 32)
    back = ddimctl.to_pil(x)
    assert len(back) == 1
    assert torch.equal(ddimctl.prepare_image(back[0], plain), x)
    assert image.mode == "RGBA"  # it is still the caller's


def test_interpolate_is_the_paths_of_the_command():
    x = ddimctl.seeded_noise(range(4), (3, 4, 4))
    assert torch.equal(ddimctl.interpolate(x[:2], 3)[1], ddimctl.slerp(x[0], x[1], 0.5))
    assert torch.equal(ddimctl.interpolate(x, frames=4), x)
    assert torch.equal(ddimctl.interpolate(x, frames=8, loop=True)[::2], x)
    grid = ddimctl.interpolate(x, grid=(3, 2), path="lerp")
    assert grid.shape == (6, 3, 4, 4)
    assert torch.equal(grid[[0, 1, 4, 5]], x)
