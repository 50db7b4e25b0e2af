"""The embeddings that a network attends to: one row for each prompt or class, named by labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

_KEPT_ON_DEVICE: Final = 256 * 2**20  # bytes; larger tables stay on the host


@dataclass(frozen=True, eq=False)
class Table:
    """What labels 0 to K - 1 stand for.

    embeddings: (K, L, D), float32.  pooled: (K, P), float32, and time_ids: (K, 6), float32, pixels
    (height, width, top, left, height, width), of SDXL; None for other networks.
    notices: sentences that the user should see once (a prompt was cut).
    """

    embeddings: Tensor
    pooled: Tensor | None = None
    time_ids: Tensor | None = None
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.embeddings)

    def conditions(self, labels: Tensor, like: Tensor) -> dict[str, Any]:
        """The arguments of a UNet2DConditionModel for labels (N,), int64; like: a tensor of the
        device and type that they should have.
        """
        rows = labels.to(self.embeddings.device)

        def of(values: Tensor) -> Tensor:
            return values[rows].to(like.device, like.dtype)

        found: dict[str, Any] = {"encoder_hidden_states": of(self.embeddings)}
        if self.pooled is not None and self.time_ids is not None:
            found["added_cond_kwargs"] = {
                "text_embeds": of(self.pooled),
                "time_ids": of(self.time_ids),
            }
        return found

    def near(self, device: torch.device) -> "Table":
        """The same on the device where it is small, else on the host, which a row is fetched from."""
        values = [self.embeddings, self.pooled, self.time_ids]
        size = sum(each.numel() * each.element_size() for each in values if each is not None)
        place = device if size <= _KEPT_ON_DEVICE else torch.device("cpu")
        moved = [None if each is None else each.to(place) for each in values]
        return Table(moved[0], moved[1], moved[2], self.notices)  # type: ignore[arg-type]

    def blend(self, rows: Sequence[tuple[int, int, float]]) -> "Table":
        """A table with a row for each (a, b, f): (1 - f) row a + f row b."""
        first, second = (torch.tensor([row[i] for row in rows]) for i in (0, 1))
        weights = torch.tensor([row[2] for row in rows], dtype=torch.float64)

        def between(values: Tensor) -> Tensor:
            f = weights.to(values.device).view(-1, *[1] * (values.ndim - 1))
            a, b = (values[each.to(values.device)] for each in (first, second))
            return ((1 - f) * a + f * b).to(values.dtype)

        pooled = None if self.pooled is None else between(self.pooled)
        time_ids = None if self.time_ids is None else self.time_ids[first.to(self.time_ids.device)]
        return replace(self, embeddings=between(self.embeddings), pooled=pooled, time_ids=time_ids)

    def joined(self, other: "Table") -> "Table":
        """The rows of this table, then those of the other of the same network."""

        def both(name: str) -> Any:
            mine, others = getattr(self, name), getattr(other, name)
            return None if mine is None else torch.cat((mine, others.to(mine.device)))

        notices = tuple(dict.fromkeys((*self.notices, *other.notices)))
        return Table(both("embeddings"), both("pooled"), both("time_ids"), notices)


def class_table(weight: Tensor) -> Table:
    """The table of a class-conditional latent diffusion network, whose ClassEmbedder has the weight
    (K, D): one token for each class.
    """
    return Table(weight.detach().float()[:, None])
