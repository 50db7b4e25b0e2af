"""The sum of the gradients over the processes, on its way while the backward pass still runs."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import torch
from torch import Tensor

from ddimctl.runtime.ranks import Ranks

# Bytes; smaller ones cost more for being told apart, larger ones overlap less.
BUCKET: Final = 25 * 2**20
_PARTS: Final = 8  # of a small network


class GradientSum:
    """Adds the gradients of the processes of a run, several parameters at a time.

    Parameters share a bucket as their gradients followed each other in the first pass, of the first
    process; buckets are sent in that order. So each sum is made of the same numbers in the same
    places in every update, every process and every resumed run, which decides its last bits.
    """

    def __init__(self, ranks: Ranks, parameters: Iterable[Tensor]) -> None:
        self._ranks, self._parameters = ranks, list(parameters)
        self._order: list[int] = []
        self._buckets: list[list[int]] = []
        self._bucket_of: dict[int, int] = {}
        self._waiting: list[int] = []  # for how many gradients each bucket waits
        self._sent: list[Callable[[], None]] = []
        self._open = False
        for number, weights in enumerate(self._parameters if ranks.count > 1 else ()):
            hook = partial(self._made, number)
            weights.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]

    def begin(self) -> None:
        """From here on gradients are final: the next backward pass is an update's last."""
        self._waiting = [len(bucket) for bucket in self._buckets]
        self._open = True

    def finish(self, loss: Tensor) -> None:
        """Replace all gradients, and the loss, by their sums over the processes.

        The same to the bit in each. Raises as Ranks.check does.
        """
        if self._ranks.count == 1:
            return
        self._open = False
        if not self._buckets:
            self._divide(self._ranks.share("order of the gradients", self._order))
        while len(self._sent) < len(self._buckets):
            self._send_next()
        self._sent.append(self._send([loss]))
        sent, self._sent = self._sent, []
        for receive in sent:
            receive()

    def _made(self, number: int, weights: Tensor) -> None:
        """After a gradient is made: send its bucket if it was the last of it, and those that waited."""
        if not self._open:
            return
        if not self._buckets:
            self._order.append(number)
            return
        self._waiting[self._bucket_of[number]] -= 1
        while len(self._sent) < len(self._buckets) and not self._waiting[len(self._sent)]:
            self._send_next()

    def _divide(self, order: list[int]) -> None:
        sizes = [self._parameters[number].nbytes for number in order]
        most, filled = min(BUCKET, sum(sizes) // _PARTS), BUCKET
        for number, size in zip(order, sizes, strict=True):
            if filled >= most:
                self._buckets.append([])
                filled = 0
            self._buckets[-1].append(number)
            self._bucket_of[number] = len(self._buckets) - 1
            filled += size

    def _send_next(self) -> None:
        bucket = [self._parameters[number] for number in self._buckets[len(self._sent)]]
        for weights in bucket:
            if weights.grad is None:
                weights.grad = torch.zeros_like(weights)
        self._sent.append(self._send([w.grad for w in bucket if w.grad is not None]))

    def _send(self, tensors: list[Tensor]) -> Callable[[], None]:
        """Begin to sum the tensors; what it returns waits for that and puts the sums in place."""
        flat = torch.cat([_in_memory_order(tensor) for tensor in tensors])
        wait = self._ranks.begin_sum(flat)

        def receive() -> None:
            wait()
            parts = torch.split(flat, [tensor.numel() for tensor in tensors])
            torch._foreach_copy_([_in_memory_order(tensor) for tensor in tensors], list(parts))

        return receive


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The numbers of a tensor without gaps, whatever its memory format, as a vector on the same memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
