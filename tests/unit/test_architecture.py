"""The directions of imports: who may know whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import trtrun

SOURCE = Path(trtrun.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# Layers from the innermost out; a module imports only from its own layer and those before it.
LAYERS = [
    ["errors"],
    ["tensor_spec", "plan"],
    ["runner", "arrays", "flavor", "layout"],
    ["cuda"],
    ["building"],
    ["runtime_cache", "buffers", "output_allocator", "plan_reader", "refit", "turns"],
    ["engine", "batches", "filling", "staging"],
    ["route", "replay", "session", "bound", "staged", "state", "debug_tensors", "onnx_runtime"],
    ["pipeline"],
    ["splitting", "multi_gpu"],
    ["interface"],
    ["bundle"],
    ["predictor", "inspection"],
    ["vision", "benchmark", "comparison", "serve"],
    ["demo", "integrations"],
    ["cli"],
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
# Above the Runner contract: these know no concrete runner.
ABOVE_THE_CONTRACT = {
    "vision": {"errors", "runner", "tensor_spec", "arrays", "cuda", "pipeline"},
    "pipeline": {"errors", "runner", "turns"},
    "serve": {"errors", "runner", "tensor_spec", "cuda", "vision"},
    "splitting": {"errors", "runner", "pipeline", "tensor_spec"},
    "multi_gpu": {"errors", "runner", "tensor_spec"},
}

OURS = {
    "inspection.py": {"device_memory_size"},
    "batcher.py": {"max_batch_size"},  # Triton's word, for what it means there
    "repository.py": {"max_batch_size"},
}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def imports(path: Path, *, at_run_time_only: bool = False) -> set[str]:
    """Absolute names of the modules that a file imports, functions included."""
    package = ("trtrun", *path.relative_to(SOURCE).parent.parts)
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            found.add(module)
            if not node.module:
                found.update(f"{module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_inward(path: Path) -> None:
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "trtrun" or len(parts) < 2 or parts[1] == "__version__":
            continue
        assert RANK[parts[1]] <= RANK[room], f"{room} imports {name}"
        if room in ABOVE_THE_CONTRACT and parts[1] != room:
            assert parts[1] in ABOVE_THE_CONTRACT[room], f"{room} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_flavor_imports_tensorrt_and_only_cuda_imports_cuda(path: Path) -> None:
    for name in imports(path):
        top = name.split(".")[0]
        assert not top.startswith("tensorrt"), f"{path.name} imports {name}"
        assert top != "cuda" or room_of(path) == "cuda", f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_names_that_tensorrt_10_removed_are_not_used(path: Path) -> None:
    removed = {
        "num_bindings", "get_binding_shape", "get_binding_dtype", "get_binding_name", "get_binding_index",
        "binding_is_input", "set_binding_shape", "execute_async", "execute_async_v2", "max_workspace_size",
        "build_engine", "build_cuda_engine", "max_batch_size", "get_location", "device_memory_size",
    }  # fmt: skip
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        # Our own modules and classes have names of their own: demo.build_engine, Engine.device_memory_size.
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "demo"):
            assert node.attr not in removed - OURS.get(path.name, set()), f"{path.name}:{node.lineno}"


def test_one_place_opens_models_with_onnx_runtime() -> None:
    """Others would let it optimize what it breaks."""
    assert [path.name for path in FILES if "InferenceSession(" in path.read_text()] == ["onnx_session.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_graphs_are_not_cuda_core_s(path: Path) -> None:
    """Theirs can be waited for 33 µs longer than the GPU works: see cuda/graph.py."""
    assert "cuda.core.graph" not in imports(path)
    assert "create_graph_builder" not in path.read_text()
