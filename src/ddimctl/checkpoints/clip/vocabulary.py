"""CLIP's vocabulary, which the single files of Stable Diffusion leave out."""

import gzip
from pathlib import Path
from typing import Final

_MERGES: Final = Path(__file__).parent / "merges.txt.gz"
_START: Final = "<|startoftext|>"
END: Final = "<|endoftext|>"


def clip_merges() -> tuple[tuple[str, str], ...]:
    """The pairs of tokens that are joined, the most frequent first."""
    lines = gzip.decompress(_MERGES.read_bytes()).decode().split("\n")[:-1]
    pairs = (line.split(" ") for line in lines)
    return tuple((first, second) for first, second in pairs)


def clip_tokens(merges: tuple[tuple[str, str], ...]) -> dict[str, int]:
    """Ids by token, 0 to 49,407: the bytes, the bytes that end a word, the merges in order, and the
    tokens of the start and the end."""
    symbols = _byte_symbols()
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), *map("".join, merges)]
    return {token: i for i, token in enumerate((*tokens, _START, END))}


def clip_special(pad: str = END) -> dict[str, str]:
    """The special tokens by transformers' names.

    pad: what fills a row up: END, or `!` in Stable Diffusion 2 and the second encoder of SDXL.
    """
    return {"bos_token": _START, "eos_token": END, "unk_token": END, "pad_token": pad}


def _byte_symbols() -> list[str]:
    """A printable character for each byte, as GPT-2 has them: the printable bytes first, for the
    others those from U+0100 on."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [*map(chr, shown), *(chr(0x100 + i) for i in range(256 - len(shown)))]
