"""The structure: who may import whom, what is not loaded, how large functions may grow."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY

# A room of `common` imports only itself and the rooms above it.
ROOMS = (
    "errors",
    "functions",
    "seeds",
    "process",
    "console",
    "compat",
    "config",
    "runs",
    "tasks",
    "rewards",
    "objective",
    "modeling",
    "parallel",
    "engines",
    "rollout",
    "training",
    "accuracy",
    "reporting",
    "command",
    "stage",
)
SOURCES = sorted(
    path
    for folder in ("common", "stages", "workflows")
    for path in (REPOSITORY / folder).rglob("*.py")
)
DOCUMENTED = {"_exit", "_replace"}
"""Of `os` and of named tuples: public by their documentation, whatever their names."""
REFLECTION = ("getattr", "setattr", "hasattr", "delattr")
INSIDE_THE_SANDBOX = ("child.py", "exec")
LIGHT = ("score", "show")
HEAVY = {"torch", "transformers", "datasets", "math_verify", "reasoning_gym", "pandas"} | {
    "sympy",
    "sentence_transformers",
}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules that a file imports, and whether at its top level."""
    tree = ast.parse(path.read_text())
    found: list[tuple[str, bool]] = []
    top = {id(node) for node in tree.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_data_flows_one_way(path: Path) -> None:
    parts = path.relative_to(REPOSITORY).with_suffix("").parts
    for module, _ in imports(path):
        target = module.split(".")
        if target[0] not in ("common", "stages", "workflows", "tests"):
            continue
        assert target[0] != "tests"
        if parts[0] == "common":
            assert target[0] == "common", f"{module}: common imports only common"
            mine, theirs = ROOMS.index(parts[1]), ROOMS.index(target[1])
            assert theirs <= mine, f"{module}: {target[1]} stands below {parts[1]}"
        if parts[0] == "stages":
            assert target[0] == "common", f"{module}: stages meet only through files"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_slow_packages_are_imported_where_they_are_used(path: Path) -> None:
    slow = {"datasets", "math_verify", "matplotlib", "reasoning_gym", "trl"}
    slow |= {"sentence_transformers"}
    for module, top_level in imports(path):
        assert not (top_level and module.split(".")[0] in slow), f"{module} at top level"
        assert not (top_level and module.endswith("AutoTokenizer")), f"{module} at top level"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_functions_stay_small(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, node.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_module_and_nothing_dangerous(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert path.name == "__init__.py" or ast.get_docstring(tree), "a module says what it is"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if (path.name, called) == INSIDE_THE_SANDBOX:
                continue
            assert called not in ("eval", "exec", "os.system", "torch.load", "torch.save")
            assert not called.startswith(("pickle.", "dill."))
            for keyword in node.keywords:
                truthy = ast.unparse(keyword.value) != "False"
                assert not (keyword.arg in ("trust_remote_code", "shell") and truthy)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_private_interfaces_stand_in_one_module(path: Path) -> None:
    """A name that begins with _ belongs to the file that defines it; `compat` may use any."""
    tree = ast.parse(path.read_text())
    if path.relative_to(REPOSITORY) == Path("common/compat.py"):
        assert private_uses(tree), "the search finds none at all"
    else:
        assert not private_uses(tree)


def private_uses(tree: ast.AST) -> list[str]:
    """Names that begin with _ and come from elsewhere."""
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    found = []
    for node in nodes:
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            if node.attr not in own | DOCUMENTED:
                found.append(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found += [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            found += [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in REFLECTION:
            found += [a.value for a in node.args if isinstance(a, ast.Constant)]
    return [n for n in map(str, found) if n.startswith("_") and not n.startswith("__")]


@pytest.mark.parametrize("stage", LIGHT)
def test_light_stages_load_no_tensor_library(stage: str) -> None:
    code = f"import sys, stages.{stage}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & HEAVY
