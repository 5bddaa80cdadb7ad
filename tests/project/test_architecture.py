"""The direction of imports, as drawn in docs/decisions/architecture.md."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

from tests.paths import ROOT

_NODES = 26  # a diagram with more nodes is hard to read


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Return the imports between the modules and packages directly below `portal` and `digest`."""
    graph = grimp.build_graph("portal", "digest", cache_dir=None)

    def node(module: str) -> str:
        first, _, rest = module.partition(".")
        return first if first == "digest" or not rest else f"{first}.{rest.partition('.')[0]}"

    found: dict[str, set[str]] = {node(module): set() for module in graph.modules}
    for module in graph.modules:
        found[node(module)] |= {node(other) for other in graph.find_modules_directly_imported_by(module)}
    return {name: others - {name} for name, others in found.items()}


def test_the_layers_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_top_level_is_small_and_has_no_cycle(imports: dict[str, set[str]]) -> None:
    assert len(imports) <= _NODES
    assert len(list(TopologicalSorter(imports).static_order())) == len(imports)  # raises CycleError


def test_bottles_thread_local_objects_are_read_in_one_place() -> None:
    """Handlers get a `Request`: thread-local objects are not visible in their signature."""
    readers = []
    for path in (ROOT / "portal").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "bottle":
                names = {alias.name for alias in node.names}
                readers += [path.relative_to(ROOT).as_posix()] * bool(names & {"request", "response", "local", "*"})
            elif isinstance(node, ast.Import):
                assert "bottle" not in {alias.name for alias in node.names}, path
    assert readers == ["portal/web/__init__.py"]


def test_view_models_import_no_store(imports: dict[str, set[str]]) -> None:
    graph = grimp.build_graph("portal", cache_dir=None)
    assert not [module for module in graph.find_upstream_modules("portal.web.rows") if "stores" in module]
