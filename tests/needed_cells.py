"""Which cells of a notebook another one needs, by the names that it reads, so that tests need not run all of them."""

import ast
import builtins
import dis
import types


def top_level_names(source):
    """Names that a cell reads before it makes them, names it makes, and names that its functions will look up."""
    code, reads, makes, looked_up = compile(source, "cell", "exec"), set(), set(), set()
    for step in dis.get_instructions(code):
        if step.opname == "LOAD_NAME" and step.argval not in makes:
            reads.add(step.argval)
        elif step.opname == "STORE_NAME":
            makes.add(step.argval)
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    while inner:
        function = inner.pop()
        inner += [constant for constant in function.co_consts if isinstance(constant, types.CodeType)]
        looked_up |= {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
    return reads, makes, looked_up


def cells_needed(above, source):
    """The cells above that make what ``source`` reads; to run the others too would only cost time."""
    wanted, needed, before = _names_from_elsewhere(source), [], None
    while needed != before:  # a function may use another one that a later cell makes
        before = needed
        needed = [cell for cell in above if _names_made(cell) & wanted]
        wanted |= {name for cell in needed for name in _names_from_elsewhere(cell)}
    return needed


def sliders_and_their_needs(sources):
    """Cells that make sliders, and the cells above that those need."""
    made = [number for number, source in enumerate(sources) if "explore(" in source and "def explore" not in source]
    return [cell for number in made for cell in [*cells_needed(sources[:number], sources[number]), sources[number]]]


def _names_from_elsewhere(source):
    reads, makes, looked_up = top_level_names(source)
    return (reads | looked_up) - makes - set(dir(builtins))


def _names_made(source):
    """Names that the cell binds, and those that it sets an item of."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Subscript)]
    changed = {ast.unparse(node.value) for node in nodes if isinstance(node.ctx, ast.Store)}
    return top_level_names(source)[1] | changed
