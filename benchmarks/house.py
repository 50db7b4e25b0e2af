"""`make house`: how the source is laid out, in numbers, and what is wanted of each.

usage: python benchmarks/house.py [ROOT]    the repository's root; this one by default
"""

import ast
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
PACKAGE = ROOT / "src/ddimctl"
TEXTS = {path: path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {path: ast.parse(text) for path, text in TEXTS.items()}
MODULES = {path for path in TREES if path.name != "__init__.py"}


def imported(path: Path, *, lazily: bool) -> set[Path]:
    """Modules of ours that this one imports when it is imported itself, or, lazily, at any time."""
    nodes: Any = ast.walk(TREES[path]) if lazily else TREES[path].body
    names = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddimctl"):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {PACKAGE.parent / f"{name.replace('.', '/')}.py" for name in names} & MODULES


def floors(folder: Path) -> int:
    """The longest chain of modules of the folder, each importing the next when it is imported."""

    @cache
    def below(path: Path) -> int:
        inside = (each for each in imported(path, lazily=False) if folder in each.parents)
        return 1 + max((below(each) for each in inside), default=0)

    return max(below(path) for path in MODULES if folder in path.parents)


def reached(path: Path) -> set[Path]:
    """Modules that are imported sooner or later for this one, with itself."""
    found, todo = set(), [path]
    while todo:
        if (each := todo.pop()) not in found:
            found.add(each)
            todo += imported(each, lazily=True)
    return found


def circles() -> int:
    """Groups of modules each of which imports, sooner or later, all others of its group."""
    whole = {path: reached(path) for path in MODULES}
    groups = {frozenset(b for b in whole[a] if a in whole[b]) for a in MODULES}
    return sum(len(group) > 1 for group in groups)


def functions() -> list[tuple[int, str]]:
    """(lines, where) of every function and method, those inside others too, the longest first."""
    found = []
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                found.append((lines, f"{path.relative_to(PACKAGE)}:{node.name}"))
    return sorted(found, reverse=True)


def copies() -> int:
    """Keywords of calls that hand a value on under its own name: `steps=steps`."""
    nodes = (node for tree in TREES.values() for node in ast.walk(tree))
    words = (node for node in nodes if isinstance(node, ast.keyword))
    return sum(isinstance(word.value, ast.Name) and word.value.id == word.arg for word in words)


def test_cases() -> int:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "not slow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.findall(r"^tests/\S+: (\d+)$", done.stdout, re.M)
    if done.returncode != 0:
        sys.exit(done.stdout)
    return sum(map(int, found))


def main() -> None:
    source, found = "".join(TEXTS.values()), functions()
    (largest, files), *_ = Counter(path.parent for path in MODULES).most_common(1)
    longest, where = found[0]
    jobs = PACKAGE / "jobs"
    job = next(each for each in (jobs / "sample/job.py", jobs / "sample.py") if each in MODULES)
    rows = [
        (f"files in the largest folder ({largest.relative_to(PACKAGE)})", files, 48, "≤ 14"),
        ("import floors of jobs", floors(jobs), 11, "≤ 7"),
        ("circles of imports between files", circles(), 2, "0"),
        (f"longest function ({where})", longest, 100, "≤ 60"),
        ("functions over 60 lines", sum(lines > 60 for lines, _ in found), 7, "0"),
        ("functions over 40 lines", sum(lines > 40 for lines, _ in found), 28, "few"),
        ("dict[str, Any]", source.count("dict[str, Any]"), 183, "≤ 90"),
        ("name=name in calls", copies(), 229, "≤ 90"),
        ("modules that jobs/sample imports, sooner or later", len(reached(job)), 76, "fewer"),
        ("lines of src/ddimctl", source.count("\n"), 20133, "≤ 18,000"),
        ("test cases", test_cases(), 4128, "as much tested"),
    ]
    print(f"{'':<62}{'now':>8}{'0.1.0':>8}   wanted")
    for name, now, before, wanted in rows:
        print(f"{name:<62}{now:>8,}{before:>8,}   {wanted}")


if __name__ == "__main__":
    main()
