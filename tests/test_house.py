"""The structure of the sources: imports point one way, late ones included; what is made to be copied stands alone; lines and
functions stay short."""
import ast
import subprocess

import pytest
from conftest import ROOT

FILES = [name for name in subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"], cwd=ROOT,
                                         capture_output=True, text=True).stdout.split()
         if not name.startswith("tests/") and (ROOT / name).exists()]
MODULES = {name[:-3].replace("/", ".").removesuffix(".__init__"): name for name in FILES}
CONCEPTS = ("drift.py", "policy.py", "critic.py", "topk.py", "dfp.py", "baselines/flow.py", "baselines/meanflow.py")
# What a floor may import: itself and what stands before it.
FLOORS = (*[[name] for name in CONCEPTS[:5]], ["config.py"], ["buffer.py", "envs.py"], ["baselines/"],
          ["tools/training/command_line.py"], ["tools/simulators/"], ["tools/speed/fast.py", "tools/speed/graph.py"], ["run.py"],
          ["tools/official/"], ["data.py", "tools/standins/", "tools/demos.py"], ["tools/training/", "tools/report/", "tools/pictures/"],
          ["tools/speed/seeds.py"], ["train_offline.py"], ["train_online.py", "evaluate.py"], ["tools/sweep.py", "tools/benchmark.py"])


def imported(name: str) -> set[str]:
    """The files of ours that a file imports, wherever in it, and "torch" and the like for others."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            names = [n for n in names if n in MODULES] or [node.module]
        found |= {MODULES.get(n, n.split(".")[0]) for n in names}
    return found - {name} - {f for f in found if f.endswith("__init__.py") and not (ROOT / f).read_text()}


GRAPH = {name: imported(name) for name in FILES}


def floor(name: str) -> int:
    """The most particular entry decides: a file before its folder."""
    return max((len(place), number) for number, places in enumerate(FLOORS) for place in places if name.startswith(place))[1]


def test_no_cycle_of_files():
    left = {name: {other for other in others if other in GRAPH} for name, others in GRAPH.items()}
    while free := [name for name, others in left.items() if not others]:
        left = {name: others - set(free) for name, others in left.items() if name not in free}
    assert not left, f"these import each other in a circle, or import those that do: {sorted(left)}"


@pytest.mark.parametrize("name", [name for name in FILES if (ROOT / name).read_text()])
def test_imports_point_one_way(name):
    above = [other for other in GRAPH[name] if other in GRAPH and floor(other) > floor(name)]
    late = {"data.py": {"tools/report/dataset.py"}, "tools/training/stage.py": set(), "train_online.py": set()}.get(name, set())
    assert not set(above) - late, f"{name} imports {above}, which stand above it"


def test_concepts_stand_alone():
    assert GRAPH["drift.py"] == {"torch"}
    for name in CONCEPTS:
        assert not [other for other in GRAPH[name] if other.startswith("tools/")], name


@pytest.mark.parametrize("name", FILES)
def test_short_lines_and_functions(name):
    source = (ROOT / name).read_text()
    assert [line for line in source.split("\n") if len(line) > 120] == []
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []
