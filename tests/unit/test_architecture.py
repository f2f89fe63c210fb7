"""Keep the tree honest (ARCHITECTURE 1): imports point down, the core and the wire are pure, adapters are named in one place.

Each rule is one test, which lists every offender at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the top down: a module may import from its own layer and from those below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("reference",),
    ("cli", "__main__", "schema_files", "testing"),
    ("app", "mcp_server"),
    ("invariants",),
    ("client", "__init__"),
    ("supervisor", "bus", "store", "health", "probes", "http_server", "http_connection", "http_bounds"),
    (
        "tracking",
        "census",
        "tracing",
        "spans",
        "consumer",
        "outcome_sender",
        "recovery",
        "relay",
        "pruner",
        "dispatcher",
        "wait_engine",
        "api",
        "acceptance",
        "policy",
        "outlets",
        "reading",
        "signals",
        "inspector",
        "copying",
        "systemd",
        "topology",
    ),
    ("lanes", "letters"),
    ("admin",),
    ("manager",),
    ("engine", "deciding", "deferral", "aftermath", "burial", "dedupe", "portion", "queueing", "submission", "recall", "quota"),
    (
        *("bus.base", "bus.endpoints", "store.base", "store.overview", "store.records"),
        *("telemetry", "sparing", "line_writer", "metrics", "timings", "config"),
    ),
    ("wire",),
    ("flow",),
    (
        "errors",
        "tasks",
        "json_schema",
        "times",
        "durations",
        "futures",
        "turnstile",
        "logger",
        "prose",
        "version",
        "signal_mask",
        "collecting",
        "ownership",
        "program",
        "atomic_file",
        "secrecy",
    ),
)
ADAPTERS = (
    "nats_taskflow.store.sqlite.store",
    "nats_taskflow.bus.nats.bus",
    "nats_taskflow.bus.memory.bus",
    "nats_taskflow.bus.nats.connection",
)
NAMING_ADAPTERS = {"app", "cli.dev", "cli.demo_story", "testing.database", "testing.memory", "testing.chaos"}
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
    parts = path.relative_to(ROOT / "worker" / "nats_taskflow").with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


@cache
def modules() -> dict[str, tuple[str, ast.Module]]:
    """Return every module's text and tree, by its name."""
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in sorted((ROOT / "worker" / "nats_taskflow").rglob("*.py"))}
    return {name: (text, ast.parse(text)) for name, text in texts.items()}


def layer_of(module: str) -> int | None:
    """Return the layer of the longest prefix that is listed."""
    tokens = module.split(".")
    for length in range(len(tokens), 0, -1):
        prefix = ".".join(tokens[:length])
        for level, names in enumerate(LAYERS):
            if prefix in names:
                return level
    return None


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Yield every imported module, and whether at run time (not for type checking only)."""
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


def test_every_module_belongs_to_a_layer() -> None:
    homeless = [name for name in modules() if layer_of(name) is None]
    assert not homeless, f"add each to LAYERS where it belongs: {homeless}"


def test_a_module_imports_only_from_its_layer_and_below() -> None:
    layers = {name: layer_of(name) or 0 for name in modules()}
    upward = [
        f"worker.{name} imports {imported}"
        for name, (_, tree) in modules().items()
        for imported, _ in imports(tree)
        if imported.startswith("nats_taskflow.") and layers.get(imported.removeprefix("worker."), layers[name]) < layers[name]
    ]
    assert not upward, "\n".join(upward)


def test_the_core_and_the_wire_are_pure() -> None:
    pure = {name: tree for name, (_, tree) in modules().items() if name.split(".")[0] in {"flow", "wire"}}
    impure = [
        f"worker.{name} imports {imported}"
        for name, tree in pure.items()
        for imported, at_run_time in imports(tree)
        if at_run_time and imported.split(".")[0] in IMPURE
    ]
    impure += [
        f"worker.{name} is async"
        for name, tree in pure.items()
        if any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    ]
    assert pure
    assert not impure, "\n".join(impure)


def test_adapters_are_named_only_in_the_composition_root() -> None:
    naming = [
        f"worker.{name} names {imported}"
        for name, (_, tree) in modules().items()
        if name not in NAMING_ADAPTERS and name.split(".")[0] not in {"bus", "store"}
        for imported, _ in imports(tree)
        if imported in ADAPTERS
    ]
    assert not naming, "\n".join(naming)


def test_one_place_says_how_this_program_is_started() -> None:
    """`python -m nats_taskflow` by hand would run a `worker` of the working directory."""
    starting = [
        f"worker.{name}:{node.lineno}"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "-m" and name != "program"
    ]
    assert not starting, f"say program.command(...) instead: {starting}"


def test_no_task_can_end_in_silence() -> None:
    """`nats_taskflow.tasks` starts what goes on for ever. What is started elsewhere is awaited by the function that starts it."""
    silent = [
        f"worker.{name}:{node.lineno}"
        for name, (_, tree) in modules().items()
        if name != "tasks" and name.split(".")[0] != "testing"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"create_task", "TaskGroup"}
    ]
    silent += [
        f"worker.{name}:{call.lineno}"
        for name, (_, tree) in modules().items()
        if name != "mcp_server.line"  # each call awaits it
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
    long = [f"worker.{name} has {length} lines" for name, (text, _) in modules().items() if (length := len(text.splitlines())) > MAX_MODULE]
    long += [
        f"worker.{name}.{node.name} has {length} lines"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION
    ]
    assert not long, "\n".join(long)


def test_everything_says_what_it_is_for() -> None:
    silent = [f"worker.{name} has no docstring" for name, (_, tree) in modules().items() if not ast.get_docstring(tree)]
    silent += [
        f"worker.{name}.{node.name} has no docstring"
        for name, (_, tree) in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if not node.name.startswith("__") and not ast.get_docstring(node)
    ]
    assert not silent, "\n".join(silent)
