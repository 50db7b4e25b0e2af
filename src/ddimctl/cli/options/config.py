"""Options from the environment and from a TOML file, under the flags and over the defaults.

DDIMCTL_SAMPLE_STEPS is --steps of `sample`; so is `steps` in the file's table [sample]. What stands
above all tables is for every command that has the option. --ckpt of a file is as DDIMCTL_CKPT:
latents that name their own checkpoint come before it. Typer reads the variables.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer

from ddimctl.errors import RequestError, did_you_mean

VARIABLE: Final = "DDIMCTL_CONFIG"
_PREFIX: Final = "DDIMCTL"
CKPT: Final = f"{_PREFIX}_CKPT"
_PLACES: Final = "ddimctl.config.places"  # in the context: by parameter, where in the file
_LARGEST: Final = 1_000_000  # bytes
_NOT_IN_FILES: Final = ("--config", "--help", "--version")


def use_config(context: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config, eager: make the defaults of the command's other options.

    Raises RequestError naming the file, the table and the key.
    """
    if context.resilient_parsing or context.parent is None:  # completion
        return file
    group = context.parent.params.get("config")
    named = os.environ.get(VARIABLE)
    file = file or group or (Path(named) if named else None)
    found = _from_file(context, file) if file else {}
    ckpt, _ = found.pop("ckpt", (None, ""))
    if ckpt and not os.environ.get(CKPT):
        os.environ[CKPT] = ckpt
    context.default_map = {name: value for name, (value, _) in found.items()}
    context.meta[_PLACES] = {name: place for name, (_, place) in found.items()}
    context.with_resource(_naming_origins(context))
    return file


def origin(context: typer.Context, param: Any) -> str:
    """The variable, or the place in a file, that an option's value is from; "" where neither."""
    source = str(context.get_parameter_source(param.name))
    if source.endswith("ENVIRONMENT"):
        return str(param.envvar)
    if source.endswith("DEFAULT_MAP"):
        return str(context.meta[_PLACES][param.name])
    return ""


@contextmanager
def _naming_origins(context: typer.Context) -> Iterator[None]:
    """Within, an error about options says which of them nobody has typed, and where they are from."""
    try:
        yield
    except RequestError as error:
        params = flags_of(context.command)
        origins = [
            f"--{flag} comes from {place}."
            for flag in dict.fromkeys(re.findall(r"--([a-z][a-z-]*)", str(error)))
            if flag in params and (place := origin(context, params[flag]))
        ]
        if not origins:
            raise
        raise RequestError(error.cause, " ".join([error.remedy, *origins]).strip()) from error


def variable(command: str, flag: str) -> str:
    """The environment variable of an option, such as DDIMCTL_SAMPLE_BATCH_SIZE."""
    return f"{_PREFIX}_{command}_{flag}".replace("-", "_").upper()


def flags_of(command: Any) -> dict[str, Any]:
    """The parameters of a command that a file may name, by their long flag without its dashes."""
    flags = {}
    for param in command.params:
        flag = long_flag(param)
        if flag.startswith("--") and flag not in _NOT_IN_FILES:
            flags[flag.removeprefix("--")] = param
        elif param.name == "ckpt":  # where it is an argument
            flags["ckpt"] = param
    return flags


def long_flag(param: Any) -> str:
    """Such as --num, or what the help calls an argument."""
    long = (text for text in param.opts if text.startswith("--"))
    return str(next(long, param.metavar or param.name))


def _from_file(context: typer.Context, file: Path) -> dict[str, tuple[Any, str]]:
    """Values, and their places, by parameter: of the command's table, and of what is above all tables."""
    content = _read(file)
    group: Any = context.find_root().command
    flags = {name: flags_of(command) for name, command in group.commands.items()}
    anywhere = {flag for each in flags.values() for flag in each}
    tables = {name: value for name, value in content.items() if isinstance(value, dict)}
    common = {name: value for name, value in content.items() if name not in tables}
    _check_names(f"{file}", "table", tables, flags)
    _check_names(f"{file}", "option", common, anywhere)
    for name, table in tables.items():
        _check_names(f"{file}: [{name}]", "option", table, flags[name])
    own = flags[str(context.info_name)]
    found = {}
    for where, table in (
        (f"{file}", common),
        (f"{file}: [{context.info_name}]", tables.get(str(context.info_name), {})),
    ):
        for key, value in table.items():
            if param := own.get(_flag(key)):
                place = f"{where} {key}" if where.endswith("]") else f"{where}: {key}"
                found[str(param.name)] = (_value(param, value, place), place)
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.is_dir() or (file.exists() and not file.is_file()):
            raise RequestError(f"--config {file} is not a file.", "Pass a TOML file.")
        if file.stat().st_size > _LARGEST:
            raise RequestError(f"--config {file} is too large for options.")
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise RequestError(
            f"--config {file} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, and of UTF-8
        why = " ".join(str(error).split()) or "it nests too deeply"
        raise RequestError(f"{file} is not TOML: {why}.", "Correct that line.") from error


def _check_names(
    where: str, kind: str, names: Iterable[str], known: Mapping[str, Any] | set[str]
) -> None:
    for name in names:
        if (name if kind == "table" else _flag(name)) not in known:
            raise RequestError(
                f"{where}: unknown {kind} '{name}'.{did_you_mean(_flag(name), known)}",
                "ddimctl --help" if kind == "table" else "ddimctl COMMAND --help names them.",
            )


def _flag(key: str) -> str:
    return key.replace("_", "-")


def _value(param: Any, value: Any, where: str) -> Any:
    """A TOML value as the words of the command line, which the option itself then converts."""
    if getattr(param, "is_bool_flag", False):
        if isinstance(value, bool):
            return value
        raise RequestError(
            f"{where} must be true or false, not {value!r}.", "Correct the value there."
        )
    if any("\0" in str(each) for each in (value if isinstance(value, list) else [value])):
        raise RequestError(f"{where} holds a zero character.", "Correct the value there.")
    if param.multiple and not isinstance(value, list):
        value = [value]
    if isinstance(value, list) and all(_is_plain(item) for item in value):
        if param.multiple:
            return [str(item) for item in value]
        if "LIST" in (param.metavar or ""):
            return ",".join(map(str, value))
    if not _is_plain(value):
        kind = "a list" if isinstance(value, list) else f"{str(value).lower()}"
        raise RequestError(f"{where} cannot be {kind}.", "Write a text or a number.")
    return str(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)
