"""A process alone, and how several find each other; what they do together is in test_many_processes."""

import socket

import pytest
import torch
from torch import nn

from ddimctl.errors import DeviceError, RequestError
from ddimctl.runtime import distributed
from ddimctl.runtime.distributed import Ranks, joined


@pytest.fixture
def several(monkeypatch):
    """This process is said to be the first of two, in a group of which it is the only one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": 2, "RANK": 0}
    for name, value in (variables | {"LOCAL_RANK": 3}).items():
        monkeypatch.setenv(name, str(value))


@pytest.fixture
def with_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.setattr(torch.distributed, "rendezvous", None)
    monkeypatch.setattr(torch.distributed, "init_process_group", None)
    network, loss = nn.Linear(2, 2), torch.tensor(3.0)
    with joined() as ranks:
        assert (ranks.rank, ranks.count, ranks.machines, ranks.first) == (0, 1, False, True)
        assert ranks.share("a") == "a"
        assert ranks.gather("a") == ["a"]
        assert ranks.highest([3, 1]) == [3, 1]
        assert [ranks.add("n", 2), ranks.add("m", 1), ranks.add("n", 3)] == [2, 1, 5]
        assert ranks.parallel(network) is network
        ranks.average(loss)
        ranks.barrier()
        ranks.check()
    assert loss == 3.0


def test_a_bug_of_one_process_stays_what_it_is():
    with pytest.raises(RuntimeError, match="gloo"), Ranks().errors():
        raise RuntimeError("gloo")


def test_those_that_have_come_do_not_wait_for_ever(several, monkeypatch):
    monkeypatch.setenv("DDIMCTL_PROCESS_TIMEOUT", "1")
    with pytest.raises(DeviceError, match=r"do not find each other|1 of 2 processes"), joined():
        pass


@pytest.mark.parametrize("cuda", [False, True])
def test_the_library_of_each_device(several, monkeypatch, request, cuda):
    """NCCL takes no tensors of the CPU, gloo those of CUDA only with copies."""
    if cuda:
        request.getfixturevalue("with_cuda")
    started = []
    monkeypatch.setenv("DDIMCTL_PROCESS_TIMEOUT", "77")
    monkeypatch.setattr(
        torch.distributed,
        "rendezvous",
        lambda *given, **named: iter([(torch.distributed.HashStore(), 0, 1)]),
    )
    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda *given, **named: started.append((given, named)),
    )
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    monkeypatch.setattr(distributed, "_FAREWELL", 0)
    with joined() as ranks:
        assert ranks.local_rank == 3
    assert started[0][0] == ("cpu:gloo,cuda:nccl" if cuda else "gloo",)
    assert started[0][1]["timeout"].total_seconds() == 77


def test_each_process_has_the_device_of_its_local_rank(with_cuda):
    ranks = Ranks()
    assert ranks.device("cuda:1") == torch.device("cuda:1")
    ranks.count, ranks.local_rank = 8, 5
    assert ranks.device("cuda") == torch.device("cuda:5")
    assert ranks.device("cpu") == torch.device("cpu")
    with pytest.raises(RequestError, match="device of its local rank"):
        ranks.device("cuda:1")
