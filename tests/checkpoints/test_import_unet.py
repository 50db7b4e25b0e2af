"""UNet2DModel is imported without torch's compiler, which works afterwards."""

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
from ddimctl.checkpoints._diffusers import import_unet
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
from ddimctl.checkpoints import _diffusers
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


def test_looking_at_the_package_imports_neither_torch_nor_diffusers() -> None:
    printed = _run(
        "import sys, ddimctl.checkpoints as c; dir(c); print('torch' in sys.modules, c.__all__)"
    )
    assert printed.startswith("False")
