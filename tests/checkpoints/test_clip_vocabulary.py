"""CLIP's vocabulary, which is in the package."""

import gzip
from pathlib import Path

import ddimctl.checkpoints.clip.vocabulary as vocabulary

FOLDER = Path(vocabulary.__file__).parent


def test_tokens_have_clips_ids() -> None:
    merges = vocabulary.clip_merges()
    tokens = vocabulary.clip_tokens(merges)
    assert (len(merges), len(tokens)) == (48_894, 49_408)
    assert sorted(tokens.values()) == list(range(49_408))
    # "a photo of a cat", as every implementation of CLIP has it
    words = {"a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368, "!</w>": 256, "!": 0}
    assert {token: tokens[token] for token in words} == words
    assert (tokens["<|startoftext|>"], tokens["<|endoftext|>"]) == (49_406, 49_407)


def test_merges_are_of_tokens_that_are_there_before_them() -> None:
    merges = vocabulary.clip_merges()
    tokens = vocabulary.clip_tokens(merges)
    for first, second in merges:
        assert max(tokens[first], tokens[second]) < tokens[first + second]


def test_special_tokens() -> None:
    assert vocabulary.clip_special()["pad_token"] == "<|endoftext|>"
    assert vocabulary.clip_special("!")["pad_token"] == "!"


def test_licence_lies_beside_it() -> None:
    text = (FOLDER / "LICENSE-clip.txt").read_text(encoding="utf-8")
    assert "Copyright (c) 2021 OpenAI" in text
    assert "Gabriel Ilharco" in text
    assert "WITHOUT WARRANTY OF ANY KIND" in text


def test_file_is_small() -> None:
    packed = (FOLDER / "merges.txt.gz").read_bytes()
    assert len(packed) < 2**18
    assert gzip.decompress(packed).count(b"\n") == 48_894
