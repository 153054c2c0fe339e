"""Imports run one way, cost little, and find the package that is installed."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import gru4rec_fast
from tests.conftest import is_installed

PACKAGE = Path(gru4rec_fast.__file__).parent

# A sub-package imports only from sub-packages of a lower level and from itself (docs/architecture.md). "_root" are the
# private modules of the package itself, which choose the implementation of an operator.
LEVEL = {
    "_root": 1,
    "ops": 2,
    "data": 3,
    "nn": 4,
    "optim": 4,
    "profiling": 4,
    "evaluation": 5,
    "training": 6,
    "models": 7,
    "integrations": 7,
    "cli": 8,
}
# Imports from a higher level that are allowed, by file and module: the backend calls the registrations of the operators
# when it loads a library.
EXCEPTIONS = {("_backend.py", "gru4rec_fast.ops._registry")}
USED_FROM_TRAINING_ON = "profiling"


def sub_package_of(module: str) -> str:
    """Return the sub-package of a dotted module name of gru4rec_fast."""
    parts = module.split(".")
    if len(parts) == 1:
        return "_root"
    if parts[1] in LEVEL:
        return parts[1]
    home = gru4rec_fast._SUBPACKAGE_OF.get(parts[1], "")  # a public name, imported from the package itself
    return home if home in LEVEL else "_root"


def imported_modules(path: Path) -> set[str]:
    """Return all modules that a file imports, also in functions; `from a import b` gives a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full, from gru4rec_fast..."
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))
# The package imports its public names from all sub-packages at first use, so its own imports are not checked.
ROOT = PACKAGE / "__init__.py"


