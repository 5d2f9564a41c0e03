"""Who imports whom, read from the imports themselves; and what no production code does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("schemas", "connectors", "pipeline", "learners")
SCRIPTS = ("penstock.py", "beam_runner.py")

LAYERS: dict[str, tuple[str, ...]] = {
    "schemas": (),
    "connectors": ("schemas",),
    "pipeline.steps": ("schemas",),
    "pipeline.store": ("schemas",),
    "pipeline.quality": ("schemas",),
    "pipeline.curation": ("schemas", "pipeline.store"),
    "pipeline.stream": ("schemas", "pipeline.store", "pipeline.service.client"),
    "pipeline.jobs": (
        *("schemas", "connectors"),
        *("pipeline.steps", "pipeline.store", "pipeline.quality"),
    ),
    "pipeline.service.client": ("schemas",),
    "pipeline.service": (
        *("schemas", "pipeline.steps", "pipeline.store", "pipeline.quality"),
        *("pipeline.curation", "pipeline.jobs.maintain"),
    ),
    "learners": (
        *("schemas", "pipeline.stream", "pipeline.store", "pipeline.quality"),
        "pipeline.service.client",
    ),
    "pipeline.cli": (*PACKAGES, "penstock", "beam_runner"),
    "penstock": PACKAGES,
    "beam_runner": PACKAGES,
}
"""Each part, and what of ours it may import besides itself."""

HEAVY: dict[str, tuple[str, ...]] = {
    "torch": (
        *("pipeline.stream.torch_adapter", "pipeline.stream.views.torchrl", "learners"),
        *("pipeline.stream.datasets", "pipeline.stream.ranks", "pipeline.stream.torch_transforms"),
        *("pipeline.stream.transport", "pipeline.stream.on_device", "pipeline.stream.bench_device"),
        "pipeline.stream.bench_ceilings",
    ),
    "tensordict": ("pipeline.stream.views.torchrl", "pipeline.stream.tensordicts"),
    "torchrl": ("pipeline.stream.views.torchrl",),
    "d3rlpy": ("pipeline.stream.views.d3rlpy",),
    "lerobot": ("pipeline.stream.views.lerobot",),
    "minari": ("pipeline.stream.views.minari",),
    "h5py": ("connectors",),
    "zarr": ("pipeline.store", "connectors.replay_zarr_store", "connectors.replay_zarr_sink"),
    "dask": ("pipeline.store", "pipeline.jobs.on_dask"),
    "duckdb": ("pipeline.store",),
    "apache_beam": ("pipeline.jobs.on_beam",),
    "distributed": ("pipeline.jobs.on_dask",),
    "gymnasium": (
        *("connectors.gymnasium", "learners", "pipeline.service.gym_wrapper"),
        "pipeline.stream.views.minari",
    ),
    "tensorflow": ("connectors",),
    "tensorflow_datasets": ("connectors",),
    "faiss": ("pipeline.quality.neighbors",),
    "datasketches": ("pipeline.quality",),
    "av": ("schemas.media", "connectors"),
    "PIL": ("schemas.media", "connectors"),
    "fastapi": ("pipeline.service",),
    "starlette": ("pipeline.service",),
    "uvicorn": ("pipeline.service",),
    "prometheus_client": ("pipeline.service",),
    "structlog": ("pipeline.service",),
}
"""Heavy libraries, and the only places that may import them."""

LAZY = ("pipeline.cli", "penstock", "connectors.registry")
"""Where imports inside functions are the way it works."""
EXTRA_MARK = "# noqa: PLC0415"


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    target: str
    line: int
    is_local: bool
    """Inside a function."""
    is_typing: bool
    """Under `if TYPE_CHECKING`."""


def sources() -> dict[str, Path]:
    """Every production module by its dotted name."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    files += [ROOT / script for script in SCRIPTS if (ROOT / script).exists()]
    named = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


SOURCES = sources()
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in SOURCES.items()}


def imports_of(tree: ast.AST, known: frozenset[str] | None = None) -> list[Import]:
    """All imports of a module; `from package import module` counts as the module."""
    modules = frozenset(SOURCES) if known is None else known
    return list(_walk(tree, modules, is_local=False, is_typing=False))


