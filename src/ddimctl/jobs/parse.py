"""Texts of options into values: pure functions of (text, flag) that raise RequestError alone."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ddimctl.diffusion.timesteps import AUTO, KINDS
from ddimctl.errors import RequestError, brief, did_you_mean

MAX_SEED: Final = 2**63 - 1
MAX_IMAGES: Final = 1_000_000
MAX_SIDE: Final = 16_384
MAX_CLASS: Final = 255  # characters: names are those of folders
MAX_PROMPT: Final = 10_000  # characters
MAX_PROMPT_FILE: Final = 10_000_000
MAX_TAU_BYTES: Final = 1_000_000
COLOURS: Final = {"black": (0, 0, 0), "white": (255, 255, 255)}

_INTEGER = "[0-9]{1,19}"  # int() refuses thousands of digits with an error of its own
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_DURATION = re.compile("".join(f"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _SECONDS))
_REPEATED: Final = "Name each seed once."


def parse_seeds(text: str, option: str = "--seeds") -> tuple[int, ...]:
    """Seeds such as "0-63,70", ranges with both ends, in the order given, each once."""
    seeds: dict[int, None] = {}
    for item in text.split(","):
        match = re.fullmatch(rf"\s*({_INTEGER})(?:\s*-\s*({_INTEGER}))?\s*", item)
        if not match:
            raise RequestError(
                f"{option}: {brief(item)} is not a seed or a range.", "Write --seeds 0-63,70."
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise RequestError(
                f"{option}: the range {brief(item)} runs backwards.", f"Write {last}-{first}."
            )
        if last > MAX_SEED:
            raise RequestError(f"{option}: {brief(item)} is beyond 2^63 - 1.", "Name smaller ones.")
        if len(seeds) + last - first + 1 > MAX_IMAGES:
            raise RequestError(
                f"{option} names more than {MAX_IMAGES:,} images.", "Split them over several runs."
            )
        for seed in range(first, last + 1):
            if seed in seeds:
                raise RequestError(f"{option} names {seed} twice.", _REPEATED)
            seeds[seed] = None
    return tuple(seeds)


def parse_timesteps(text: str, option: str = "--tau") -> str | tuple[int, ...]:
    """A kind of timesteps, "auto", or explicit ones: "0,250,999", or the name of a file with them.

    Their range is checked where the checkpoint's T is known.
    """
    return text if text in (*KINDS, AUTO) else _listed_timesteps(text, option)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(H, W) in pixels, from "HxW", or "N" for N x N."""
    match = re.fullmatch(rf"({_INTEGER})(?:[xX×]({_INTEGER}))?", text.strip())
    if not match:
        raise RequestError(
            f"{option}: {brief(text)} is not a size.", "Write HEIGHTxWIDTH, or N for a square."
        )
    size = int(match[1]), int(match[2] or match[1])
    if not all(1 <= side <= MAX_SIDE for side in size):
        raise RequestError(f"{option}: each side of {brief(text)} must be in 1 ... {MAX_SIDE}.")
    return size


def parse_classes(text: str, option: str = "--class") -> tuple[str, ...]:
    """Class names or indices, as written; the checkpoint knows which exist."""
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise RequestError(
            f"{option}: {brief(text)} has an empty name.", "Write names such as peep,pixel."
        )
    for name in names:
        if len(name) > MAX_CLASS:
            raise RequestError(f"{option}: {brief(name)} is too long for the name of a class.")
    return names


def parse_counts(text: str, option: str) -> tuple[int, ...]:
    """Numbers above 0, such as "10,20,50", in the order given, each once."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch("[0-9]{1,9}", word) or int(word) < 1:
            raise RequestError(
                f"{option}: {brief(word)} is not a number in 1 ... 999,999,999.",
                f"Write {option} 10,20,50.",
            )
    return tuple(dict.fromkeys(map(int, words)))


def parse_numbers(text: str, option: str, low: float, high: float) -> tuple[float, ...]:
    """Numbers in low ... high, such as "0,0.2,1", in the order given, each once."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not re.fullmatch(_NUMBER, word) or not low <= float(word) <= high:
            raise RequestError(
                f"{option}: {brief(word)} is not a number in {low:g} ... {high:g}.",
                f"Write {option} {low:g},{high:g}, for example.",
            )
    return tuple(dict.fromkeys(map(float, words)))


def parse_channels(text: str, option: str = "--channels") -> int:
    """1 or 3."""
    return int(parse_choices(text, option, ("1", "3"))[0])


def parse_choices(text: str, option: str, choices: Sequence[str]) -> tuple[str, ...]:
    """Some of the choices, in the choices' order, from a comma list."""
    chosen = {word.strip() for word in text.split(",")}
    for word in sorted(chosen - set(choices)):
        raise RequestError(
            f"{option}: unknown word {brief(word)}.{did_you_mean(word, choices)}",
            f"Choose from {', '.join(choices)}.",
        )
    return tuple(choice for choice in choices if choice in chosen)


