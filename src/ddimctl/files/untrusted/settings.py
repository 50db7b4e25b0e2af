"""Untrusted settings, read as plain values: JSON files, JSON texts inside others, and YAML files."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ddimctl.errors import brief
from ddimctl.files.untrusted.content import check_kind, sniff
from ddimctl.files.untrusted.guards import Refused, reason

JsonObject = dict[str, Any]
"""The object of a JSON or YAML file, or of a record to write: plain values by name."""

MAX_JSON_BYTES: Final = 8 * 2**20  # in memory twenty times as much
_MAX_YAML_BYTES: Final = 2**16
_MAX_DEPTH: Final = 100
_NAMESPACE: Final = "tag:yaml.org,2002:python/object:argparse.Namespace"
_CORRECT: Final = "Correct it, or get the file again."
# What SafeLoader raises besides its own errors, on wrong values of known tags.
_DAMAGE: Final = (
    *(ValueError, LookupError, ArithmeticError, AttributeError, TypeError, RecursionError),
)


def read_json(
    path: Path, max_bytes: int = MAX_JSON_BYTES, *, infinite: bool = False, paths: bool = False
) -> JsonObject:
    """The object in a JSON file. Raises Refused as parse_json, for files that are too large or hold
    anything else, and OSError.
    """
    check_kind(sniff(path))
    if path.stat().st_size > max_bytes:
        raise Refused("is too large for a file of settings.")
    found = parse_json(path.read_bytes(), infinite=infinite, paths=paths)
    if not isinstance(found, dict):
        raise Refused("does not hold a JSON object.", _CORRECT)
    return found


def parse_json(text: str | bytes, *, infinite: bool = False, paths: bool = False) -> Any:
    """The plain values of a JSON text in UTF-8.

    Raises Refused where it is none, names a value twice, or holds what only Python takes: NaN,
    infinities (unless infinite), integers beyond 64 bits, lone surrogates (unless paths: then those
    that stand in Python for bytes of file names); and where it is nested beyond 100 levels.
    """
    try:
        text = text if isinstance(text, str) else text.decode("utf-8")
        found = json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"is not valid JSON: {reason(error)}.", _CORRECT) from error
    except ValueError as error:  # thousands of digits
        raise Refused("holds an integer of more than 64 bits.", _CORRECT) from error
    except RecursionError as error:
        raise Refused("is nested too deeply.", _CORRECT) from error
    _check_values(found, infinite, "surrogateescape" if paths else "strict")
    return found


def check_format_version(found: Mapping[str, Any], known: int) -> None:
    """Raise Refused unless what one of our own files says is of the format that is known here.

    A file that does not say its version is of the first.
    """
    version = found.get("format_version", 1)
    if type(version) is not int or version != known:
        raise Refused(f"has the format version {brief(version)}, not {known}.")


def read_yaml(path: Path) -> JsonObject:
    """The settings of all sections of a YAML or JSON file in one level; empty where there is none.

    Python objects in it are never made: namespaces, which ermongroup/ddim writes, are read as their
    settings, any other as None. Raises Refused for what parse_json refuses, for aliases, with which
    a small file can fill the memory, and for damaged files. Raises OSError.
    """
    if not path.is_file():
        return {}
    check_kind(sniff(path))
    if path.stat().st_size > _MAX_YAML_BYTES:
        raise Refused("is too large for a file of settings.")
    found = _parse_yaml(path.read_bytes())
    if not isinstance(found, dict):
        raise Refused("does not hold settings by name.", _CORRECT)
    settings: JsonObject = {}
    for key, value in found.items():
        settings |= value if isinstance(value, dict) else {key: value}
    return {str(key): value for key, value in settings.items()}


def _parse_yaml(text: bytes) -> Any:
    import yaml  # only such checkpoints need it

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it has aliases (*name)")
            return super().compose_node(parent, index)

    def _namespace(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(_NAMESPACE, _namespace)
    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, tag, node: None)
    try:
        found = yaml.load(text.decode("utf-8"), Loader)
    except (yaml.YAMLError, *_DAMAGE) as error:
        raise Refused(f"cannot be read: {reason(error)}.", _CORRECT) from error
    _check_values(found)
    return found


def _unique(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):  # readers differ in which of the two they take
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise Refused(f"names {brief(twice)} twice.", _CORRECT)
    return found


def _check_values(found: Any, infinite: bool = False, surrogates: str = "strict") -> None:
    level = [("", found)]  # (the name that a value stands under, the value)
    for _ in range(_MAX_DEPTH):
        inner = list[tuple[Any, Any]]()
        for name, value in level:
            if isinstance(value, dict):
                inner += [(key, key) for key in value]
                inner += value.items()
            elif isinstance(value, list | tuple | set):
                inner += [(name, item) for item in value]
            elif why := _fault(value, infinite, surrogates):
                where = f", in {brief(name)}" if name else ""
                raise Refused(f"holds {why}{where}.", _CORRECT)
        if not inner:
            return
        level = inner
    raise Refused("is nested too deeply.", _CORRECT)


def _fault(value: Any, infinite: bool, surrogates: str) -> str:
    """What is wrong with a value; empty where nothing is."""
    if isinstance(value, str):
        try:
            value.encode("utf-8", surrogates)
        except UnicodeEncodeError:
            return "a text with a lone surrogate"
    elif isinstance(value, float) and not math.isfinite(value):
        return "" if infinite and math.isinf(value) else "a number that is not finite"
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "an integer of more than 64 bits"
    return ""
