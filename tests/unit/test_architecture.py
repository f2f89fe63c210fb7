"""Keep the tree honest (ARCHITECTURE 1): imports point down, the core and the wire are pure, adapters are named in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "worker").rglob("*.py"))

# From the top down: a module may import from its own layer and from those below it.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("reference",),
    ("cli", "__main__", "schema_files", "testing"),
    ("app", "mcp_server"),
    ("invariants",),
    ("client", "__init__"),
    ("supervisor", "bus", "store", "health", "probes"),
    (
        "tracking",
        "census",
        "tracing",
        "spans",
        "consumer",
        "relay",
        "pruner",
        "dispatcher",
        "wait_engine",
        "api",
        "acceptance",
        "outlets",
        "reading",
        "signals",
        "inspector",
        "copying",
        "systemd",
    ),
    ("lanes",),
    ("admin",),
    ("manager",),
    ("engine", "deciding", "queueing", "submission"),
    ("bus.base", "store.base", "store.overview", "store.records", "telemetry", "sparing", "metrics", "timings", "config"),
    ("wire",),
    ("flow",),
    ("errors", "times", "durations", "futures", "version"),
)
ADAPTERS = ("worker.store.sqlite", "worker.bus.jetstream", "worker.bus.memory", "worker.bus.connection")
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
    parts = path.relative_to(ROOT / "worker").with_suffix("").parts
    return ".".join(parts if parts[-1] != "__init__" or len(parts) == 1 else parts[:-1])


def layer_of(module: str) -> int:
    """Return the layer of the longest prefix that is listed."""
    tokens = module.split(".")
    for length in range(len(tokens), 0, -1):
        prefix = ".".join(tokens[:length])
        for level, names in enumerate(LAYERS):
            if prefix in names:
                return level
    raise AssertionError(f"worker.{module} belongs to no layer: add it to LAYERS where it belongs")


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


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_its_layer_and_below(path: Path) -> None:
    own = layer_of(name_of(path))
    known = {name_of(module) for module in MODULES}
    for imported, _ in imports(ast.parse(path.read_text())):
        target = imported.removeprefix("worker.")
        if imported.startswith("worker.") and target in known:
            assert layer_of(target) >= own, f"worker.{name_of(path)} imports up: {imported}"


@pytest.mark.parametrize("path", [m for m in MODULES if name_of(m).split(".")[0] in {"flow", "wire"}], ids=name_of)
def test_the_core_and_the_wire_are_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    used = {imported.split(".")[0] for imported, at_run_time in imports(tree) if at_run_time}
    assert not used & IMPURE, f"worker.{name_of(path)} imports {used & IMPURE}"
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree)), f"worker.{name_of(path)} is async"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_adapters_are_named_only_in_the_composition_root(path: Path) -> None:
    module = name_of(path)
    if module in NAMING_ADAPTERS or module.split(".")[0] in {"bus", "store"}:
        return
    named = {imported for imported, _ in imports(ast.parse(path.read_text())) if imported in ADAPTERS}
    assert not named, f"worker.{module} names {named}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_fits_the_eye(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert len(text.splitlines()) <= MAX_MODULE, f"worker.{name_of(path)} has {len(text.splitlines())} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"worker.{name_of(path)}.{node.name} has {length} lines"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_everything_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"worker.{name_of(path)} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("__"):
            assert ast.get_docstring(node), f"worker.{name_of(path)}: {node.name} has no docstring"
