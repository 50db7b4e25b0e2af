"""CLIP's vocabulary, from the untrusted files of a tokenizer."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ddimctl.checkpoints.source import Source, read_json
from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_kind, sniff
from ddimctl.files.untrusted.guards import Refused, refusals
from ddimctl.files.untrusted.settings import JsonObject

LENGTH: Final = 77
_MOST_TOKENS: Final = 2**20
_MOST_BYTES: Final = 8 * 2**20
_SPECIAL: Final = ("bos_token", "eos_token", "unk_token", "pad_token")
_FLAGS: Final = ("lstrip", "rstrip", "normalized", "single_word")
_GET_ALL: Final = "Download the whole checkpoint."


@dataclass(frozen=True)
class Vocabulary:
    """tokens: ids by token.  merges: pairs, the most frequent first.  special: what stands for the
    beginning, end, unknown and padding, by _SPECIAL's names; the values a text, or the fields of
    transformers' AddedToken.  added: tokens beside the vocabulary, by id.  length: in tokens.
    """

    tokens: Mapping[str, int]
    merges: tuple[tuple[str, str], ...]
    special: Mapping[str, Any] = field(default_factory=dict)
    added: Mapping[int, Any] = field(default_factory=dict)
    length: int = LENGTH


Reader = Callable[[], Vocabulary]


def find_vocabulary(source: Source, part: str) -> Reader:
    """A reader of the tokenizer in the folder part ("tokenizer"), which is read when first needed.
    Raises CheckpointError where there is none.
    """
    names = [name for name in ("vocab.json", "merges.txt") if source.get(f"{part}/{name}")]
    whole = source.get(f"{part}/tokenizer.json") is not None
    if len(names) < 2 and not whole:
        raise CheckpointError(f"{source.name} has no {part}/vocab.json and merges.txt.", _GET_ALL)
    return lambda: read_vocabulary(source, part)


def read_vocabulary(source: Source, part: str) -> Vocabulary:
    """The vocabulary in the folder part. Raises CheckpointError for damaged files."""
    config = read_json(source, f"{part}/tokenizer_config.json") or {}
    special = read_json(source, f"{part}/special_tokens_map.json") or {}
    where = f"{source.name}/{part}"
    kind = config.get("tokenizer_class", "CLIPTokenizer")
    if kind not in ("CLIPTokenizer", "CLIPTokenizerFast"):
        raise CheckpointError(f"{where} is a {kind!s:.60}; only CLIP's can be run.")
    tokens = read_json(source, f"{part}/vocab.json")
    if tokens is None:
        tokens, merges = _whole_file(read_json(source, f"{part}/tokenizer.json") or {}, where)
    else:
        merges = _merges_file(source, f"{part}/merges.txt")
    added = config.get("added_tokens_decoder") or {}
    known = special | config
    named = {name: _special(known[name], where) for name in _SPECIAL if known.get(name)}
    if not _are_tokens(tokens) or not isinstance(added, dict) or len(added) > 10_000:
        raise CheckpointError(f"{where} holds no vocabulary of CLIP.", _GET_ALL)
    length = config.get("model_max_length", LENGTH)
    return Vocabulary(
        tokens,
        merges,
        named,
        {int(key): _special(value, where) for key, value in added.items() if key.isdecimal()},
        min(length, LENGTH) if type(length) is int and length > 2 else LENGTH,
    )


def _special(value: Any, where: str) -> Any:
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        found = {name: value[name] for name in _FLAGS if type(value.get(name)) is bool}
        value = {"content": value["content"], **found}
    text = value["content"] if isinstance(value, dict) else value
    if not isinstance(text, str) or not 0 < len(text) <= 200:
        raise CheckpointError(f"{where}: a special token is no short text.", _GET_ALL)
    return value


def _are_tokens(tokens: Any) -> bool:
    return (
        isinstance(tokens, dict)
        and 0 < len(tokens) <= _MOST_TOKENS
        and all(type(index) is int and 0 <= index < _MOST_TOKENS for index in tokens.values())
    )


def _whole_file(found: JsonObject, where: str) -> tuple[Any, tuple[tuple[str, str], ...]]:
    """Tokens and merges of a tokenizer.json, which newer programs write alone."""
    model = found.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("merges"), list):
        raise CheckpointError(f"{where}/tokenizer.json holds no vocabulary of CLIP.", _GET_ALL)
    pairs = [each.split(" ") if isinstance(each, str) else each for each in model["merges"]]
    return model.get("vocab"), _pairs(pairs, where)


def _merges_file(source: Source, relative: str) -> tuple[tuple[str, str], ...]:
    path, where = source.get(relative), f"{source.name}/{relative}"
    if path is None:
        raise CheckpointError(f"{where} is missing.", _GET_ALL)
    with refusals(where, CheckpointError, _GET_ALL):
        check_kind(sniff(path))
        if path.stat().st_size > _MOST_BYTES:
            raise Refused("is too large for a file of merges.")
        try:
            text = path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refused("is no text in UTF-8.") from error
    lines = [line for line in re.split("\r?\n", text) if line and not line.startswith("#version")]
    return _pairs([line.split(" ") for line in lines], where)


def _pairs(found: list[Any], where: str) -> tuple[tuple[str, str], ...]:
    valid = all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(half, str) for half in pair)
        for pair in found
    )
    if not valid or len(found) > _MOST_TOKENS:
        raise CheckpointError(f"{where}: the merges are no pairs of tokens.", _GET_ALL)
    return tuple((first, second) for first, second in found)
