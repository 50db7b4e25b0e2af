import pytest
import torch
from torch import nn

from ddimctl.runtime import gradients
from ddimctl.runtime.gradients import GradientSum
from ddimctl.runtime.ranks import Ranks


class Doubling(Ranks):
    """One of two processes, of which the other has the same gradients; sums arrive when waited for."""

    count = 2

    def __init__(self):
        super().__init__()
        self.log = []

    def begin_sum(self, tensor):
        number = sum(entry.startswith("send") for entry in self.log)
        self.log.append(f"send {number}: {tensor.numel()}")

        def wait():
            self.log.append(f"wait {number}")
            tensor.mul_(2)

        return wait


class Network(nn.Module):
    """Four layers in a row, registered in another order; one that is never asked."""

    def __init__(self):
        super().__init__()
        self.c, self.a = nn.Conv2d(4, 4, 3, bias=False), nn.Conv2d(3, 4, 3, bias=False)
        self.unused = nn.Linear(5, 5)
        self.d, self.b = nn.Conv2d(4, 2, 3), nn.Conv2d(4, 4, 3, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network()


def gradients_of(network):
    return {name: w.grad.clone() for name, w in network.named_parameters() if w.grad is not None}


def backward(network, seed):
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    network(x).square().mean().backward()


def test_sums_are_on_their_way_before_the_backward_pass_ends(network, monkeypatch):
    monkeypatch.setattr(gradients, "BUCKET", 4 * 144)  # of b's and c's numbers
    monkeypatch.setattr(gradients, "_PARTS", 1)
    ranks, loss = Doubling(), torch.tensor(3.0)
    network.a.weight.register_post_accumulate_grad_hook(lambda _: ranks.log.append("end"))
    summed = GradientSum(ranks, network.parameters())
    logs = []
    for update in range(3):
        network.zero_grad()
        ranks.log.clear()
        backward(network, 2 * update)  # the first of two passes
        assert ranks.log == ["end"]
        ranks.log.clear()
        backward_alone = gradients_of(network)
        summed.begin()
        backward(network, 2 * update + 1)
        logs.append(list(ranks.log))
        mine = gradients_of(network)
        summed.finish(loss)
        assert float(loss) == 3 * 2 ** (update + 1)
        assert mine.keys() == backward_alone.keys() == gradients_of(network).keys()
        assert all(torch.equal(g, 2 * mine[n]) for n, g in gradients_of(network).items())
        assert network.c.weight.grad.is_contiguous(memory_format=torch.channels_last)
        waits = [entry for entry in ranks.log if entry.startswith("wait")]
        assert waits == [f"wait {n}" for n in range(len(waits))]
        sums = [entry for entry in ranks.log if entry.startswith("send")]
        assert sums == ["send 0: 218", "send 1: 144", "send 2: 108", "send 3: 1"]
    sends = ["send 0: 218", "send 1: 144", "end", "send 2: 108"]  # of d and c, of b, of a
    assert logs == [["end"], sends, sends]


def test_a_gradient_that_one_pass_does_not_make_counts_as_zero(network):
    ranks = Doubling()
    summed = GradientSum(ranks, network.parameters())
    summed.begin()
    backward(network, 0)
    summed.finish(torch.zeros(()))
    network.zero_grad()
    summed.begin()
    network.d(torch.ones(1, 4, 3, 3)).sum().backward()
    summed.finish(torch.zeros(()))
    assert torch.equal(network.d.bias.grad, 2 * torch.ones(2))
    assert not network.a.weight.grad.any()


def test_one_process_keeps_its_gradients(network):
    summed = GradientSum(Ranks(), network.parameters())
    summed.begin()
    backward(network, 0)
    before = gradients_of(network)
    summed.finish(torch.zeros(()))
    assert all(torch.equal(before[n], g) for n, g in gradients_of(network).items())
