"""Layers of oneDNN compute what plain ones do, convolutions to the same bits whatever came first."""

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from ddimctl.runtime.device import prepare_for_inference
from ddimctl.runtime.onednn import can_pack, pack_convolutions

pytestmark = pytest.mark.skipif(
    not can_pack(nn.Conv2d(1, 1, 1)), reason="this machine's torch packs no convolutions"
)


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def test_it_computes_the_convolution():
    for settings in (
        {},
        {"bias": False},
        {"kernel_size": 1},
        {"padding": 1},
        {"padding": (2, 0), "stride": 2},
        {"stride": (1, 2), "dilation": 2},
        {"groups": 4},
        {"padding": "same"},
        {"padding": 1, "padding_mode": "circular"},
    ):
        for batch in (1, 3):
            torch.manual_seed(0)
            conv = nn.Conv2d(16, 24, **{"kernel_size": 3} | settings)
            x = draw(batch, 16, 12, 10)
            wanted = conv.double()(x.double()).float()
            shape = wanted.shape[1:]  # which the pass that finds the inputs' sizes must keep, too
            conv.float()
            network = nn.Sequential(conv, nn.Flatten(), nn.Unflatten(1, shape))
            prepare_for_inference(network)
            with torch.inference_mode():
                for given in (
                    x,
                    x.contiguous(memory_format=torch.channels_last),
                    x.mT.contiguous().mT,
                ):
                    torch.testing.assert_close(network(given), wanted, atol=2e-6, rtol=1e-5)
            plain = {"same", "circular"} & set(map(str, settings.values()))
            assert conv.weight.is_mkldnn is not bool(plain)


def test_the_first_input_does_not_change_the_bits_of_later_ones():
    outputs = []
    for first in (draw(1, 32, 8, 8), draw(8, 32, 8, 8), draw(2, 32, 40, 24)):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(32, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 32, 3, 2, 1)
        )
        prepare_for_inference(network)
        with torch.inference_mode():
            network(first)
            outputs.append([network(draw(n, 32, 8, 8)) for n in (1, 4, 8)])
    for others in outputs[1:]:
        for one, other in zip(outputs[0], others, strict=True):
            assert torch.equal(one, other)


def test_weights_that_are_read_but_not_called_stay_plain():
    class Filtered(nn.Module):  # as the FIR layers of diffusers
        def __init__(self):
            super().__init__()
            self.conv, self.called = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.called(conv2d(x, self.conv.weight))

    network, x = Filtered(), draw(2, 3, 8, 8)
    before = network(x)
    prepare_for_inference(network)
    torch.testing.assert_close(network(x), before)
    assert not network.conv.weight.is_mkldnn
    assert network.called.weight.is_mkldnn


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 16), (2, 7, 16), (2, 3, 4, 16), (1, 16)])
def test_linear_layers_compute_the_same(shape, bias):
    linear, x = nn.Linear(16, 24, bias=bias), draw(*shape)
    given = [x, draw(*shape[:-2], shape[-1], shape[-2]).mT, draw(*shape[:-1], 32)[..., ::2]]
    wanted = [linear.double()(each.double()).float() for each in given]
    prepare_for_inference(network := nn.Sequential(linear.float()))
    assert type(linear) is not nn.Linear
    with torch.inference_mode():
        for each, expected in zip(given, wanted, strict=True):
            torch.testing.assert_close(network(each), expected, atol=2e-6, rtol=1e-5)


def test_what_is_counted_of_a_network_stays_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    pack_convolutions(network.requires_grad_(False))
    network(draw(1, 3, 8, 8))
    assert network[0].weight.is_mkldnn
    assert sum(weight.numel() for weight in network.parameters()) == 4 * 3 * 9 + 4
    assert next(network.parameters()).dtype == torch.float32
    assert network[0].weight.shape == (4, 3, 3, 3)


def test_a_network_to_be_compiled_or_in_another_precision_is_not_packed():
    for conv, compiled in ((nn.Conv2d(3, 4, 3), True), (nn.Conv2d(3, 4, 3).bfloat16(), False)):
        network = nn.Sequential(conv)
        prepare_for_inference(network, compiled=compiled)
        network(draw(1, 3, 8, 8).to(conv.weight))
        assert type(conv) is nn.Conv2d
        assert conv.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_network_that_fails_is_left_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(7, 7))
    prepare_for_inference(network)
    with pytest.raises(RuntimeError, match="number of channels"):
        network(draw(1, 3, 8, 8))
    assert type(network[0]) is nn.Conv2d
    network[1] = nn.Identity()
    assert network(draw(1, 3, 8, 8)).shape == (1, 4, 6, 6)
