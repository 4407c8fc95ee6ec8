"""Imports go one way, files and functions are rarely long, functional/ needs torch alone, no dispatch by name."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "rlhf_lightning"

FLOORS = [
    {
        "_version",
        "_moved",
        "errors",
        "types",
        "sampling_params",
        "prompt_types",
        "reward_types",
        "events",
        "devices",
        "process_memory",
        "process_settings",
        "shown",
        "run_layout",
        "functional",
        "ranks",
        "axes",
        "holdings",
    },
    {
        "protocols",
        "reward_protocols",
        "sampler_protocols",
        "task_protocols",
        "registry",
        "delegation",
        "configfiles",
        "border",
    },
    {"algorithms", "runs", "samplers", "scorers", "models", "data"},
    {"statistics", "pipeline", "strategies"},
    {"modules"},
    {"callbacks", "labelling", "evaluation", "serving", "planning", "study"},
    {"plugins", "testing", "cli", "start"},
]
FLOOR_OF = {name: level for level, names in enumerate(FLOORS) for name in names}

LONG_FUNCTIONS: dict[str, str] = {
    "modules/_policy.py __init__": "every setting of an on-policy run is an argument here and nowhere else",
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sources():
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def room(dotted: str) -> str:
    return dotted.split(".")[1] if dotted.count(".") else ""


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def type_checking_lines(tree: ast.Module) -> set[int]:
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {line for block in blocks for line in range(block.lineno, (block.end_lineno or 0) + 1)}


def functions(tree: ast.Module) -> Iterator[tuple[str, int, bool]]:
    private = {id(n) for c in ast.walk(tree) if isinstance(c, ast.ClassDef) and c.name[0] == "_" for n in ast.walk(c)}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node) is not None or id(node) in private
            body = node.body[1:] if ast.get_docstring(node) else node.body
            yield node.name, (node.end_lineno or 0) - body[0].lineno + 1 if body else 0, doc


def test_every_room_has_a_floor():
    rooms = {name.split("/")[0].removesuffix(".py") for name, _ in trees()} - {"__init__"}
    assert rooms <= set(FLOOR_OF), f"give these a floor: {sorted(rooms - set(FLOOR_OF))}"


def test_imports_go_one_way():
    upward = []
    for name, tree in trees():
        here = name.split("/")[0].removesuffix(".py")
        hidden = type_checking_lines(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Import | ast.ImportFrom) or node.lineno in hidden:
                continue
            for target in imports(ast.Module([node], [])):
                if target.startswith("rlhf_lightning.") and here != "__init__":
                    there = room(target)
                    if FLOOR_OF.get(there, 0) > FLOOR_OF[here]:
                        upward.append(f"{name}:{node.lineno} imports {target}")
    assert not upward, upward


def test_functional_imports_torch_and_the_standard_library_only():
    allowed = sys.stdlib_module_names | {"torch"}
    foreign = [
        f"{name} imports {target}"
        for name, tree in trees()
        if name.startswith("functional/")
        for target in imports(tree)
        if target.split(".")[0] not in allowed
        and not target.startswith(("rlhf_lightning.functional", "rlhf_lightning.types"))
    ]
    assert not foreign, foreign


def test_files_are_rarely_long():
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    assert {name: n for name, n in lengths.items() if n > 400} == {}
    long = {name: n for name, n in lengths.items() if n > 300}
    assert len(long) <= len(lengths) / 10, long


def test_functions_are_small():
    found = [(f"{name} {function}", n) for name, tree in trees() for function, n, _ in functions(tree)]
    long = {place: n for place, n in found if n > 50 and place not in LONG_FUNCTIONS}
    assert not long, long
    assert median(n for _, n in found) <= 13


def test_public_functions_are_documented():
    bare = [
        f"{name} {function}"
        for name, tree in trees()
        for function, _, documented in functions(tree)
        if not documented and not function.startswith("_") and not _is_nested_or_overload(tree, function)
    ]
    assert not bare, bare


def _is_nested_or_overload(tree: ast.Module, function: str) -> bool:
    owners = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nested = {c.name for o in owners for c in ast.walk(o) if isinstance(c, ast.FunctionDef) and c is not o}
    overloads = {o.name for o in owners if any("overload" in ast.unparse(d) for d in o.decorator_list)}
    autograd = {"forward", "backward"}
    return function in nested | overloads | autograd


def test_nothing_dispatches_on_a_name():
    found = []
    for name, tree in trees():
        if name.startswith(("registry", "cli/")):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and isinstance(node.test, ast.Compare):
                left = ast.unparse(node.test.left)
                comparator = node.test.comparators[0]
                text = isinstance(comparator, ast.Constant) and isinstance(comparator.value, str)
                if left.split(".")[-1] == "name" and text:
                    found.append(f"{name}:{node.lineno} {ast.unparse(node.test)}")
    assert not found, found


PICKLES = {
    "scorers/_child.py": "tasks go to our own worker process over a pipe that nobody else can write to",
    "testing/others.py": "a check that a plug-in survives pickling and unpickling in the same process",
}


@pytest.mark.parametrize("word", ["trust_remote_code=True", "weights_only=False", "pickle.load", "shell=True"])
def test_unsafe_words_do_not_appear(word):
    found = {path.relative_to(PACKAGE).as_posix() for path in sources() if word in path.read_text()}
    assert found <= (set(PICKLES) if word == "pickle.load" else set())
