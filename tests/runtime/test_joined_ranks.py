"""Which tensors go over which library: NCCL takes none of the CPU's, gloo none of CUDA's."""

import pytest
import torch
import torch.distributed

from ddimctl.runtime.joined_ranks import JoinedRanks


class Work:
    """A collective that takes a while on the CPU; on CUDA, nobody may ask how far it is."""

    def __init__(self, tensor):
        self.on_cpu, self.asked, self.ended = tensor.device.type == "cpu", 0, False

    def is_completed(self):
        assert self.on_cpu
        self.asked += 1
        return self.asked > 2

    def wait(self):
        self.ended = True


@pytest.fixture
def joined(monkeypatch):
    """joined(device): a run's only process, with collectives that do nothing."""
    started, works = [], []

    def all_reduce(tensor, operation, async_op):
        assert async_op
        works.append((tensor, operation, Work(tensor)))
        return works[-1][2]

    monkeypatch.setattr(
        torch.distributed,
        "init_process_group",
        lambda *given, **named: started.append((given, named)),
    )
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    made = []

    def make(device):
        made.append(JoinedRanks(torch.distributed.HashStore(), 0, 1))
        made[0]._device = torch.device(device)
        return made[0], started, works

    yield make
    for ranks in made:
        ranks.leave(None)


def test_cuda_sums_over_nccl_and_is_not_waited_for(joined):
    ranks, started, works = joined("cuda:3")
    end = ranks.begin_sum(torch.zeros(4, device="meta"))  # in the place of CUDA
    assert started[0][0] == ("cpu:gloo,cuda:nccl",)
    assert started[0][1]["device_id"] == torch.device("cuda:3")
    assert not works[0][2].ended
    end()
    assert works[0][2].ended


def test_what_the_processes_agree_on_stays_on_the_cpu(joined):
    ranks, _, works = joined("cuda:3")
    assert ranks.highest([0, 15]) == [0, 15]
    tensor, operation, work = works[0]
    assert (tensor.device.type, operation) == ("cpu", torch.distributed.ReduceOp.MAX)
    assert (work.asked, work.ended) == (3, True)


def test_cpus_have_gloo_alone(joined):
    ranks, started, works = joined("cpu")
    ranks.begin_sum(torch.zeros(4))()
    assert started[0][0] == ("gloo",)
    assert started[0][1]["device_id"] is None
    assert works[0][1] == torch.distributed.ReduceOp.SUM
