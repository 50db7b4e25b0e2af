"""UNet2DModel is imported without torch's compiler and diffusers' other networks, all of which
work afterwards."""

import subprocess
import sys


def _run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_unet_leaves_the_compiler_out_and_compiling_works_afterwards() -> None:
    printed = _run(
        """
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
    )
    assert printed.split() == ["False", "False", "True", "True"]


def test_loading_a_network_with_classes_leaves_the_compiler_out_too() -> None:
    printed = _run(
        """
import sys, ddimctl
checkpoint = ddimctl.load_checkpoint()
print(checkpoint.num_classes > 1, "torch._dynamo" in sys.modules, "sympy" in sys.modules)
"""
    )
    assert printed.split() == ["True", "False", "False"]


def test_a_diffusers_that_needs_more_of_the_compiler_is_imported_plainly() -> None:
    printed = _run(
        """
import sys
from ddimctl.checkpoints.build import diffusers_import as _diffusers
plain, calls = _diffusers._plain_import, []
def fails_first():
    calls.append("torch._dynamo" in sys.modules)
    if len(calls) == 1:
        import diffusers.utils.torch_utils
        raise ImportError("cannot import name 'graph_break' from 'torch._dynamo'")
    return plain()
_diffusers._plain_import = fails_first
print(_diffusers.import_unet().__name__, calls)
import torch._dynamo
print(torch._dynamo.__file__ is not None)
"""
    )
    assert printed.split("\n")[:2] == ["UNet2DModel [True, False]", "True"]


def test_all_of_diffusers_can_be_imported_afterwards_and_is_of_the_same_classes() -> None:
    printed = _run(
        """
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
    )
    assert printed.split() == ["False", "False", "True", "True", "4"]


def test_names_of_a_package_that_was_left_out_are_those_of_a_plain_import() -> None:
    script = """
import sys
{first}
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
    ours = _run(
        script.format(
            first="import ddimctl.checkpoints.build.diffusers_import as d; d.import_unet()"
        )
    )
    assert ours == _run(script.format(first=""))
    assert "has no attribute 'Nonsense'" in ours


def test_looking_at_the_package_imports_neither_torch_nor_diffusers() -> None:
    printed = _run(
        "import sys, ddimctl.checkpoints as c; dir(c); print('torch' in sys.modules, c.__all__)"
    )
    assert printed.startswith("False")
