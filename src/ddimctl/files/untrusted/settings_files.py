"""Settings that training scripts leave beside their weights: YAML or JSON, read as plain values."""

from pathlib import Path
from typing import Any, Final

from ddimctl.errors import CheckpointError
from ddimctl.files.untrusted.content import check_content

_MAX_BYTES: Final = 2**16
_DAMAGE: Final = (
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    TypeError,
    RecursionError,
)
_NAMESPACE: Final = "tag:yaml.org,2002:python/object:argparse.Namespace"


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of all sections of the file in one level; empty where there is no such file.

    JSON is YAML too. Python objects in a YAML file are never made: namespaces, which
    ermongroup/ddim writes, are read as their settings, and any other as None. Aliases, with which
    a small file can fill the memory, are refused. Raises CheckpointError for a damaged file.
    """
    if not path.is_file():
        return {}
    check_content(path, path.name)
    if path.stat().st_size > _MAX_BYTES:
        raise CheckpointError(f"{path.name} is too large for a settings file.")
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
        found = yaml.load(path.read_text("utf-8"), Loader)
    except _DAMAGE as error:  # wrong values of known tags make SafeLoader raise any of them
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path.name} cannot be read: {reason}.", "Correct it.") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path.name} cannot be read: {reason}.", "Correct it.") from error
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}.") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path.name} does not hold settings by name.", "Correct it.")
    settings: dict[str, Any] = {}
    for key, value in found.items():
        settings |= value if isinstance(value, dict) else {key: value}
    return {str(key): value for key, value in settings.items()}
