"""The rules of the layers, read off the imports; each test lists all that breaks its rule."""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import ddimctl

ROOT = Path(ddimctl.__file__).parent
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}
ENTRY_POINTS = {"__init__.py", "__main__.py"}  # they hand names on and belong to no layer
SOURCES = {name: tree for name, tree in TREES.items() if name not in ENTRY_POINTS}

# Each layer imports from those to its right, not from its neighbour; all import errors.
LAYERS = (
    ("cli", "api"),
    ("jobs",),
    ("metrics", "checkpoints"),
    ("files", "runtime"),
    ("diffusion",),
)
# Inside jobs: a command's folder, and the other commands' folders that it imports from.
# The modules beside the folders are shared: all import them, and they import no folder.
JOBS = {
    "replay": {"interpolate", "invert", "sample"},
    "interpolate": {"invert", "sample"},
    "invert": {"sample"},
    "evaluate": {"sample"},
    "sample": set(),
    "train": set(),
}
# Third-party packages and the only layers that may import them; unnamed ones are free.
HOMES = {
    "typer": {"cli"},
    "rich": {"cli"},
    "click": set(),
    "diffusers": {"checkpoints"},
    "transformers": {"checkpoints"},
    "huggingface_hub": {"checkpoints"},
    "PIL": {"files", "api"},
    "av": {"files"},
    "torch_fidelity": {"metrics"},
    "tensorboard": set(),
}
NOT_FOR_MATHEMATICS = {
    *("ctypes", "io", "json", "os", "pathlib", "shutil", "socket", "subprocess", "sys"),
    *("tempfile", "threading", "numpy", "PIL", "safetensors"),
}
RUNS_CODE = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"}


def layer_of(source: str) -> str:
    """The package below ddimctl, or the module's own name at the top."""
    return source.removesuffix(".py").split("/")[0]


def names_in(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[str]:
    """Dotted names of what these nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def imports() -> Iterator[tuple[str, str]]:
    """(source, dotted name) of every import, wherever in the file."""
    for source, tree in SOURCES.items():
        yield from ((source, name) for name in names_in(ast.walk(tree)))


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(source:line, call) of every call."""
    for source, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield f"{source}:{node.lineno}", node


def at_module_level(tree: ast.Module) -> Iterator[str]:
    """What importing the module imports: in no function, and not for the type checker alone."""
    statements = list(tree.body)
    while statements:
        node = statements.pop(0)
        yield from names_in([node])
        if isinstance(node, ast.Try):
            statements += [*node.body, *node.orelse, *node.finalbody]
            statements += chain.from_iterable(each.body for each in node.handlers)
        elif isinstance(node, ast.If | ast.ClassDef | ast.With):
            checked = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            statements += [*([] if checked else node.body), *getattr(node, "orelse", [])]


def source_of(name: str) -> str | None:
    """The file that `import NAME` runs: the module, or the one that defines the last word."""
    path = name.removeprefix("ddimctl").lstrip(".").replace(".", "/")
    tries = (path, path.rpartition("/")[0])
    names = (f"{each}{end}" for each in tries for end in (".py", "/__init__.py"))
    return next((each for each in names if each in TREES), None)


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Circles of imports, one for each file where a walk along the imports comes back."""
    found, done = [], set()

    def walk(source: str, path: tuple[str, ...]) -> None:
        if source in path:
            found.append(" → ".join((*path[path.index(source) :], source)))
        elif source not in done:
            for imported in sorted(graph[source]):
                walk(imported, (*path, source))
            done.add(source)

    for source in graph:
        walk(source, ())
    return found


def test_every_package_is_a_known_layer():
    assert {layer_of(source) for source in SOURCES} == {*chain.from_iterable(LAYERS), "errors"}
    folders = {source.split("/")[1] for source in SOURCES if source.count("/") > 1}
    assert set(JOBS) <= folders


def test_layers_import_only_from_those_to_their_right():
    place = {layer: i for i, layers in enumerate(LAYERS) for layer in layers} | {"errors": 9}
    offenders = []
    for source, name in imports():
        package, _, rest = name.partition(".")
        layer, other = layer_of(source), rest.split(".")[0]
        if package == "ddimctl" and layer != other and place[layer] >= place.get(other, -1):
            offenders.append(f"{source} imports {name}")
    assert offenders == []


def test_commands_import_only_from_those_before_them():
    offenders = []
    for source, name in imports():
        other = name.removeprefix("ddimctl.jobs.").split(".")[0]
        if source.startswith("jobs/") and name.startswith("ddimctl.jobs.") and other in JOBS:
            folder = source.split("/")[1]
            if other != folder and other not in JOBS.get(folder, ()):
                offenders.append(f"{source} imports {name}")
    assert offenders == []


def test_modules_import_each_other_in_no_circle():
    graph = {
        source: {file for name in at_module_level(tree) if (file := source_of(name))}
        for source, tree in SOURCES.items()
    }
    assert circles(graph) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a → b → c → a"]


def test_third_party_packages_stay_in_their_layers():
    offenders = [
        f"{source} imports {name}"
        for source, name in imports()
        if layer_of(source) not in HOMES.get(name.split(".")[0], {layer_of(source)})
    ]
    assert offenders == []


def test_mathematics_knows_no_package_but_torch():
    offenders = [
        f"{source} imports {name}"
        for source, name in imports()
        if layer_of(source) == "diffusion" and name.split(".")[0] in NOT_FOR_MATHEMATICS
    ]
    assert offenders == []


def test_imports_are_absolute():
    assert [f"{source} imports {name}" for source, name in imports() if name[0] == "."] == []


def test_only_the_command_line_prints():
    printed = [at for at, call in calls() if ast.unparse(call.func) in ("print", "input")]
    printed += [
        source for source, name in imports() if name in ("sys.stdout", "sys.stderr", "sys.stdin")
    ]
    assert [at for at in printed if layer_of(at) != "cli"] == []


def test_torch_load_names_weights_only():
    offenders = [
        at
        for at, call in calls()
        if ast.unparse(call.func) == "torch.load"
        and "weights_only=True" not in [ast.unparse(keyword) for keyword in call.keywords]
    ]
    assert offenders == []


def test_nothing_runs_pickles_or_code_of_strangers():
    offenders = [at for at, call in calls() if ast.unparse(call.func) in RUNS_CODE]
    offenders += [
        at
        for at, call in calls()
        for keyword in call.keywords
        if keyword.arg == "trust_remote_code" and ast.unparse(keyword.value) != "False"
    ]
    assert offenders == []