def parse_colour(text: str, option: str) -> tuple[int, int, int]:
    """Red, green, blue in 0 ... 255, from "black", "white", "#rrggbb" or "r,g,b"."""
    word = text.strip().lower()
    if word in COLOURS:
        return COLOURS[word]
    if re.fullmatch("#[0-9a-f]{6}", word):
        return int(word[1:3], 16), int(word[3:5], 16), int(word[5:7], 16)
    match = re.fullmatch(r"([0-9]{1,3})\s*,\s*([0-9]{1,3})\s*,\s*([0-9]{1,3})", word)
    if match and all(int(level) <= 255 for level in match.groups()):
        return int(match[1]), int(match[2]), int(match[3])
    raise RequestError(
        f"{option}: {brief(text)} is not a colour.", "Write black, white, #rrggbb or r,g,b."
    )


def parse_duration(text: str, option: str) -> float:
    """Seconds, above 0, from "90", "90s", "30m", "2h30m" or "1d"."""
    word = text.strip().lower()
    match = _DURATION.fullmatch(word)
    if re.fullmatch(_NUMBER, word):
        seconds = float(word)
    elif match:
        seconds = sum(float(match[unit] or 0) * scale for unit, scale in _SECONDS.items())
    else:
        raise RequestError(
            f"{option}: {brief(text)} is not a duration.", "Write 90s, 30m, 2h30m or 1d."
        )
    if seconds <= 0:
        raise RequestError(f"{option} must be above 0.", "Write 90s, 30m or 2h30m.")
    return seconds


def parse_fraction(text: str, option: str) -> float:
    """A share in [0, 1), from "0.02" or "2%"."""
    match = re.fullmatch(r"([0-9]{0,9}\.?[0-9]{0,9})(%?)", text.strip())
    try:
        share = float(match[1]) / (100 if match[2] else 1) if match else 1.0
    except ValueError:  # "." or nothing before the sign
        share = 1.0
    if share >= 1:
        raise RequestError(f"{option}: {brief(text)} is not a share below 1.", "Write 0.02 or 2%.")
    return share


def parse_texts(texts: Sequence[str], option: str) -> tuple[str, ...]:
    """The texts, as they are."""
    return tuple(texts)


def parse_prompts(texts: Sequence[str], option: str = "--prompt") -> tuple[str, ...]:
    """The prompts, as they are."""
    return tuple(parse_prompt(text, option) for text in texts)


def parse_prompt(text: str, option: str = "--negative") -> str:
    """The text, if it is one that files and terminals can hold."""
    if len(text) > MAX_PROMPT or any(unicodedata.category(c) in ("Cc", "Cs") for c in text):
        raise RequestError(
            f"{option}: {brief(text)} is no prompt.",
            f"A prompt is one line of at most {MAX_PROMPT:,} characters.",
        )
    return text


def read_prompts(path: Path, option: str = "--prompts") -> tuple[str, ...]:
    """The prompts of a UTF-8 file, one on each line. Raises RequestError naming a bad line."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            lines = file.read(MAX_PROMPT_FILE).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"{option} {path} cannot be read: {reason}.") from error
    if not lines:
        raise RequestError(f"{option} {path} is empty.", "Write one prompt on each line.")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise RequestError(f"{option} {path}: line {number} is blank.", "Remove it.")
    return tuple(
        parse_prompt(line, f"{option} {path}, line {n}") for n, line in enumerate(lines, 1)
    )


def parse_flags(texts: Sequence[str], option: str = "--model-flag") -> tuple[tuple[str, str], ...]:
    """Names and values of "num_heads=4" and its like; the checkpoint's family knows which exist."""
    flags: dict[str, str] = {}
    for text in texts:
        name, sign, value = (part.strip() for part in text.partition("="))
        if not (name and sign and value):
            raise RequestError(
                f"{option}: {brief(text)} is not a name and a value.",
                "Write --model-flag num_heads=4.",
            )
        if flags.get(name, value) != value:
            raise RequestError(f"{option} names {brief(name)} twice.", "Name it once.")
        flags[name] = value
    return tuple(flags.items())


def _listed_timesteps(text: str, option: str) -> tuple[int, ...]:
    if re.fullmatch(r"[0-9\s,]+", text):
        return _integers(text, option)
    try:
        if not Path(text).is_file():
            raise RequestError(
                f"{option}: {brief(text)} is not a kind of timesteps, a list or a file."
                f"{did_you_mean(text, KINDS)}",
                f"Choose {', '.join(KINDS)}, a list such as 0,250,999, or a file of integers.",
            )
        if Path(text).stat().st_size > MAX_TAU_BYTES:
            raise RequestError(f"{option}: the file {brief(text)} is too large for a list.")
        content = Path(text).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise RequestError(f"{option}: cannot read {brief(text)}: {reason}.") from error
    return _integers(content, f"{option} {brief(text)}")


def _integers(text: str, where: str) -> tuple[int, ...]:
    words = text.replace(",", " ").split()
    if not words:
        raise RequestError(f"{where} holds no timesteps.", "Give some, such as 0,250,500,999.")
    for word in words:
        if not re.fullmatch(_INTEGER, word):
            raise RequestError(
                f"{where}: {brief(word)} is not a timestep.", "Give integers from 0 to T - 1."
            )
    return tuple(map(int, words))
