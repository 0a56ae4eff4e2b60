"""Every ``Example:`` of a docstring runs, and prints what it says."""

import dataclasses
import doctest
import importlib
import pkgutil

import pytest

import yolo_slim_lessons as slim

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(slim.__path__, f"{slim.__name__}.")
    if not module.name.endswith("__main__")
]
EXAMPLES = {
    example.name.removeprefix(f"{slim.__name__}."): example
    for module in MODULES
    for example in doctest.DocTestFinder(exclude_empty=True).find(module)
    if example.examples
}


@pytest.fixture(scope="module")
def few(data):
    return dataclasses.replace(data.take(train=100, val=100), test=data.test.take(100))


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, nano, few, tmp_path, monkeypatch):
    """What an example needs beyond its module: ``slim``, a trained ``model``, and ``data`` of few images."""
    monkeypatch.chdir(tmp_path)
    example = EXAMPLES[name]
    example.globs |= {"slim": slim, "model": nano, "data": few}
    problems = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=problems.append, clear_globs=False)
    assert not problems, "".join(problems)
