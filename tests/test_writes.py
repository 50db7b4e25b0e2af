"""Nothing is written but by files/atomic.py, read off the source."""

import ast
from collections.abc import Iterator
from pathlib import Path

import ddimctl

ROOT = Path(ddimctl.__file__).parent

# Where something else opens a file for writing, and why that may be.
EXCEPTIONS = {
    ("files/atomic.py", "temporary.open"): "the temporary itself",
    ("files/atomic.py", "path.open"): "r+, to sync what is there",
    ("files/atomic.py", "stray.open"): "r+, to see whether a stray is locked",
    ("files/atomic.py", "temporary.replace"): "the rename itself",
    ("files/mapped.py", "path.open"): "a dotfile that is mapped while a run fills it",
    ("files/mapped.py", "path.touch"): "the same",
    ("jobs/train/state.py", "torch.save"): "through a hash into a file of open_atomic",
    ("files/pictures/video.py", "av.open"): "a video container in a file of open_atomic",
    ("cli/output/console.py", "os.open"): "the null device",
    ("cli/options/groups.py", "p.replace"): "a parameter of a signature",
}
# Calls that write to a path, whatever their arguments.
WRITING = {
    *("write_text", "write_bytes", "save_file", "save_pretrained", "save_model", "tofile"),
    *("copyfile", "copy", "copy2", "copytree", "copyfileobj", "move", "rename", "renames"),
    *("from_file", "memmap", "NamedTemporaryFile", "mkstemp", "symlink_to", "hardlink_to"),
    *("extractall", "extract", "touch", "truncate"),
}
MODULES_OF_COPYING = {"shutil", "os", "tempfile"}
IN_MEMORY = {"io.BytesIO", "BytesIO", "io.StringIO", "StringIO", "open_atomic"}


def functions(tree: ast.Module) -> Iterator[ast.AST]:
    """The outermost functions and methods, and the module's own statements."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.ClassDef) else [node]


def safe_names(function: ast.AST) -> set[str]:
    """Names that the function binds to a buffer or to what open_atomic gives."""
    names = set()
    for node in ast.walk(function):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            value, target = node.context_expr, node.optional_vars.id
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value, target = node.value, node.targets[0].id
        else:
            continue
        if isinstance(value, ast.Call) and ast.unparse(value.func) in IN_MEMORY:
            names.add(target)
    return names


def writes(call: ast.Call, safe: set[str]) -> bool:
    """Whether the call writes to a file that is not in `safe`, as far as its text tells."""
    name = ast.unparse(call.func)
    owner, _, last = name.rpartition(".")
    given = [*call.args, *(keyword.value for keyword in call.keywords)]
    if last == "save" and owner:  # torch.save(value, file), image.save(file)
        target = call.args[1 if owner == "torch" else 0]
        return ast.unparse(target) not in safe
    if last == "open":
        if owner in ("Image", "os"):
            return owner == "os" and "O_RDONLY" not in ast.unparse(call)
        modes = [each.value for each in given if isinstance(each, ast.Constant)]
        buffers = any(isinstance(each, ast.Name) and each.id in safe for each in given)
        return not buffers and any(set(str(mode)) & set("wax+") for mode in modes if mode)
    if last == "replace":  # of a Path, with one argument; a string's has two
        return bool(owner) and len(given) == 1
    if last in ("copy", "extract", "truncate", "move", "rename"):
        return owner in MODULES_OF_COPYING or last == "rename"
    return last in WRITING and bool(owner)


def found_in(source: str) -> set[str]:
    """The calls of this text that write, as it spells them."""
    tree = ast.parse(source)
    found = set()
    for function in functions(tree):
        safe = safe_names(function)
        for call in (node for node in ast.walk(function) if isinstance(node, ast.Call)):
            if writes(call, safe):
                found.add(ast.unparse(call.func))
    return found


def test_only_the_atomic_write_writes():
    found = {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sorted(ROOT.rglob("*.py"))
        for name in found_in(path.read_text(encoding="utf-8"))
    }
    assert found == set(EXCEPTIONS)


def test_what_counts_as_writing():
    cases = (
        ("open('a', 'w')", True),
        ("path.open(mode='ab')", True),
        ("path.open('rb')", False),
        ("path.write_text('x')", True),
        ("write_bytes(path, data)", False),
        ("torch.save(x, path)", True),
        ("def f():\n with open_atomic(path) as file:\n  torch.save(x, file)", False),
        ("def f():\n buffer = io.BytesIO()\n image.save(buffer, 'PNG')", False),
        ("image.save(path)", True),
        ("safetensors.torch.save_file(x, path)", True),
        ("net.save_pretrained(folder)", True),
        ("os.open(path, os.O_WRONLY)", True),
        ("os.open(folder, os.O_RDONLY)", False),
        ("shutil.copy(a, b)", True),
        ("temporary.replace(target)", True),
        ("'text'.replace('a', 'b')", False),
        ("dataclasses.replace(request, out=None, ckpt=None)", False),
    )
    for code, caught in cases:
        assert bool(found_in(code)) == caught, code
