"""Which modules may import which; importing the package is fast; tests run the installed package."""

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

# A sub-package imports only from itself and from sub-packages of a lower level (docs/architecture.md). "_root" are the
# modules of gru4rec_fast itself, which choose the implementation of an operator.
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
    "integrations": 8,
    "cli": 8,
}
# Allowed imports from a higher level, as (file, module). _backend.py registers the operators after it loads a library;
# __main__.py is the command line.
ALLOWED_IMPORTS = {("_backend.py", "gru4rec_fast.ops._registry"), ("__main__.py", "gru4rec_fast.cli")}


def is_allowed(path: Path, module: str) -> bool:
    """Return True for the imports of ALLOWED_IMPORTS and of their members."""
    return any(path.name == file and module.startswith(name) for file, name in ALLOWED_IMPORTS)


def sub_package_of(module: str) -> str:
    """Return the sub-package of a dotted module name of gru4rec_fast."""
    parts = module.split(".")
    if len(parts) == 1:
        return "_root"
    if parts[1] in LEVEL:
        return parts[1]
    sub_package = gru4rec_fast._SUBPACKAGE_OF.get(parts[1], "")  # if it is a public name, such as GRU4Rec
    return sub_package if sub_package in LEVEL else "_root"


def imported_modules(path: Path) -> set[str]:
    """Return all modules that a file imports, also within functions; `from a import b` gives a.b."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write imports in full, from gru4rec_fast..."
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


FILES = sorted(PACKAGE.rglob("*.py"))
# The package imports its public names from all sub-packages at first use, so its own imports are not checked.
ROOT = PACKAGE / "__init__.py"


def module_graph(files: list[Path], package: Path) -> dict[str, set[str]]:
    """Return a dict from each module of a package to the modules of the package that it imports, also in functions.

    Importing a.b.c from outside of a.b runs the package a.b first, so it counts as an import of both.
    """

    def name_of(path: Path) -> str:
        parts = path.relative_to(package.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def modules_run_by_import(imported: str, importer: str) -> set[str]:
        """Return `imported` and the packages that contain it, without packages that contain `importer` as well."""
        name = imported.removeprefix(f"{package.name}.")
        sub_package = gru4rec_fast._SUBPACKAGE_OF.get(name)  # None unless it is a public name of the package
        parts = (imported if sub_package is None else f"{package.name}.{sub_package}").split(".")
        prefixes = {".".join(parts[:n]) for n in range(1, len(parts) + 1)}
        return {name for name in prefixes & names if name == imported or not f"{importer}.".startswith(f"{name}.")}

    names = {name_of(path) for path in files}
    graph: dict[str, set[str]] = {name: set() for name in names}
    for path in files:
        importer = name_of(path)
        for imported in imported_modules(path):
            if not is_allowed(path, imported):
                graph[importer] |= modules_run_by_import(imported, importer) - {importer}
    return graph


def reachable(graph: dict[str, set[str]], start: set[str]) -> set[str]:
    """Return the names that can be reached from the names in `start` in one or more steps of a graph."""
    reached: set[str] = set()
    pending = list(start)
    while pending:
        new = graph.get(pending.pop(), set()) - reached
        reached |= new
        pending += new
    return reached


def import_cycles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Return the groups of modules that import each other, directly or through others."""
    reach = {name: reachable(graph, {name}) for name in graph}
    groups = {frozenset(other for other in reach[name] if name in reach[other]) for name in graph}
    return sorted((set(group) for group in groups if group), key=sorted)


def test_package_has_no_import_cycles() -> None:
    assert import_cycles(module_graph([path for path in FILES if path != ROOT], PACKAGE)) == []


@pytest.mark.parametrize("statement", ["import pack.two", "from pack import two", "from pack.two import x"])
def test_cycle_through_an_import_in_a_function_is_detected(tmp_path: Path, statement: str) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    files = {
        "__init__": "",
        "one": f"def function():\n    {statement}\n",
        "two": "import pack.three\nx = 1\n",
        "three": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pack import one\n",
        "four": "import pack.one\n",
    }
    for name, text in files.items():
        (package / f"{name}.py").write_text(text)
    paths = sorted(package.glob("*.py"))
    assert import_cycles(module_graph(paths, package)) == [{"pack.one", "pack.two", "pack.three"}]
    (package / "three.py").write_text("")
    assert import_cycles(module_graph(paths, package)) == []


def test_cycle_through_a_package_is_detected(tmp_path: Path) -> None:
    files = {"pack/__init__": "", "pack/one": "import pack.sub.a\n", "pack/sub/__init__": "import pack.sub.b\n"}
    files |= {"pack/sub/a": "", "pack/sub/b": "import pack.sub.a\nimport pack.one\n"}
    (tmp_path / "pack" / "sub").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    paths = [tmp_path / f"{name}.py" for name in files]
    assert import_cycles(module_graph(paths, tmp_path / "pack")) == [{"pack.one", "pack.sub", "pack.sub.b"}]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_are_from_lower_levels(path: Path) -> None:
    importer = sub_package_of(".".join(["gru4rec_fast", *path.relative_to(PACKAGE).parts]))
    if path == ROOT:
        pytest.skip("the package imports its public names from all sub-packages at first use")
    for module in imported_modules(path):
        if not module.startswith("gru4rec_fast") or is_allowed(path, module):
            continue
        imported = sub_package_of(module)
        if imported == importer:
            continue
        assert LEVEL[imported] < LEVEL[importer], (
            f"{path}: {importer} must not import {module} ({imported} is not on a lower level)"
        )
        if imported == "profiling":
            assert LEVEL[importer] >= LEVEL["evaluation"], f"{path}: only evaluation and higher levels import {module}"


