"""The rules of the layers, read off the imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ddimctl

ROOT = Path(ddimctl.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

MAY_IMPORT = {
    "diffusion": {"errors"},
    "runtime": {"errors", "diffusion"},
    "checkpoints": {"errors", "diffusion", "files", "runtime"},
    "files": {"errors", "diffusion"},
    "metrics": {"errors", "diffusion"},
    "jobs": {"errors", "diffusion", "runtime", "checkpoints", "files", "metrics"},
    "cli": {"errors", "diffusion", "runtime", "checkpoints", "files", "metrics", "jobs"},
    "errors": set(),
}
# Third-party packages and the only layers that may import them; unnamed ones are free.
HOMES = {
    "typer": {"cli"},
    "rich": {"cli"},
    "click": set(),
    "diffusers": {"checkpoints"},
    "huggingface_hub": {"checkpoints"},
    "PIL": {"files"},
    "av": {"files"},
    "torch_fidelity": {"metrics"},
    "tensorboard": set(),
}
ENTRY_POINTS = {"__init__", "__main__"}  # they hand names on and belong to no layer


def layer_of(source: Path) -> str:
    """The package below ddimctl, or the module's own name at the top."""
    inside = source.relative_to(ROOT)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports_of(source: Path) -> Iterator[str]:
    """Dotted names of everything imported, wherever in the file."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls_of(source: Path) -> Iterator[ast.Call]:
    tree = ast.parse(source.read_text(encoding="utf-8"))
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def each_source(argument: str = "source") -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        argument, SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES]
    )


def test_every_package_is_a_known_layer():
    assert {layer_of(path) for path in SOURCES} - ENTRY_POINTS == set(MAY_IMPORT)


@each_source()
def test_layer_imports_only_from_those_to_its_right(source):
    layer = layer_of(source)
    if layer in ENTRY_POINTS:
        return
    for name in imports_of(source):
        package, _, rest = name.partition(".")
        if package == "ddimctl":
            target = rest.split(".")[0]
            assert target == layer or target in MAY_IMPORT[layer], f"{layer} imports {name}"


@each_source()
def test_third_party_packages_stay_in_their_layers(source):
    for name in imports_of(source):
        package = name.split(".")[0]
        if package in HOMES and layer_of(source) not in ENTRY_POINTS:
            assert layer_of(source) in HOMES[package], f"{layer_of(source)} imports {name}"


@each_source()
def test_mathematics_knows_no_package_but_torch(source):
    if layer_of(source) != "diffusion":
        return
    outside = {
        "ctypes", "io", "json", "os", "pathlib", "shutil", "socket", "subprocess", "sys",
        "tempfile", "threading", "numpy", "PIL", "safetensors",
    }  # fmt: skip
    assert not {name.split(".")[0] for name in imports_of(source)} & outside


@each_source()
def test_only_the_command_line_prints(source):
    if layer_of(source) == "cli":
        return
    names = [call.func.id for call in calls_of(source) if isinstance(call.func, ast.Name)]
    assert not {"print", "input"} & set(names)
    assert not {"sys.stdout", "sys.stderr"} & set(imports_of(source))


@each_source()
def test_torch_load_names_weights_only(source):
    for call in calls_of(source):
        if ast.unparse(call.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert given.get("weights_only") == "True", f"line {call.lineno}"


@each_source()
def test_nothing_runs_pickles_or_code_of_strangers(source):
    refused = {"eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads"}
    for call in calls_of(source):
        assert ast.unparse(call.func) not in refused, f"line {call.lineno}"
        for keyword in call.keywords:
            if keyword.arg == "trust_remote_code":
                assert ast.unparse(keyword.value) == "False"
