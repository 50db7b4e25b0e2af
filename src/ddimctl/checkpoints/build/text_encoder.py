"""CLIP's text encoders: transformers' networks, with files that were checked before it sees them."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ddimctl.checkpoints.build.rules import BELONGS, check_rules, one_of, or_none, real, whole
from ddimctl.checkpoints.build.tokens import LENGTH, Reader, Vocabulary
from ddimctl.checkpoints.build.weights import check_finite
from ddimctl.errors import CheckpointError, RequestError

ENCODERS: Final = ("CLIPTextModel", "CLIPTextModelWithProjection")
UNUSED: Final = "embeddings.position_ids"
"""A buffer, int64, that older files hold."""

_REMEDY: Final = "Install them with: pip install 'ddimctl[text]'"
_TOKEN: Final = whole(0, 2**20)

_RULES: Final = {
    "vocab_size": whole(1, 2**20),
    "hidden_size": whole(1, 2**14),
    "intermediate_size": whole(1, 2**16),
    "projection_dim": whole(1, 2**14),
    "num_hidden_layers": whole(1, 128),
    "num_attention_heads": whole(1, 1024),
    "max_position_embeddings": whole(3, 1024),
    "hidden_act": one_of("quick_gelu", "gelu"),
    "layer_norm_eps": real(0, 1),
    "bos_token_id": or_none(_TOKEN),
    "eos_token_id": or_none(_TOKEN),
    "pad_token_id": or_none(_TOKEN),
}
# transformers' own, for those that the rest of a checkpoint is compared with
_USUAL: Final = {"hidden_size": 512, "projection_dim": 512, "vocab_size": 49408}


class Encoded(NamedTuple):
    """Of K prompts.

    last: (K, 77, D), after the final norm.  penultimate: (K, 77, D), without it.  pooled: (K, P),
    projected, of a CLIPTextModelWithProjection, else None.  cut: what was cut off each prompt, "".
    """

    last: Tensor
    penultimate: Tensor
    pooled: Tensor | None
    cut: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TextEncoder:
    """A text encoder that is read when prompts are encoded, and dropped afterwards.

    name:       the checkpoint's, for messages.
    kind:       one of ENCODERS.
    config:     its settings, checked by check_encoder_config.
    weights:    reads its weights, by the names in its file.
    vocabulary: reads its tokenizer's.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    weights: Callable[[], Mapping[str, Tensor]]
    vocabulary: Reader

    @property
    def width(self) -> int:
        """D of the embeddings."""
        return int(self.config.get("hidden_size", _USUAL["hidden_size"]))

    @property
    def pooled_width(self) -> int:
        """P of the pooled embedding."""
        return int(self.config.get("projection_dim", _USUAL["projection_dim"]))

    def encode(self, prompts: tuple[str, ...]) -> Encoded:
        """On the CPU in float32, each prompt by itself: a row depends on its prompt alone.

        Raises RequestError without transformers, CheckpointError for files that do not fit.
        """
        with _transformers() as library:
            tokenizer, length = self._tokenizer(library), self._length
            ids = [tokenizer(each, **_padded(length)).input_ids for each in prompts]
            self._check_ids(ids)
            network = self._network(library)
            with torch.no_grad():
                found = [network(torch.tensor([row]), output_hidden_states=True) for row in ids]
            cut = tuple(_cut(tokenizer, each, length) for each in prompts)
        pooled = None
        if self.kind == "CLIPTextModelWithProjection":
            pooled = torch.cat([each.text_embeds for each in found])
        return Encoded(
            torch.cat([each.last_hidden_state for each in found]),
            torch.cat([each.hidden_states[-2] for each in found]),
            pooled,
            cut,
        )

    def token_ids(self, prompts: tuple[str, ...]) -> Tensor:
        """(K, 77), int64: padded and cut as the network gets them. Raises as encode does."""
        with _transformers() as library:
            tokenizer = self._tokenizer(library)
            return torch.tensor([tokenizer(p, **_padded(self._length)).input_ids for p in prompts])

    @property
    def _length(self) -> int:
        return min(self._vocabulary.length, int(self.config.get("max_position_embeddings", LENGTH)))

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return self.vocabulary()

    def _tokenizer(self, library: Any) -> Any:
        known = self._vocabulary

        def token(value: Any) -> Any:
            return library.AddedToken(**value) if isinstance(value, dict) else value

        try:
            return library.CLIPTokenizer(
                vocab=dict(known.tokens),
                merges=list(known.merges),
                added_tokens_decoder={index: token(value) for index, value in known.added.items()},
                **{name: token(value) for name, value in known.special.items()},
            )
        except Exception as error:  # the library in Rust raises nothing narrower
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{self.name}: its tokenizer cannot be used: {reason}", "Get its files again."
            ) from error

    def _check_ids(self, rows: list[list[int]]) -> None:
        most = int(self.config.get("vocab_size", _USUAL["vocab_size"]))
        if any(not 0 <= index < most for row in rows for index in row):
            raise CheckpointError(
                f"{self.name}: its tokenizer has more tokens than its text encoder ({most}).",
                "Get its files again.",
            )

    def _network(self, library: Any) -> Any:
        read = {key: value for key, value in self.weights().items() if not key.endswith(UNUSED)}
        check_finite(read, self.name)
        self._check_shape(read)
        weights = {key: tensor.to(torch.float32, copy=True) for key, tensor in read.items()}
        known = {key: value for key, value in self.config.items() if key in _RULES}
        network_class: Any = getattr(library, self.kind)
        try:
            network, loaded = network_class.from_pretrained(
                None,
                config=library.CLIPTextConfig(**known, attn_implementation="sdpa"),
                state_dict=weights,
                output_loading_info=True,
            )
        except (RuntimeError, ValueError, TypeError) as error:  # misshapen, or no such network
            reason = str(error).partition("\n")[0]
            raise CheckpointError(
                f"{self.name}: the weights do not fit the text encoder: {reason}", BELONGS
            ) from error
        wrong = sorted({*map(str, loaded["missing_keys"]), *map(str, loaded["unexpected_keys"])})
        if wrong:
            raise CheckpointError(
                f"{self.name}: {len(wrong)} weights are missing in the text encoder, or unknown to "
                f"it ({', '.join(wrong[:3])}{', …' * (len(wrong) > 3)}).",
                BELONGS,
            )
        return network.float().eval()

    def _check_shape(self, weights: Mapping[str, Tensor]) -> None:
        """Before memory is taken for a network of the size that the config tells."""
        wanted = (self.config.get("vocab_size", _USUAL["vocab_size"]), self.width)
        found = [w.shape for key, w in weights.items() if key.endswith("token_embedding.weight")]
        if [tuple(shape) for shape in found] != [wanted]:
            raise CheckpointError(
                f"{self.name}: the text encoder has no embedding of {wanted[0]} tokens in "
                f"{wanted[1]} channels.",
                BELONGS,
            )


