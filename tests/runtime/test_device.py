import pytest
import torch
from torch import nn

from ddimctl.errors import DeviceError, RequestError
from ddimctl.runtime.device import (
    device_name,
    prepare_for_inference,
    prepare_for_training,
    resolve_device,
    resolve_precision,
    to_training_format,
)

CPU = torch.device("cpu")


def test_auto_is_cuda_where_there_is_one(monkeypatch):
    for there, expected in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert resolve_device("auto").type == expected


def test_cuda_without_a_device_says_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="--device cuda: this machine"):
        resolve_device("cuda")


def test_a_device_index_beyond_the_last_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    current = []
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert resolve_device("cuda:1").index == 1
    assert current == [torch.device("cuda:1")]  # of which pinned memory and events are
    with pytest.raises(DeviceError, match=r"has 2 CUDA device"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:x", "", "cpu cpu"])
def test_unknown_devices_are_refused(name):
    with pytest.raises(RequestError, match="unknown device"):
        resolve_device(name)


def test_precision_on_a_cpu():
    assert resolve_precision("auto", CPU) == "fp32"
    assert resolve_precision("bf16", CPU) == "bf16"
    with pytest.raises(RequestError, match="fp16 runs on CUDA only"):
        resolve_precision("fp16", CPU)
    with pytest.raises(RequestError, match="unknown precision 'fp8'"):
        resolve_precision("fp8", CPU)
    assert device_name(CPU) == "cpu"


def test_a_network_is_prepared_without_changing_what_it_computes():
    network, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 8, 8)
    before = network(x)
    prepare_for_training(network, CPU)
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    prepare_for_inference(network)
    assert not network.training
    assert not any(weight.requires_grad for weight in network.parameters())
    torch.testing.assert_close(network(x), before)
    assert to_training_format(x.to(memory_format=torch.channels_last)).is_contiguous()
