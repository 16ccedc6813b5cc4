"""CPython's own tests of asyncio as coroutines, which a test runs inside an agent.

Most of these tests drive a loop of their own: they call `loop.run_until_complete(x)`. Here they are compiled again with
`await` in its place, so that they run in the loop and in the thread that run already. It never changes what a test
checks.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import types
import unittest
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.virtual_time import VirtualTimeLoop

RUN = frozenset({"run_until_complete", "run_briefly", "run_once"})

Case = Callable[[], Coroutine[Any, Any, None]]


def cases(module: types.ModuleType, *classes: str) -> Iterator[tuple[str, Case]]:
    """The cases of `module` with their names. `classes`: those to compile again; by default the asynchronous ones."""
    for name, kind in tuple(vars(_compiled_again(module) if classes else module).items()):
        if not inspect.isclass(kind):
            continue
        if name in classes or (not classes and issubclass(kind, unittest.IsolatedAsyncioTestCase)):
            own: Any = _in_running_loop(kind) if classes else kind
            for case in unittest.TestLoader().getTestCaseNames(own):
                yield f"{name}.{case}", _case(own, case)


def _case(kind: Any, name: str) -> Case:
    async def run() -> None:
        case = kind(name)
        method = getattr(case, name)
        if getattr(kind, "__unittest_skip__", False) or getattr(method, "__unittest_skip__", False):
            raise unittest.SkipTest("as in CPython")
        try:
            case.setUp()
            if hasattr(case, "asyncSetUp"):
                await case.asyncSetUp()
            answer = method()
            if inspect.isawaitable(answer):
                await answer
            if hasattr(case, "asyncTearDown"):
                await case.asyncTearDown()
                case.tearDown()
        finally:
            for function, args, options in reversed(case._cleanups):
                answer = function(*args, **options)
                if inspect.isawaitable(answer):
                    await answer

    return run


def _in_running_loop(kind: Any) -> Any:
    """`kind` with the running loop in place of new loops, and with the tasks that this loop makes."""

    def set_up(self: Any) -> None:
        loop = asyncio.get_running_loop()
        self.loop = self.one_loop = loop
        self.other_loop = asyncio.new_event_loop()
        self.addCleanup(self.other_loop.close)

    methods: dict[str, Any] = {
        "setUp": set_up,
        "tearDown": lambda self: None,
        "set_event_loop": lambda self, loop, cleanup=True: None,
        "new_test_loop": lambda self, gen=None: asyncio.get_running_loop(),
        "new_future": lambda self, loop: loop.create_future(),
        "new_task": _new_task,
    }
    return type(kind.__name__, (kind,), methods)


def _new_task(self: Any, loop: Any, coro: Any, name: str | None = "TestTask", context: Any = None) -> Any:
    return asyncio.get_running_loop().create_task(coro, name=name, context=context)


@contextmanager
def loop_of_one_test() -> Iterator[None]:
    """Let a test close the running loop and change its settings, as if the loop were its own, without effect."""
    loop: Any = asyncio.get_running_loop()
    before = dict(vars(loop))
    loop.close = lambda: None
    loop.set_debug = lambda enabled: None
    loop.set_task_factory = lambda factory: None
    if isinstance(loop, VirtualTimeLoop):
        loop.set_time(0.0)  # as in the loops that these tests make
        vars(loop)["advance_time"] = lambda seconds: loop.set_time(loop.time() + seconds)
    try:
        yield
    finally:
        for name in set(vars(loop)) - set(before):  # also what the test has replaced
            delattr(loop, name)


# ---- the compiler


def _compiled_again(module: types.ModuleType) -> types.ModuleType:
    tree = ast.parse(inspect.getsource(module))
    _Awaiting(tree).visit(tree)
    ast.fix_missing_locations(tree)
    again = types.ModuleType(module.__name__)
    again.__file__ = module.__file__
    exec(compile(tree, str(module.__file__), "exec"), vars(again))
    vars(again)["_llmosd_completed"] = _completed
    vars(again)["_llmosd_raises"] = _raises
    vars(again)["_llmosd_turns"] = _turns
    return again


async def _completed(awaitable: Any) -> Any:
    return await asyncio.ensure_future(awaitable)


async def _raises(case: unittest.TestCase, error: type[BaseException], awaitable: Any) -> None:
    with case.assertRaises(error):  # noqa: PT027 # as in the test
        await _completed(awaitable)


async def _turns(loop: Any) -> None:
    """As long as the loop runs for a task that does nothing."""
    for _ in range(2):
        await asyncio.sleep(0)


class _Awaiting(ast.NodeTransformer):
    """Makes a coroutine function of each method that runs the loop, directly or by another method of that kind."""

    def __init__(self, tree: ast.Module) -> None:
        methods = [
            method
            for kind in tree.body
            if isinstance(kind, ast.ClassDef)
            for method in kind.body
            if isinstance(method, ast.FunctionDef)
        ]
        self._methods: set[str] = set()
        grows = True
        while grows:
            before = len(self._methods)
            self._methods |= {method.name for method in methods if any(map(self._runs, _own_nodes(method)))}
            grows = len(self._methods) > before

    def _runs(self, node: ast.AST) -> bool:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            return False
        if node.func.attr in RUN or _expects_of_run(node):
            return True
        return (
            isinstance(node.func.value, ast.Name) and node.func.value.id == "self" and node.func.attr in self._methods
        )

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [
            self._awaiting(each) if isinstance(each, ast.FunctionDef) and each.name in self._methods else each
            for each in node.body
        ]
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return node  # a function in a method: it cannot await

    visit_AsyncFunctionDef = visit_Lambda = visit_FunctionDef  # type: ignore[assignment] # noqa: N815

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        """A test that makes its loop gets the running one."""
        self.generic_visit(node)
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Name) and target.id == "loop" and ast.unparse(value) == "asyncio.new_event_loop()":
            node.value = ast.parse("asyncio.get_running_loop()", mode="eval").body
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not self._runs(node):
            return node
        assert isinstance(node.func, ast.Attribute)
        if _expects_of_run(node):
            node.func = ast.Name("_llmosd_raises", ast.Load())
            node.args = [ast.Name("self", ast.Load()), node.args[0], node.args[2]]
        elif node.func.attr == "run_until_complete":
            node.func = ast.Name("_llmosd_completed", ast.Load())
        elif node.func.attr in RUN:
            node.func = ast.Name("_llmosd_turns", ast.Load())
        return ast.Await(node)

    def _awaiting(self, method: ast.FunctionDef) -> ast.stmt:
        method.body = [self.visit(statement) for statement in method.body]
        fields: dict[str, Any] = {name: getattr(method, name, None) for name in ast.AsyncFunctionDef._fields}
        return ast.AsyncFunctionDef(**fields)


def _expects_of_run(call: ast.Call) -> bool:
    """Whether it is `self.assertRaises(error, loop.run_until_complete, x)`."""
    if not (isinstance(call.func, ast.Attribute) and call.func.attr == "assertRaises" and len(call.args) == 3):
        return False
    function = call.args[1]
    return isinstance(function, ast.Attribute) and function.attr == "run_until_complete"


def _own_nodes(method: ast.FunctionDef) -> Iterator[ast.AST]:
    """The nodes of `method`, without those of functions in it."""
    pending: list[ast.AST] = list(method.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