def module_graph(files: list[Path], package: Path) -> dict[str, set[str]]:
    """Return for each module of a package the modules of the package that it imports, also in functions.

    Importing a.b.c from outside of a.b runs the package a.b first, so it counts as an import of a.b too.
    """

    def name_of(path: Path) -> str:
        parts = path.relative_to(package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def run_by(imported: str, importer: str) -> set[str]:
        name = imported.removeprefix(f"{package.name}.")
        home = gru4rec_fast._SUBPACKAGE_OF.get(name)  # None unless it is a public name of the package
        parts = (imported if home is None else f"{package.name}.{home}").split(".")
        prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        return {name for name in prefixes & names if name == imported or not f"{importer}.".startswith(f"{name}.")}

    names = {name_of(path) for path in files}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in files:
        importer = name_of(path)
        for imported in imported_modules(path):
            if not any(path.name == file and imported.startswith(name) for file, name in EXCEPTIONS):
                graph[importer] |= run_by(imported, importer) - {importer}
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        ahead = [start]
        while ahead:
            new = graph[ahead.pop()] - found
            found |= new
            ahead += new
        return found

    reach = {name: reached(name) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_there_is_no_circle_of_imports() -> None:
    assert circles(module_graph([path for path in FILES if path != ROOT], PACKAGE)) == []


@pytest.mark.parametrize("way", ["import pack.two", "from pack import two", "from pack.two import x"])
def test_a_circle_is_found_where_a_function_closes_it(tmp_path: Path, way: str) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    files = {
        "__init__": "",
        "one": f"def late():\n    {way}\n",
        "two": "import pack.three\nx = 1\n",
        "three": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import one\n",
        "four": "import pack.one\n",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    paths = sorted(package.glob("*.py"))
    assert circles(module_graph(paths, package)) == [{"pack.one", "pack.two", "pack.three"}]
    (package / "three.py").write_text("")
    assert circles(module_graph(paths, package)) == []


def test_a_circle_is_found_by_way_of_a_package(tmp_path: Path) -> None:
    files = {"pack/__init__": "", "pack/one": "import pack.room.a\n", "pack/room/__init__": "import pack.room.b\n"}
    files |= {"pack/room/a": "", "pack/room/b": "import pack.room.a\nimport pack.one\n"}
    (tmp_path / "pack" / "room").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = [tmp_path / f"{name}.py" for name in files]
    assert circles(module_graph(paths, tmp_path / "pack")) == [{"pack.one", "pack.room", "pack.room.b"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    importer = sub_package_of(".".join(["gru4rec_fast", *path.relative_to(PACKAGE).parts]))
    if path == ROOT:
        pytest.skip("the package imports its public names from all sub-packages at first use")
    for module in imported_modules(path):
        if not module.startswith("gru4rec_fast"):
            continue
        if any(path.name == file and module.startswith(name) for file, name in EXCEPTIONS):
            continue
        imported = sub_package_of(module)
        if imported == importer:
            continue
        assert LEVEL[imported] < LEVEL[importer], (
            f"{path}: {importer} must not import {module} ({imported} is not on a lower level)"
        )
        if imported == USED_FROM_TRAINING_ON:
            assert LEVEL[importer] >= LEVEL["training"], f"{path}: {module} is used from training on"


def test_every_sub_package_has_a_level() -> None:
    sub_packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sub_packages == set(LEVEL) - {"_root"}


OPERATORS = [path for path in FILES if path.parent.name == "ops"]


@pytest.mark.parametrize("path", OPERATORS, ids=lambda path: path.name)
def test_operators_import_torch_the_backend_and_each_other(path: Path) -> None:
    for module in imported_modules(path):
        top = module.split(".")[0]
        known = top in sys.stdlib_module_names or top == "torch"
        assert known or f"{module}.".startswith(("gru4rec_fast._backend.", "gru4rec_fast.ops.")), module


def reached_by_references(paths: list[Path]) -> tuple[set[str], set[str]]:
    """Return the functions `*_reference` of files, and all names that they use, directly or through others."""
    uses: dict[str, set[str]] = {}
    for path in paths:
        tree, own = ast.parse(path.read_text()), f"gru4rec_fast.ops.{path.stem}"
        names = {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        definitions: dict[str, ast.stmt] = {}
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                definitions[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                definitions |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        names |= {name: f"{own}.{name}" for name in definitions}
        for name, node in definitions.items():
            used = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - {name}
            uses[f"{own}.{name}"] = {names[other] for other in used & set(names)}
    references = {name for name in uses if name.endswith("_reference")}
    reached, pending = set(references), list(references)
    while pending:
        new = uses.get(pending.pop(), set()) - reached
        reached |= new
        pending += new
    return references, reached


DECIDES = ("gru4rec_fast._backend.", "gru4rec_fast.ops._dispatch.", "gru4rec_fast.ops._registry.")


def test_references_use_torch_and_each_other_alone() -> None:
    references, reached = reached_by_references(OPERATORS)
    assert len(references) >= 17 and {"gru4rec_fast.ops.philox.philox4x32", "torch.Tensor"} <= reached
    assert not [name for name in reached if name.startswith(DECIDES)]


def test_a_reference_that_runs_an_operator_is_found(tmp_path: Path) -> None:
    operator, helper = tmp_path / "operator.py", tmp_path / "helper.py"
    operator.write_text(
        "from gru4rec_fast.ops.helper import double\ndef k_reference(x):\n    return sorted([x], key=double)\n"
    )
    helper.write_text(
        "from gru4rec_fast.ops._dispatch import implementation as run\n"
        "def double(x):\n    return _twice(x)\n"
        "def _twice(x):\n    return run('k', 'auto', x.device, None)(x)\n"
    )
    _, reached = reached_by_references([operator, helper])
    assert "gru4rec_fast.ops._dispatch.implementation" in reached


def run_python(code: str) -> str:
    """Run `code` in a new interpreter with the same sys.path; return its standard output."""
    code = f"import sys; sys.path[:] = {sys.path!r}\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_else() -> None:
    code = "before = set(sys.modules)\nimport gru4rec_fast\nprint(*sorted(set(sys.modules) - before))"
    modules = [name for name in run_python(code).split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert modules == ["gru4rec_fast", "gru4rec_fast._version"]


HEAVY = ["polars", "pandas", "pyarrow", "matplotlib", "scipy", "rich", "typer", "torch._dynamo", "gru4rec_fast._C"]


@pytest.mark.parametrize("what", ["ops", "nn", "optim", "data", "profiling", "evaluation", "training", "GRU4Rec"])
def test_nothing_heavy_is_imported(what: str) -> None:
    names = run_python(
        "import torch\nbefore = set(sys.modules)\n"
        f"import gru4rec_fast\ngru4rec_fast.{what}\n"
        "print(*(set(sys.modules) - before))"
    ).split()
    assert not set(HEAVY) & set(names)


@pytest.mark.parametrize("module", ["models.parameters", "models.parameter_text", "cli.train"])
def test_parameters_and_commands_are_imported_without_torch(module: str) -> None:
    names = run_python(f"import sys, gru4rec_fast.{module}\nprint(*sys.modules)").split()
    assert f"gru4rec_fast.{module}" in names and not {"torch", "numpy", "polars"} & set(names)


def test_importing_costs_little_more_than_torch() -> None:
    seconds = run_python(
        "import time, torch\nstart = time.process_time()\n"
        "import gru4rec_fast.ops, gru4rec_fast.nn, gru4rec_fast.optim\n"
        "print(time.process_time() - start)"
    )
    assert float(seconds) < 0.5  # torch itself takes some two seconds here


def test_every_public_name_exists() -> None:
    for name in gru4rec_fast.__all__:
        assert getattr(gru4rec_fast, name) is not None
    assert set(gru4rec_fast.__all__) <= set(dir(gru4rec_fast))
    with pytest.raises(AttributeError, match="no attribute 'GRU5Rec'"):
        gru4rec_fast.GRU5Rec  # noqa: B018


def test_the_installed_package_is_the_one_under_test() -> None:
    if not is_installed():
        pytest.skip("gru4rec_fast is not installed here; its source tree is under test")
    installed = Path(str(distribution("gru4rec_fast").locate_file("gru4rec_fast"))).resolve()
    assert PACKAGE.resolve() == installed
    assert distribution("gru4rec_fast").version == gru4rec_fast.__version__
