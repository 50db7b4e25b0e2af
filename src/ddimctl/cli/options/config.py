"""Options from the environment and from a TOML file, under the flags and over the defaults.

DDIMCTL_SAMPLE_STEPS is --steps of `sample`; so is `steps` in the file's table [sample]. What stands
above all tables is for every command that has the option. --ckpt of a file is as DDIMCTL_CKPT:
latents that name their own checkpoint come before it.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import typer

from ddimctl.cli.options.suggest import did_you_mean, usage_cause
from ddimctl.errors import RequestError

VARIABLE: Final = "DDIMCTL_CONFIG"
_PREFIX: Final = "DDIMCTL"
CKPT: Final = f"{_PREFIX}_CKPT"
_LARGEST: Final = 1_000_000  # bytes
_NOT_IN_FILES: Final = ("--config", "--help", "--version")


def use_config(context: typer.Context, file: Path | None) -> Path | None:
    """Callback of --config, eager: make the defaults of the command's other options.

    Raises RequestError naming the variable, or the file, the table and the key.
    """
    if context.resilient_parsing or context.parent is None:  # completion
        return file
    group = context.parent.params.get("config")
    named = os.environ.get(VARIABLE)
    file = file or group or (Path(named) if named else None)
    found = _from_environment(context)
    for name, (value, where) in (_from_file(context, file) if file else {}).items():
        if name != "ckpt":
            found.setdefault(name, (value, where))
        elif not os.environ.get(CKPT):
            os.environ[CKPT] = value
    by_name = {param.name: param for param in context.command.params}
    for name, (value, where) in found.items():
        try:
            if isinstance(
                by_name[name].process_value(context, value), Path
            ):  # no shell has seen it
                found[name] = (os.path.expanduser(value), where)  # noqa: PTH111, leaves what it cannot
        except typer.TyperException as error:
            why = usage_cause(error, error.message)  # without the flag, which nobody has typed
            raise RequestError(f"{where}: {why}", "Mend it there.") from error
    context.default_map = {name: value for name, (value, _) in found.items()}
    context.with_resource(_told(context, {name: where for name, (_, where) in found.items()}))
    return file


@contextmanager
def _told(context: typer.Context, origins: Mapping[str, str]) -> Iterator[None]:
    """Within, an error about options says which of them nobody has typed, and where they are from."""
    try:
        yield
    except RequestError as error:
        params = flags_of(context.command)
        told = [
            f"--{flag} is from {origins[name]}."
            for flag in dict.fromkeys(re.findall(r"--([a-z][a-z-]*)", str(error)))
            if (name := str(getattr(params.get(flag), "name", ""))) in origins
            and str(context.get_parameter_source(name)).endswith("DEFAULT_MAP")
        ]
        if not told:
            raise
        raise RequestError(error.cause, " ".join([error.remedy, *told]).strip()) from error


def variable(command: str, flag: str) -> str:
    """The environment variable of an option, such as DDIMCTL_SAMPLE_BATCH_SIZE."""
    return f"{_PREFIX}_{command}_{flag}".replace("-", "_").upper()


def flags_of(command: Any) -> dict[str, Any]:
    """The parameters of a command that a file may name, by their long flag without its dashes."""
    flags = {}
    for param in command.params:
        long = [text for text in param.opts if text.startswith("--")]
        if long and long[0] not in _NOT_IN_FILES:
            flags[long[0].removeprefix("--")] = param
        elif param.name == "ckpt":  # where it is an argument
            flags["ckpt"] = param
    return flags


def _from_environment(context: typer.Context) -> dict[str, tuple[Any, str]]:
    """Values, and the variables that they are from, by the parameters' names."""
    found = {}
    for flag, param in flags_of(context.command).items():
        name = variable(str(context.info_name), flag)
        if text := os.environ.get(name):
            found[str(param.name)] = (text.split() if param.multiple else text, name)
    return found


def _from_file(context: typer.Context, file: Path) -> dict[str, tuple[Any, str]]:
    """The same from the file: of the command's table, and of what is above all tables."""
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
            raise RequestError(f"--config {file} is not a file.", "Name a TOML file.")
        if file.stat().st_size > _LARGEST:
            raise RequestError(f"--config {file} is too large for options.")
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise RequestError(
            f"--config {file} cannot be read: {error.strerror}.", "Check the path."
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, and of UTF-8
        why = " ".join(str(error).split()) or "it nests too deeply"
        raise RequestError(f"{file} is not TOML: {why}.", "Mend that line.") from error


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
        raise RequestError(f"{where} must be true or false, not {value!r}.", "Mend it there.")
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
