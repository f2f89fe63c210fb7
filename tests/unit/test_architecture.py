"""Keep the tree honest (ARCHITECTURE 1): imports point down, the core and the wire are pure, adapters are named in one place.

Each rule is one test, which lists every offender at once. Imports inside functions and for type checking count as well.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "nats_taskflow"
SOURCE = ROOT / "worker" / PACKAGE

# From the ground up. A module stands on the floor of the longest prefix that is listed and imports from its own floor and from those below.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "units", "files", "text", "futures", "tasks", "turns", "version", "lazy_log", "secret_paths", "http"),
    ("flow",),
    ("wire",),
    ("store", "bus", "observe.log", "observe.health", "observe.log_limit", "observe.line_writer", "config"),
    ("engine",),
    ("services", "doors", "client", "observe", "store.sqlite", "store.invariants", "bus.nats", "bus.memory"),
    ("app", "wiring"),
    ("cli", "testing"),
)
SIBLINGS = FLOORS[5]
"""Rooms that stand beside each other and do not know each other: `app` brings them together."""

BESIDE = {
    "client": ("bus.nats", "worker and client have one NATS stack"),
    "store.invariants": ("store.sqlite", "they judge rows of a database file"),
}
"""The siblings that know another one, and why."""

ADAPTERS = ("store.sqlite.store", "bus.nats.bus", "bus.memory.bus", "bus.nats.connection")
NAMING_ADAPTERS = {"app", "cli.dev", "cli.demo.story", "testing.database", "testing.memory", "testing.chaos"}
IMPURE = {
    "asyncio",
    "time",
    "random",
    "secrets",
    "socket",
    "os",
    "pathlib",
    "logging",
    "structlog",
    "subprocess",
    "threading",
    "sqlite3",
    "nats",
}
MAX_MODULE, MAX_FUNCTION = 300, 40


def name_of(path: Path) -> str:
    """Return a module's name inside the package; the package itself is ``."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Return every module's text and tree, by its name."""
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def listed(module: str, names: tuple[str, ...]) -> str | None:
    """Return the longest prefix of a module's name that is one of the names."""
    tokens = module.split(".")
    return next((prefix for n in range(len(tokens), 0, -1) if (prefix := ".".join(tokens[:n])) in names), None)


@cache
def floor_of(module: str) -> int | None:
    """Return the floor of the longest prefix that is listed on any."""
    every = tuple(name for floor in FLOORS for name in floor)
    prefix = listed(module, every)
    return next((n for n, floor in enumerate(FLOORS) if prefix in floor), None)


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield every imported module or name, and whether at run time (not for type checking only)."""
    checking = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in checking) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, id(node) not in checking
            yield from ((f"{node.module}.{alias.name}", id(node) not in checking) for alias in node.names)


@cache
def uses() -> dict[str, set[str]]:
    """Return for each module the modules of the package that it imports: the module a name comes from, not the packages above it."""
    graph: dict[str, set[str]] = {}
    for name, (_, tree) in modules().items():
        graph[name] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == PACKAGE:
                source = (node.module or "")[len(PACKAGE) + 1 :]
                inner = {f"{source}.{alias.name}".lstrip(".") for alias in node.names}
                graph[name] |= inner & modules().keys() or {source}
            elif isinstance(node, ast.Import):
                inside = {alias.name for alias in node.names if alias.name.split(".")[0] == PACKAGE}
                graph[name] |= {module[len(PACKAGE) + 1 :] for module in inside}
        graph[name].discard(name)
    return graph


FACE = ("", "__main__")
"""The package's own face loads the client's names when they are asked for, and `__main__` starts the command line."""


def test_every_module_stands_on_a_floor() -> None:
    homeless = [name for name in modules() if name not in FACE and floor_of(name) is None]
    assert not homeless, f"add each to FLOORS where it belongs: {homeless}"


def test_imports_point_down() -> None:
    upward = [
        f"{name} imports {used}"
        for name, used_modules in uses().items()
        if name not in FACE
        for used in sorted(used_modules)
        if used and (floor_of(used) or 0) > (floor_of(name) or 0)
    ]
    assert not upward, "\n".join(upward)


def test_rooms_beside_each_other_do_not_know_each_other() -> None:
    nosy = [
        f"{name} imports {used}"
        for name, used_modules in uses().items()
        if (room := listed(name, SIBLINGS)) and floor_of(name) == floor_of(SIBLINGS[0])
        for used in sorted(used_modules)
        if floor_of(used) == floor_of(name) and (other := listed(used, SIBLINGS)) != room and other != BESIDE.get(room, ("", ""))[0]
    ]
    assert not nosy, "\n".join(nosy)


def test_no_module_imports_itself_by_way_of_others() -> None:
    try:
        TopologicalSorter({name: used for name, used in uses().items() if name not in FACE}).prepare()
    except CycleError as error:
        raise AssertionError(f"a cycle: {' → '.join(error.args[1])}") from None


def test_inside_a_room_the_module_is_imported_and_not_the_room() -> None:
    """The room's face imports its modules, so a module that imports the face waits for itself."""
    faces = {name for name in modules() if (SOURCE / name.replace(".", "/") / "__init__.py").exists() and name}
    through = [
        f"{name} imports {used}"
        for name, used_modules in uses().items()
        for used in sorted(used_modules & faces)
        if name.startswith(used + ".")
    ]
    assert not through, "\n".join(through)


