"""UNet2DModel is imported without torch's compiler and diffusers' other networks, all of which
work afterwards. Each script is run in a process of its own, forked from one that has torch."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

COMPILER = """
import sys, torch
from ddimctl.checkpoints.build.diffusers_import import import_unet
UNet2DModel = import_unet()
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
assert import_unet() is UNet2DModel
unet = UNet2DModel(
    sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
).eval()
x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
with torch.inference_mode():
    plain = unet(x, t, return_dict=False)[0]
    compiled = torch.compile(unet, backend="eager")(x, t, return_dict=False)[0]
print(torch.allclose(plain, compiled, atol=1e-5), "torch._dynamo.eval_frame" in sys.modules)
"""
CLASSES = """
import sys, ddimctl
checkpoint = ddimctl.load_checkpoint()
print(checkpoint.num_classes > 1, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
FAILING = """
import sys
from ddimctl.checkpoints.build import diffusers_import as _diffusers
plain, calls = _diffusers._plain_import, []
def fails_first(name):
    calls.append("torch._dynamo" in sys.modules)
    if len(calls) == 1:
        import diffusers.utils.torch_utils
        raise ImportError("cannot import name 'graph_break' from 'torch._dynamo'")
    return plain(name)
_diffusers._plain_import = fails_first
print(_diffusers.import_unet().__name__, calls)
import torch._dynamo
print(torch._dynamo.__file__ is not None)
"""
OTHERS = """
import inspect, pickle, sys
from ddimctl.checkpoints.build.diffusers_import import import_unet
UNet2DModel = import_unet()
blocks = sys.modules["diffusers.models.unets.unet_2d_blocks"]
flux, condition = (f"diffusers.models.{name}" for name in
                   ("transformers.transformer_flux", "unets.unet_2d_condition"))
import diffusers, diffusers.models.transformers as package
assert inspect.getmodule(blocks.Transformer2DModel) and not hasattr(package, "__wrapped__")
print(flux in sys.modules, condition in sys.modules)
from diffusers import DDIMPipeline, Transformer2DModel
from diffusers.models.unets import UNet2DConditionModel, UNet2DModel as same
from diffusers.models.transformers import DualTransformer2DModel, FluxTransformer2DModel
print(flux in sys.modules, condition in sys.modules)
assert same is UNet2DModel is diffusers.UNet2DModel
assert UNet2DConditionModel is diffusers.UNet2DConditionModel
assert Transformer2DModel is blocks.Transformer2DModel
assert DualTransformer2DModel is blocks.DualTransformer2DModel
assert package.transformer_2d.Transformer2DModel is Transformer2DModel
assert package.__spec__.loader is package.__loader__ and package.__loader__.get_source
assert type(package) is type(sys) and pickle.loads(pickle.dumps(same)) is UNet2DModel
unet = UNet2DConditionModel(
    sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=4,
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=8,
)
print(sum(isinstance(module, Transformer2DModel) for module in unet.modules()))
"""
NAMES = """
import sys
import diffusers.models.transformers as package
from diffusers.models.unets import *
assert "UNetMotionModel" in globals()
from diffusers.models.transformers import PriorTransformer
try:
    package.Nonsense
except AttributeError as error:
    print(error)
print(sorted(name for name in dir(package) if not name.startswith("_")))
"""
OURS = "import sys, ddimctl.checkpoints.build.diffusers_import as d; d.import_unet()\n"

_RUN = """
import json, os, sys, torch

def run(script):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.dup2(writer, 1)
        sys.stdout = open(1, "w", closefd=False)
        code = 1
        try:
            exec(script, {"__name__": "__main__"})
            sys.stdout.flush()
            code = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)
    os.close(writer)
    with open(reader) as printed:
        text = printed.read()
    assert os.wait()[1] == 0, script
    return text

print(json.dumps([run(script) for script in json.load(sys.stdin)]))
"""

LATENT = """
import sys
from ddimctl.checkpoints.build.diffusers_import import import_network
names = ("UNet2DModel", "UNet2DConditionModel", "AutoencoderKL", "VQModel")
classes = [import_network(name) for name in names]
print(*(name in sys.modules for name in ("transformers", "torch._dynamo", "sympy")))
import diffusers
assert classes == [getattr(diffusers, name) for name in names]
try:
    import transformers
except ImportError:
    print("absent")
else:
    from diffusers import StableDiffusionPipeline
    from diffusers.loaders import StableDiffusionLoraLoaderMixin
    import diffusers.loaders.lora_base as base
    assert issubclass(StableDiffusionPipeline, StableDiffusionLoraLoaderMixin)
    print(base.PreTrainedModel is transformers.PreTrainedModel)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_is_left_out_of_an_import_works_afterwards() -> None:
    scripts = [COMPILER, CLASSES, FAILING, OTHERS, OURS + NAMES, NAMES, LATENT]
    done = subprocess.run(
        [sys.executable, "-c", _RUN],
        input=json.dumps(scripts),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    compiler, classes, failing, others, ours, plain, latent = json.loads(done.stdout)
    assert compiler.split() == ["False", "False", "True", "True"]
    assert classes.split() == ["True", "False", "False"]
    assert failing.split("\n")[:2] == ["UNet2DModel [True, False]", "True"]
    assert others.split() == ["False", "False", "True", "True", "4"]
    assert ours == plain
    assert latent.split()[:3] == ["False", "False", "False"]
    assert latent.split()[3] == ("True" if find_spec("transformers") else "absent")
    assert "has no attribute 'Nonsense'" in ours