def _walk(
    node: ast.AST, known: frozenset[str], *, is_local: bool, is_typing: bool
) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(alias.name, node.lineno, is_local, is_typing)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            module = "." * node.level + (node.module or "")
            inner = f"{module}.{alias.name}"
            target = inner if inner in known else module
            yield Import(target, node.lineno, is_local, is_typing)
    is_guard = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(
            child, known, is_local=is_local or is_function, is_typing=is_typing or is_guard
        )


def within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def part_of(module: str) -> str | None:
    """The layer a module of ours is of, the narrowest one; None if it is not ours."""
    return max((part for part in LAYERS if within(module, part)), key=len, default=None)


def may_import(module: str, target: str) -> bool:
    part = part_of(module)
    if part is None or target in PACKAGES:
        return False
    return within(target, part) or any(within(target, allowed) for allowed in LAYERS[part])


def ours(target: str) -> bool:
    return target.startswith(".") or target.split(".")[0] in (*PACKAGES, "penstock", "beam_runner")


# -- the project -------------------------------------------------------------------------------


def test_every_module_has_a_layer() -> None:
    lonely = [name for name in SOURCES if part_of(name) is None and name != "pipeline"]
    assert lonely == []
    assert len(SOURCES) > 60


@pytest.mark.parametrize("module", SOURCES)
def test_a_module_imports_what_its_layer_may(module: str) -> None:
    wrong = [
        f"{SOURCES[module]}:{found.line} imports {found.target}"
        for found in imports_of(TREES[module])
        if ours(found.target) and not may_import(module, found.target)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", SOURCES)
def test_heavy_libraries_stay_where_they_live(module: str) -> None:
    wrong = [
        f"{SOURCES[module]}:{found.line} imports {found.target}"
        for found in imports_of(TREES[module])
        for library, places in HEAVY.items()
        if within(found.target, library)
        and not found.is_typing
        and not any(within(module, place) for place in places)
    ]
    assert wrong == []


@pytest.mark.parametrize("module", SOURCES)
def test_no_import_hides_in_a_function(module: str) -> None:
    if any(within(module, place) for place in LAZY):
        return
    lines = SOURCES[module].read_text().splitlines()
    hidden = [
        f"{SOURCES[module]}:{found.line} imports {found.target}"
        for found in imports_of(TREES[module])
        if found.is_local and EXTRA_MARK not in lines[found.line - 1]
    ]
    assert hidden == []


def graph(*, is_at_import: bool) -> dict[str, set[str]]:
    """Modules to the modules and libraries they import; all of it, or what runs at import."""
    return {
        module: {
            found.target
            for found in imports_of(tree)
            if not found.is_typing and not (is_at_import and found.is_local)
        }
        for module, tree in TREES.items()
    }


def cycle(edges: dict[str, set[str]]) -> list[str]:
    """A circle of imports, or nothing."""
    mine = {module: targets & edges.keys() for module, targets in edges.items()}
    try:
        TopologicalSorter(mine).prepare()
    except CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_circles() -> None:
    assert cycle(graph(is_at_import=False)) == []


def loaded(start: str, edges: dict[str, set[str]]) -> set[str]:
    """Everything that importing a module imports, packages of modules included."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.add(module)
            waiting += edges.get(module, ())
            waiting += [module.rpartition(".")[0]] if "." in module else []
    return found


LIGHT = [
    ("pipeline.cli.main", (*HEAVY, "numpy", "pyarrow", "pydantic", "scipy", "fsspec")),
    ("penstock", (*HEAVY, "numpy", "pyarrow", "pydantic", "scipy", "fsspec")),
    ("connectors.registry", tuple(HEAVY)),
    ("pipeline.jobs.ingest", ("torch", "apache_beam", "gymnasium")),
    ("pipeline.jobs.engines", ("torch", "apache_beam", "distributed", "gymnasium", "av")),
    ("pipeline.jobs.on_beam", ("torch", "distributed")),
    ("pipeline.jobs.on_dask", ("torch", "apache_beam")),
    ("pipeline.store.store", ("torch", "apache_beam", "h5py", "gymnasium")),
    ("learners.train", ("apache_beam", "h5py")),
]


@pytest.mark.parametrize(("module", "libraries"), LIGHT, ids=[name for name, _ in LIGHT])
def test_what_a_door_does_not_load(module: str, libraries: tuple[str, ...]) -> None:
    if module not in SOURCES:
        pytest.skip("not there")
    names = {name.split(".")[0] for name in loaded(module, graph(is_at_import=True))}
    assert names & set(libraries) == set()


@pytest.mark.parametrize(
    "package", [name for name in SOURCES if SOURCES[name].name == "__init__.py"]
)
def test_packages_are_a_docstring_only(package: str) -> None:
    tree = TREES[package]
    assert ast.get_docstring(tree)
    assert len(tree.body) == 1


# -- what no production code does ----------------------------------------------------------------

UNSAFE_MODULES = (
    "pickle",
    "_pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
)
UNSAFE_CALLS = (
    "eval",
    "exec",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "pd.read_pickle",
)
UNSAFE_ARGUMENTS = {
    "allow_pickle": True,
    "weights_only": False,
    "shell": True,
    "trust_remote_code": True,
}


def unsafe(tree: ast.AST) -> list[str]:
    """What could run code that data brought along."""
    found = [
        f"line {one.line}: import {one.target}"
        for one in imports_of(tree)
        if any(within(one.target, name) for name in UNSAFE_MODULES)
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE_CALLS:
            found.append(f"line {node.lineno}: {called}")
        arguments = {
            keyword.arg: keyword.value.value
            for keyword in node.keywords
            if isinstance(keyword.value, ast.Constant)
        }
        found += [
            f"line {node.lineno}: {name}={value}"
            for name, value in UNSAFE_ARGUMENTS.items()
            if arguments.get(name) is value
        ]
        if called == "torch.load" and arguments.get("weights_only") is not True:
            found.append(f"line {node.lineno}: torch.load without weights_only=True")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_no_data_brings_code(module: str) -> None:
    assert unsafe(TREES[module]) == []


# -- the checks themselves -----------------------------------------------------------------------


def test_imports_are_found_wherever_they_are() -> None:
    known = frozenset({"schemas.episode", "pipeline.store.blocks"})
    text = """
from typing import TYPE_CHECKING
from schemas import episode
from pipeline.store import blocks
from schemas.episode import Episode
if TYPE_CHECKING:
    import dask.array as da
try:
    import torch
except ImportError:
    pass
class A:
    import json
    def f(self):
        if True:
            from zarr.codecs import X
from . import y
"""
    found = imports_of(ast.parse(text), known)
    assert [one.target for one in found] == [
        *("typing", "schemas.episode", "pipeline.store.blocks", "schemas.episode"),
        *("dask.array", "torch", "json", "zarr.codecs", "."),
    ]
    assert [one.target for one in found if one.is_local] == ["zarr.codecs"]
    assert [one.target for one in found if one.is_typing] == ["dask.array"]


@pytest.mark.parametrize(
    ("module", "target", "allowed"),
    [
        ("schemas.episode", "schemas.spec", True),
        ("schemas.episode", "connectors.base", False),
        ("pipeline.store.blocks", "pipeline.quality.moments", False),
        ("pipeline.store.blocks", "pipeline.storefront", False),
        ("pipeline.curation.select", "pipeline.store.reader", True),
        ("pipeline.stream.plan", "pipeline.service.client", True),
        ("pipeline.stream.plan", "pipeline.service.wal", False),
        ("pipeline.service.client", "pipeline.store.store", False),
        ("pipeline.service.wal", "pipeline.service.client", True),
        ("pipeline.service.wal", "pipeline.jobs.ingest", False),
        ("pipeline.jobs.ingest", "learners.base", False),
        ("learners.iql", "pipeline.jobs.ingest", False),
        ("pipeline.cli.main", "learners.iql", True),
        ("connectors.d4rl", ".base", False),
    ],
)
def test_rules(module: str, target: str, allowed: bool) -> None:
    assert may_import(module, target) is allowed


def test_circles_are_found() -> None:
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})
    assert cycle({"a": {"a"}})
    assert cycle({"a": {"b", "numpy"}, "b": {"c"}, "c": set()}) == []
    assert loaded("a.x", {"a.x": {"b.y"}, "b": {"torch"}}) == {"a", "a.x", "b", "b.y", "torch"}


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "eval('1')",
        "exec(x)",
        "yaml.load(x)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "subprocess.run(x, shell=True)",
        "os.system('x')",
    ],
)
def test_unsafe_code_is_found(text: str) -> None:
    assert unsafe(ast.parse(text))
    assert not unsafe(ast.parse("np.load(f, allow_pickle=False); model.eval(); yaml.safe_load(x)"))
