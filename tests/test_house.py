"""The structure of the sources: imports point one way, late ones included; what is made to be copied stands alone; lines
and functions stay short."""
import ast

import pytest

from conftest import ROOT

FILES = sorted(str(path.relative_to(ROOT)) for pattern in ("*.py", "baselines/*.py", "tools/**/*.py")
               for path in ROOT.glob(pattern) if path.read_text())
MODULES = {name[:-3].replace("/", ".").removesuffix(".__init__"): name for name in FILES}
# From the ground up. A file or folder imports from its own floor and from those below it.
FLOORS = (["drift.py", "policy.py", "topk.py"], ["critic.py"], ["dfp.py"], ["baselines/"],
          ["tools/checks.py", "tools/egl_probe/"], ["config.py"],
          ["tools/simulators/fast_robosuite.py", "tools/simulators/own.py", "tools/simulators/robosuite_setup.py"],
          ["buffer.py", "envs.py", "tools/training/command_line.py", "tools/training/files.py"],
          ["tools/official/", "tools/report/dataset.py", "tools/pictures/data.py"],
          ["tools/simulators/", "tools/speed/", "tools/pictures/film.py"], ["tools/standins/"],
          ["tools/official/fetch.py"],
          ["data.py", "run.py", "tools/demos.py"], ["evaluate.py", "tools/export.py"],
          ["tools/training/", "tools/report/"], ["tools/pictures/", "tools/speed/seeds.py"],
          ["train_offline.py"], ["train_online.py"], ["tools/sweep.py", "tools/benchmark.py"])


def imported(name: str) -> set[str]:
    """What a file imports, wherever in it: files of ours, and "torch" and the like."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / name).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inside = {f"{node.module}.{alias.name}" for alias in node.names} & set(MODULES)
            found |= inside or {node.module}
    return {MODULES.get(module, module.split(".")[0]) for module in found} - {name}


GRAPH = {name: imported(name) for name in FILES}


def floor(name: str) -> int:
    """The most particular place decides: a file before its folder."""
    return max((len(place), i) for i, places in enumerate(FLOORS) for place in places if name.startswith(place))[1]


def test_no_cycle_of_files():
    left = {name: others & set(FILES) for name, others in GRAPH.items()}
    while free := {name for name, others in left.items() if not others}:
        left = {name: others - free for name, others in left.items() if name not in free}
    assert not left, f"these import each other in a circle, or import those that do: {sorted(left)}"


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    assert [other for other in GRAPH[name] & set(FILES) if floor(other) > floor(name)] == []


def test_drift_needs_torch_alone():
    assert GRAPH["drift.py"] == {"torch"}


@pytest.mark.parametrize("name", FILES)
def test_short_lines_and_functions(name):
    source = (ROOT / name).read_text()
    assert [line for line in source.split("\n") if len(line) > 120] == []
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    assert [f.name for f in functions if f.end_lineno - f.lineno >= 60] == []