def check_encoder(kind: str, config: Mapping[str, Any], where: str) -> None:
    """Raise CheckpointError for a text encoder that is not CLIP's, or for settings that none has.
    kind: its class. where: its config.json, for messages.
    """
    if kind not in ENCODERS:
        raise CheckpointError(
            f"{where}: the text encoder is a {kind:.60}, which cannot be run.",
            f"Known are {' and '.join(ENCODERS)}.",
        )
    check_rules(config, _RULES, where)


def _padded(length: int) -> dict[str, Any]:
    return {"padding": "max_length", "truncation": True, "max_length": length}


def _cut(tokenizer: Any, prompt: str, length: int) -> str:
    """The end of the prompt that its first tokens do not reach; "" where all fit."""
    found = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    offsets = found.offset_mapping
    return prompt[offsets[length - 1][0] :] if len(offsets) > length else ""


@contextmanager
def _transformers() -> Iterator[Any]:
    """The library, which prints nothing within. Raises RequestError where it is not installed."""
    try:
        import transformers
        from transformers.utils import logging
    except ImportError as error:
        raise RequestError("prompts need the text encoders of transformers.", _REMEDY) from error
    known: Any = logging
    verbosity, bars = known.get_verbosity(), known.is_progress_bar_enabled()
    known.set_verbosity_error()
    known.disable_progress_bar()
    try:
        yield transformers
    finally:
        known.set_verbosity(verbosity)
        if bars:
            known.enable_progress_bar()
