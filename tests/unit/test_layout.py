"""The layout of the source tree: rooms, layers, words, and no cycle of imports.

The layers themselves are contracts of import-linter in pyproject.toml. Here imports under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.source import parsed

PACKAGES = ("ipc", "kernel", "llmosd")
MOST_IN_KERNEL = 8
LEAST_IN_A_FOLDER = 3

# Subjects of system calls without a room of their own: `base`, which all calls share, and `daemon`, whose calls
# `kernel/status.py` and `kernel/kernel.py` answer.
NO_ROOM = {"base", "daemon"}
# Subjects that agents do not use: only clients submit tasks, and explanations are for people.
NOT_OF_AGENTS = {"explain", "tasks"}
# Modules of `llmosd/context` that its subjects share: their root, and the constraints of `chat` and `generate`.
NO_SUBJECT = {"base", "constraints"}

Graph = Mapping[str, Iterable[str]]


def modules(*folders: str) -> dict[str, Path]:
    """The source files below `folders`, by the name under which they are imported."""
    found = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules of `known` that the module `name` imports, anywhere in its file."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    return (found & known.keys()) - {name}


def cycles(graph: Graph) -> list[set[str]]:
    """The strongly connected components of more than one module (Tarjan, SIAM Journal on Computing 1(2), 1972)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                lowest[node] = min(lowest[node], lowest[other])
        if lowest[node] == index[node]:
            place = stack.index(node)
            if len(stack) - place > 1:
                found.append(set(stack[place:]))
            del stack[place:]

    for node in graph:
        if node not in index:
            visit(node)
    return found


def stems(folder: str) -> set[str]:
    """The names of the modules of a folder, without the package itself."""
    return {path.stem for path in (ROOT / folder).glob("*.py")} - {"__init__", "__main__"}


def rooms(folder: str) -> set[str]:
    """The folders in a folder that hold modules."""
    return {path.name for path in (ROOT / folder).iterdir() if any(path.glob("*.py"))}


def test_no_two_files_import_each_other_not_even_for_a_type() -> None:
    known = modules(*PACKAGES)
    assert len(known) > 200
    assert cycles({name: imports(name, path, known) for name, path in known.items()}) == []


@pytest.mark.parametrize(
    ("code", "imported"),
    [
        ("from kernel import gate", {"kernel.gate"}),
        ("from kernel.gate import Gate", {"kernel.gate"}),
        ("import kernel.gate as door", {"kernel.gate"}),
        ("if TYPE_CHECKING:\n    from kernel.gate import Gate", {"kernel.gate"}),
        ("def late():\n    from kernel import gate", {"kernel.gate"}),
        ("from .gate import Gate", {"kernel.gate"}),
        ("from . import gate", {"kernel.gate"}),
    ],
)
def test_an_import_is_seen_wherever_and_however_it_is_written(code: str, imported: set[str], tmp_path: Path) -> None:
    path = tmp_path / "status.py"
    path.write_text(code)
    assert imports("kernel.status", path, modules("kernel")) == imported


def test_a_cycle_is_found_over_any_number_of_files() -> None:
    graph = {"a": ["b"], "b": ["c", "d"], "c": ["a"], "d": ["e"], "e": []}
    assert cycles(graph) == [{"a", "b", "c"}]
    assert cycles({"a": ["b"], "b": []}) == []


def test_the_kernel_itself_is_a_few_modules() -> None:
    assert len(stems("kernel")) <= MOST_IN_KERNEL


def test_no_folder_is_a_drawer_for_one_or_two_modules() -> None:
    folders = {path.parent for path in modules(*PACKAGES, "tests", "agents").values()}
    small = {}
    for folder in folders:
        count = len(list(folder.glob("*.py"))) - (folder / "conftest.py").exists()
        if any(path.name == "__init__.py" and not _defines(path) for path in folder.glob("*.py")):
            count -= 1
        if 0 < count < LEAST_IN_A_FOLDER:
            small[str(folder.relative_to(ROOT))] = count
    assert small == {}


def test_no_module_only_passes_on_the_names_of_others() -> None:
    assert [name for name, path in modules(*PACKAGES).items() if _imports(path) and not _defines(path)] == []


def test_a_subject_has_one_word_in_all_four_places() -> None:
    subjects = stems("ipc/syscalls") - NO_ROOM
    assert subjects <= rooms("kernel")
    assert subjects <= rooms("tests/unit")
    assert stems("llmosd/context") - NO_SUBJECT == subjects - NOT_OF_AGENTS


def test_every_room_of_the_unit_tests_has_the_name_of_what_it_tests() -> None:
    assert rooms("tests/unit") <= rooms("kernel") | rooms("llmosd") | {"ipc"}


def test_no_test_imports_another_one() -> None:
    known = modules("tests")
    tests = {name for name in known if name.rpartition(".")[2].startswith(("test_", "conftest"))}
    assert len(tests) > 100
    assert {name: found for name, path in known.items() if (found := imports(name, path, known) & tests)} == {}


def test_the_hooks_of_the_kernel_are_set_in_one_place() -> None:
    setting = re.compile(r"(?<!self)\.on_[a-z_]+(\.(append|insert|extend)\(| \+?= )")
    setters = {
        str(path.relative_to(ROOT))
        for path in modules("kernel").values()
        if setting.search(path.read_text().replace("self._kernel.on_opened.append", ""))
    }
    # The slots of a model are created while the kernel runs: the runtime of the model sets their hooks.
    assert setters == {"kernel/kernel.py", "kernel/models/runtime.py"}


def _imports(path: Path) -> bool:
    return any(isinstance(node, ast.Import | ast.ImportFrom) for node in parsed(path).body)


def _defines(path: Path) -> bool:
    """Whether a module has anything but a docstring, imports and a list of names to export."""
    for node in parsed(path).body:
        documents = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        exports = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        if not (documents or exports or isinstance(node, ast.Import | ast.ImportFrom)):
            return True
    return False


# The two sides of one system call: a primitive in the kernel, and its handle in an agent.
BOTH_SIDES = {"Barrier", "Condition", "Event", "Lock", "Semaphore"}


def test_a_class_name_has_one_meaning() -> None:
    defined: dict[str, list[str]] = {}
    for name, path in modules(*PACKAGES).items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                defined.setdefault(node.name.lstrip("_"), []).append(name)
    assert {name: places for name, places in defined.items() if len(places) > 1 and name not in BOTH_SIDES} == {}
