"""How the package is built: few public names, loaded when they are used, and imports that go downwards only."""

import ast
import importlib
import inspect
from pathlib import Path

import nbformat
import pytest

import yolo_slim_lessons as slim

PACKAGE = Path(slim.__file__).parent


# public names


def test_few_names_are_public_and_each_is_explained():
    assert len(slim.__all__) == len(set(slim.__all__)) <= 45
    for name in slim.__all__:
        assert inspect.getdoc(getattr(slim, name)), name
    assert set(slim.__all__) <= set(dir(slim))


def test_a_name_that_is_not_there_is_named():
    with pytest.raises(AttributeError, match="has no attribute 'sparse_sizes'"):
        _ = slim.sparse_sizes


def test_the_import_is_quick_and_loads_nothing_large(run_python):
    code = (
        "import sys, time; before = time.process_time(); import yolo_slim_lessons; "
        "print(time.process_time() - before, sorted({'torch', 'ultralytics', 'IPython', 'numpy'} & sys.modules.keys()))"
    )
    seconds, loaded = run_python(code).split(maxsplit=1)
    assert float(seconds) <= 0.5
    assert loaded.strip() == "[]"


# imports

# Each room may import from those before it, never from those behind it. A module that stands for itself is a room, too.
ROOMS = (
    "files",
    "threads",
    "arguments",
    "data",
    "models",
    "agreement",
    "graph",
    "training",
    "measurement",
    "pruning",
    "distillation",
    "quantization",
    "packing",
    "deployment",
    "search",
    "compression",
    "command_line",
    "ultralytics_trainer",
    "teaching",
)


def module_name(file):
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(file): ast.parse(file.read_text(encoding="utf-8")) for file in PACKAGE.rglob("*.py")}


def imports_of(tree):
    """Modules of this package that a module imports, at its top or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == PACKAGE.name:
                inner = name.removeprefix(PACKAGE.name).removeprefix(".")
                yield inner if inner in MODULES else inner.rpartition(".")[0]


IMPORTS = {name: set(imports_of(tree)) for name, tree in MODULES.items()}


def test_every_room_has_its_place():
    rooms = {name.split(".")[0] for name in MODULES} - {"", "__main__"}
    assert rooms <= set(ROOMS), f"say in ROOMS where these belong: {sorted(rooms - set(ROOMS))}"


def test_imports_go_downwards_only():
    """Command line and root stand above all rooms; nothing imports them, for the root loads everything."""
    for name, imported in IMPORTS.items():
        room = name.split(".")[0]
        if room in ("", "__main__"):
            continue
        for other in imported:
            assert other, f"{name} imports the root: name the module instead"
            assert ROOMS.index(other.split(".")[0]) <= ROOMS.index(room), f"{name} imports {other}"


def test_no_module_imports_itself_by_a_detour():
    finished, under_way = set(), []

    def visit(name):
        assert name not in under_way, " -> ".join([*under_way[under_way.index(name) :], name])
        if name not in finished:
            under_way.append(name)
            for other in sorted(IMPORTS[name]):
                visit(other)
            finished.add(under_way.pop())

    for name in MODULES:
        visit(name)


def code_cells(notebook):
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


ROOT = PACKAGE.parent
CODE = [
    *((lesson, cell.source) for lesson in sorted(ROOT.glob("notebooks/**/*.ipynb")) for cell in code_cells(lesson)),
    *(
        (file, file.read_text(encoding="utf-8"))
        for folder in ("benchmarks", "examples", "tools", "tests", "yolo_slim_lessons")
        for file in sorted((ROOT / folder).rglob("*.py"))
    ),
]


def test_whatever_is_imported_from_the_package_is_there():
    for file, source in CODE:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE.name:
                module = importlib.import_module(node.module)
                for name in {alias.name for alias in node.names} - {"*"} - vars(module).keys():
                    try:
                        importlib.import_module(f"{node.module}.{name}")
                    except ModuleNotFoundError:
                        assert hasattr(module, name), f"{file.relative_to(ROOT)}: {node.module} has no {name}"


def test_production_does_not_patch():
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            else:
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(module.split(".")[0] in ("unittest", "pytest") for module in modules), name