def test_every_sub_package_has_a_level() -> None:
    sub_packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sub_packages == set(LEVEL) - {"_root"}


OPERATOR_FILES = [path for path in FILES if path.parent.name == "ops"]


@pytest.mark.parametrize("path", OPERATOR_FILES, ids=lambda path: path.name)
def test_operators_import_only_torch_the_backend_and_operators(path: Path) -> None:
    for module in imported_modules(path):
        top_package = module.split(".")[0]
        is_external = top_package in sys.stdlib_module_names or top_package == "torch"
        assert is_external or f"{module}.".startswith(("gru4rec_fast._backend.", "gru4rec_fast.ops.")), module


def reached_by_references(paths: list[Path]) -> tuple[set[str], set[str]]:
    """Return the functions named `*_reference` in files, and the names that are used when they run.

    The second set includes the first. Names are given with their modules, such as "torch.Tensor".
    """
    uses: dict[str, set[str]] = {}  # name of a definition -> names in its body
    for path in paths:
        tree, module = ast.parse(path.read_text()), f"gru4rec_fast.ops.{path.stem}"
        full_names = {
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
        full_names |= {name: f"{module}.{name}" for name in definitions}
        for name, node in definitions.items():
            used = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)} - {name}
            uses[f"{module}.{name}"] = {full_names[other] for other in used & set(full_names)}
    references = {name for name in uses if name.endswith("_reference")}
    return references, references | reachable(uses, references)


# Modules that choose and run the implementation of an operator.
DISPATCH_MODULES = ("gru4rec_fast._backend.", "gru4rec_fast.ops._dispatch.", "gru4rec_fast.ops._registry.")


def test_references_do_not_run_operators() -> None:
    references, reached = reached_by_references(OPERATOR_FILES)
    assert len(references) >= 17 and {"gru4rec_fast.ops.philox.philox4x32", "torch.Tensor"} <= reached
    assert not [name for name in reached if name.startswith(DISPATCH_MODULES)]


def test_reference_that_runs_an_operator_is_detected(tmp_path: Path) -> None:
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
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_the_package_imports_no_sub_package() -> None:
    code = "before = set(sys.modules)\nimport gru4rec_fast\nprint(*sorted(set(sys.modules) - before))"
    modules = [name for name in run_python(code).split() if name.split(".")[0] not in sys.stdlib_module_names]
    assert modules == ["gru4rec_fast", "gru4rec_fast._version"]


SLOW_MODULES = {
    "polars",
    "pandas",
    "pyarrow",
    "matplotlib",
    "scipy",
    "rich",
    "typer",
    "torch._dynamo",
    "gru4rec_fast._C",
}


@pytest.mark.parametrize("name", ["ops", "nn", "optim", "data", "profiling", "evaluation", "training", "GRU4Rec"])
def test_using_a_public_name_imports_no_slow_module(name: str) -> None:
    modules = run_python(
        "import torch\nbefore = set(sys.modules)\n"
        f"import gru4rec_fast\ngru4rec_fast.{name}\n"
        "print(*(set(sys.modules) - before))"
    ).split()
    assert SLOW_MODULES.isdisjoint(modules)


def test_the_memory_of_a_training_is_measured_after_torch_has_loaded_its_optimizers() -> None:
    modules = run_python(
        "import torch, gru4rec_fast\nfrom gru4rec_fast.profiling import set_baseline\nset_baseline()\n"
        "before = set(sys.modules)\ntorch.optim.Adam([torch.zeros(1)])\nprint(*(set(sys.modules) - before))"
    ).split()
    assert modules == []


@pytest.mark.parametrize("module", ["models.parameters", "models.parameter_text", "cli.train"])
def test_parameters_and_commands_are_imported_without_torch(module: str) -> None:
    names = run_python(f"import sys, gru4rec_fast.{module}\nprint(*sys.modules)").split()
    assert f"gru4rec_fast.{module}" in names and not {"torch", "numpy", "polars"} & set(names)


def test_importing_takes_at_most_half_a_second_more_than_torch() -> None:
    seconds = run_python(
        "import time, torch\nstart = time.process_time()\n"
        "import gru4rec_fast.ops, gru4rec_fast.nn, gru4rec_fast.optim\n"
        "print(time.process_time() - start)"
    )
    assert float(seconds) < 0.5  # importing torch takes about two seconds


def test_every_public_name_exists() -> None:
    for name in gru4rec_fast.__all__:
        assert getattr(gru4rec_fast, name) is not None
    assert set(gru4rec_fast.__all__) <= set(dir(gru4rec_fast))
    with pytest.raises(AttributeError, match="no attribute 'GRU5Rec'"):
        gru4rec_fast.GRU5Rec  # noqa: B018


def test_tests_run_the_installed_package() -> None:
    if not is_installed():
        pytest.skip("gru4rec_fast is not installed, or is editable: the tests run its source tree")
    installed = Path(str(distribution("gru4rec_fast").locate_file("gru4rec_fast"))).resolve()
    assert PACKAGE.resolve() == installed
    assert distribution("gru4rec_fast").version == gru4rec_fast.__version__
