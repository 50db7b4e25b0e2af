"""CLIP's vocabulary, which the single files of Stable Diffusion leave out."""

import gzip
import json
from pathlib import Path
from typing import Final

_MERGES: Final = Path(__file__).parent / "merges.txt.gz"
_START: Final = "<|startoftext|>"
_END: Final = "<|endoftext|>"
SIZE: Final = 49_408


def tokenizer_files(pad: str = _END) -> dict[str, bytes]:
    """The files of a CLIPTokenizer's folder, name to content.

    pad: the token that fills a row up, `<|endoftext|>`, or `!` in Stable Diffusion 2 and the second
    encoder of SDXL.
    """
    merges = gzip.decompress(_MERGES.read_bytes()).decode().splitlines()
    special = {"bos_token": _START, "eos_token": _END, "unk_token": _END, "pad_token": pad}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "do_lower_case": True,
        "errors": "replace",
        **special,
    }
    return {
        "vocab.json": json.dumps(_vocabulary(merges), ensure_ascii=False).encode(),
        "merges.txt": "\n".join(("#version: 0.2", *merges, "")).encode(),
        "special_tokens_map.json": json.dumps(special).encode(),
        "tokenizer_config.json": json.dumps(config).encode(),
    }


def _vocabulary(merges: list[str]) -> dict[str, int]:
    """Token to id: the bytes, the bytes that end a word, the merges in order, start and end."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols)]
    tokens += [merge.replace(" ", "") for merge in merges]
    return {token: i for i, token in enumerate((*tokens, _START, _END))}


def _byte_symbols() -> list[str]:
    """A printable character for each byte, as GPT-2 has them: the printable ones first, for the
    others those from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, shown), *(chr(0x100 + i) for i in range(256 - len(shown)))]
