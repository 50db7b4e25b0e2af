"""What the project says of itself, in one voice."""

import importlib
import pkgutil
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ddimctl

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]["dev"]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return dict(pins)


def test_version_is_the_same_everywhere():
    newest = re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["version"] == version("ddimctl") == ddimctl.__version__


def test_constraints_pin_every_requirement_and_nothing_else():
    assert set(constraints()) == {requirement.name for requirement in requirements()}


def test_pinned_versions_meet_the_lower_bounds():
    pinned = constraints()
    assert [str(each) for each in requirements() if pinned[each.name] not in each.specifier] == []


def test_every_runtime_requirement_has_a_lower_bound_and_no_upper_one():
    for requirement in map(Requirement, PROJECT["dependencies"]):
        assert [clause.operator for clause in requirement.specifier] == [">="]


def test_every_module_can_be_imported():
    modules = [found.name for found in pkgutil.walk_packages(ddimctl.__path__, "ddimctl.")]
    assert len(modules) > 100
    for module in modules:
        if not module.endswith("__main__"):
            importlib.import_module(module)


def test_public_names_can_be_had():
    assert set(ddimctl.__all__) <= set(dir(ddimctl))
    assert [name for name in ddimctl.__all__ if getattr(ddimctl, name) is None] == []


def test_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ddimctl.nonsense  # noqa: B018


def test_licence_is_in_the_package_data():
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("MIT License\n")
    assert PROJECT["license"] == "MIT"
