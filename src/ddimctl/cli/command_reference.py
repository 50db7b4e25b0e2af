"""The command reference in Markdown, from the commands themselves.

python -m ddimctl.cli.command_reference > docs/commands.md
"""

import inspect
import sys
from collections.abc import Iterator
from typing import Any, Final

import typer

from ddimctl.cli.examples import EXAMPLES
from ddimctl.cli.main import app
from ddimctl.cli.options.config import flags_of, variable

_BEGIN: Final = """\
# Commands

Generated from the program: `python -m ddimctl.cli.command_reference > docs/commands.md`.

Every option of a command can also be set in two other ways: by an environment variable,
`DDIMCTL_COMMAND_OPTION` (`{example}` is `--batch-size` of `sample`), and in a TOML file that
`--config FILE` or `DDIMCTL_CONFIG` names. A flag takes precedence over the variable, the variable
over the file, and the file over the default. A table of the file is for the command of its name;
keys above all tables are for every command that has the option:

```toml
device = "cuda:0"
ckpt = "google/ddpm-cifar10-32"  # as DDIMCTL_CKPT: latents that name their own come before it

[sample]
steps = 50
seeds = ["0-63", 70]  # lists, where the flag takes a comma list or is repeated
no-metadata = true

[train]
model = "small"
```

Paths in the file are relative to the current folder, and may begin with `~`.

| environment variable | |
|---|---|
| `DDIMCTL_CKPT` | the checkpoint where there is no `--ckpt` |
| `DDIMCTL_CONFIG` | the file of `--config` |
| `DDIMCTL_CACHE` | the cache folder (decoded data sets, timesteps of `--tau auto`, inverted images, locations of checkpoints); by default `ddimctl` in `$XDG_CACHE_HOME` or `~/.cache`; it may be removed |
| `DDIMCTL_CACHE_GB` | the largest size of the cache folder in GB, by default 20; the least recently used files are removed first |
| `HF_HOME`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` | of huggingface_hub: its cache, your account, a mirror, offline use |
| `OMP_NUM_THREADS` | number of threads on a CPU |
| `NO_COLOR`, `TERM=dumb` | no colours; with `TERM=dumb` no progress bars either |

`ddimctl --install-completion` installs completion of commands, options and their words for bash, zsh, fish
and PowerShell.
"""
_IMAGES: Final = {
    "sample": ("grid.png", "grid.png of a run"),
    "invert": (
        "inversion.png",
        "NAME.inversion.png: the input image, its reconstruction, and the difference",
    ),
    "interpolate": ("interpolation.png", "grid.png of a path through three images"),
    "reconstruct": ("reconstruct.png", "plot.png: error and cost against the number of steps"),
    "evaluate": (
        "evaluate.png",
        "curve.png: score against number of evaluations, a line for each eta",
    ),
    "reference": (
        "reference.png",
        "statistics of 30,000 avatars, and 256 samples scored with them",
    ),
    "info": ("info.png", "what info prints of the bundled checkpoint"),
    "convert": ("convert.png", "an OpenAI checkpoint, converted and sampled from"),
    "train": ("loss.png", "loss.png of a run"),
    "replay": ("replay.png", "grid.png of a replay, with the same bytes as that of the run"),
}


def reference() -> str:
    """The whole page, ending in a newline."""
    group: Any = typer.main.get_command(app)
    parts = [_BEGIN.format(example=variable("sample", "batch-size"))]
    parts += ["\n".join(_command(name, command)) for name, command in group.commands.items()]
    return "\n".join(parts)


def _command(name: str, command: Any) -> Iterator[str]:
    yield f"## ddimctl {name}\n"
    yield inspect.cleandoc(command.callback.__doc__ or "") + "\n"
    for what, line in EXAMPLES[name]:
        yield f"    {line}  # {what}"
    yield ""
    if name in _IMAGES:
        file, caption = _IMAGES[name]
        yield f"![{caption}](images/{file})\n"
    panels: dict[str, list[str]] = {}
    files = {id(param) for param in flags_of(command).values()}
    for param in command.params:
        if param.param_type_name == "argument":
            panels.setdefault("Arguments", []).append(_row(_names(param), param))
        elif id(param) in files or param.name == "config":
            panel = param.rich_help_panel or "Options"
            panels.setdefault(panel, []).append(_row(_names(param), param))
    for panel, rows in panels.items():
        yield f"| {panel} | default | |\n|---|---|---|"
        yield from rows
        yield ""


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.metavar}{'...' if param.nargs == -1 else ''}`"
    words = param.metavar or "" if not param.is_bool_flag else ""
    if not words and not param.is_bool_flag:
        words = _choices(param)
    return " ".join(f"`{name}`" for name in sorted(param.opts)) + (f" {_cell(words)}" * bool(words))


def _choices(param: Any) -> str:
    words = getattr(param.type_descriptor.annotation, "__args__", ())
    return " | ".join(map(str, words)) or "X"


def _row(names: str, param: Any) -> str:
    if param.required:
        default = "required"
    elif isinstance(param.show_default, str):
        default = param.show_default
    elif param.default is None or param.default is False:
        default = ""
    else:
        default = str(param.default)
    return f"| {names} | {_cell(default)} | {_cell(param.help or '')} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
