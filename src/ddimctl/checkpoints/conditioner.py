"""From prompts to the table of embeddings that a text-conditioned network attends to."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ddimctl.checkpoints.build.text_encoder import Encoded, TextEncoder
from ddimctl.checkpoints.table import Table
from ddimctl.errors import RequestError

MOST_CHARACTERS: Final = 10_000
_WEIGHTED: Final = re.compile(r"[(\[][^()\[\]]+:\d*\.?\d+[)\]]")


@dataclass(frozen=True, eq=False)
class Conditioner:
    """The text encoders of a checkpoint.

    encoders:   one (Stable Diffusion 1, 2), or SDXL's two.
    pooled:     whether the network takes SDXL's pooled embedding and time ids, too.
    force_zeros: whether a negative prompt that is not given means embeddings of zeros, not of "".
    """

    encoders: tuple[TextEncoder, ...]
    pooled: bool = False
    force_zeros: bool = False

    def table(self, prompts: Sequence[str], negative: str | None, size: tuple[int, int]) -> Table:
        """A row for each prompt, then one for the negative: K = len(prompts) + 1.

        negative: None means "", or zeros where force_zeros.  size: (H, W) of the images in pixels.
        The text encoders are read one after the other, and dropped. Raises RequestError for a
        prompt that is too long, or where transformers is not installed; CheckpointError for files
        that do not fit.
        """
        if not prompts:
            raise RequestError("there is no prompt to encode.", "Pass one with --prompt.")
        for text in (*prompts, negative or ""):
            if len(text) > MOST_CHARACTERS:
                raise RequestError(
                    f"a prompt has {len(text):,} characters.", f"{MOST_CHARACTERS:,} are the most."
                )
        zeros = negative is None and self.force_zeros
        texts = tuple(prompts) if zeros else (*prompts, negative or "")
        found = [encoder.encode(texts) for encoder in self.encoders]
        embeddings = torch.cat([self._states(each) for each in found], dim=2)
        pooled = found[-1].pooled if self.pooled else None
        if zeros:
            embeddings = _with_zeros(embeddings)
            pooled = None if pooled is None else _with_zeros(pooled)
        ids = None
        if self.pooled:
            ids = torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32).repeat(
                len(embeddings), 1
            )
        return Table(embeddings, pooled, ids, _notices(texts, found[0]))

    def _states(self, encoded: Encoded) -> Tensor:
        return encoded.penultimate if self.pooled else encoded.last


def _with_zeros(rows: Tensor) -> Tensor:
    return torch.cat((rows, torch.zeros_like(rows[:1])))


def _notices(texts: Sequence[str], encoded: Encoded) -> tuple[str, ...]:
    cut = dict.fromkeys(
        f"a prompt is longer than the text encoder takes; this was cut off: '{lost.strip()}'"
        for lost in encoded.cut
        if lost
    )
    weighted = next((found[0] for text in texts if (found := _WEIGHTED.search(text))), "")
    plain = f"'{weighted}' is taken as plain text: prompts have no weights here."
    return (*cut, plain) if weighted else tuple(cut)