ONE_THING = {"Flow"}
"""Words that mean the same wherever they are: a flow, as the worker keeps it and as an agent holds it."""


def test_a_public_class_has_a_name_of_its_own() -> None:
    """One word, one meaning: who searches for a name finds one thing."""
    homes = defaultdict(set)
    for name, (_, tree) in modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes[node.name].add(name)
    shared = {word: sorted(places) for word, places in homes.items() if len(places) > 1 and word not in ONE_THING}
    assert not shared, "\n".join(f"{word}: {', '.join(places)}" for word, places in shared.items())


def test_the_core_and_the_wire_are_pure() -> None:
    pure = {name: tree for name, (_, tree) in modules().items() if name.split(".")[0] in {"flow", "wire"}}
    impure = [
        f"{name} imports {imported}"
        for name, tree in pure.items()
        for imported, at_run_time in imports(tree)
        if at_run_time and imported.split(".")[0] in IMPURE
    ]
    impure += [
        f"{name} is async"
        for name, tree in pure.items()
        if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    ]
    assert pure
    assert not impure, "\n".join(impure)


def test_adapters_are_named_only_in_the_composition_root() -> None:
    naming = [
        f"{name} names {imported}"
        for name, (_, tree) in modules().items()
        if name not in NAMING_ADAPTERS and name.split(".")[0] not in {"bus", "store"}
        for imported, _ in imports(tree)
        if imported.removeprefix(f"{PACKAGE}.") in ADAPTERS
    ]
    assert not naming, "\n".join(naming)


def test_one_place_says_how_this_program_is_started() -> None:
    """`python -m nats_taskflow` by hand would run a `worker` of the working directory."""
    starting = [
        f"{name}:{node.lineno}"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "-m" and name != "version"
    ]
    assert not starting, f"say version.command(...) instead: {starting}"


def test_no_task_can_end_in_silence() -> None:
    """`nats_taskflow.tasks` starts what goes on for ever. What is started elsewhere is awaited by the function that starts it."""
    silent = [
        f"{name}:{node.lineno}"
        for name, (_, tree) in modules().items()
        if name != "tasks" and name.split(".")[0] != "testing"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"create_task", "TaskGroup"}
    ]
    silent += [
        f"{name}:{call.lineno}"
        for name, (_, tree) in modules().items()
        if name != "client.mcp.lazy_client"  # each call awaits it
        for call in calls_of(tree, "ensure_future") - kept_by_their_functions(tree)
    ]
    assert not silent, f"start them by nats_taskflow.tasks: {silent}"


def calls_of(tree: ast.AST, name: str) -> set[ast.Call]:
    """Return the calls of a function or method."""
    calls = {node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return {call for call in calls if getattr(call.func, "attr", getattr(call.func, "id", "")) == name}


def kept_by_their_functions(tree: ast.AST) -> set[ast.Call]:
    """Return the calls whose results local variables have."""
    local = [node for node in ast.walk(tree) if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple)]
    return {call for node in local for call in ast.walk(node.value) if isinstance(call, ast.Call)}


def test_modules_and_functions_fit_the_eye() -> None:
    long = [f"{name} has {length} lines" for name, (text, _) in modules().items() if (length := len(text.splitlines())) > MAX_MODULE]
    long += [
        f"{name}.{node.name} has {length} lines"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_everything_public_or_long_says_what_it_is_for() -> None:
    """A private function of four lines is its own explanation, and a nested one is explained by the function around it."""
    silent = [f"{name} has no docstring" for name, (_, tree) in modules().items() if not ast.get_docstring(tree)]
    silent += [
        f"{name}.{node.name} has no docstring"
        for name, (_, tree) in modules().items()
        for node, nested in functions_and_classes(tree)
        if not node.name.startswith("__") and not ast.get_docstring(node)
        if not (nested or (node.name.startswith("_") and lines_of_body(node) <= 4))
    ]
    assert not silent, "\n".join(silent)


def functions_and_classes(
    tree: ast.AST, *, nested: bool = False
) -> Iterator[tuple[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    """Yield every class and function, and whether it is inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node, nested
        yield from functions_and_classes(node, nested=nested or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def lines_of_body(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines the body has."""
    return (node.end_lineno or 0) - node.body[0].lineno + 1
