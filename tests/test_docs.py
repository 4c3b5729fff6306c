"""What README.md, PAPER.md and the READMEs of results/quick and results/ablations say of the code is true: names,
tests, links, line counts, commands. (docs/own_task.md: test_own.py.)"""
import ast
import csv
import importlib
import re
import shlex

import pytest

from conftest import ROOT
from tools.training import command_line

README, PAPER, *RESULTS = ((ROOT / name).read_text() for name in (
    "README.md", "PAPER.md", "results/quick/README.md", "results/ablations/README.md"))
MODULES = {name.split(".")[-1]: importlib.import_module(name) for name in (
    "drift", "policy", "critic", "topk", "dfp", "config", "train_online", "baselines.flow", "baselines.meanflow",
    "tools.report.curves", "tools.report.tables", "tools.simulators.collector")}
TESTS = [f"{path.name}::{node.name}" for path in (ROOT / "tests").glob("test_*.py")
         for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
BLOCKS = re.findall(r"```bash\n(.*?)```", "".join(RESULTS) + README, re.DOTALL)
COMMANDS = [line.partition("#")[0].strip() for block in BLOCKS for line in block.splitlines()]


def map_rows():
    """(equation, symbols, tests) of PAPER.md's first table and of the baselines'."""
    for heading in ("## Where each equation lives", "## The baselines"):
        table = re.search(r"(?:^\|.*\n)+", PAPER.split(heading)[1], re.MULTILINE)[0].splitlines()[2:]
        for paper, _, here, checks in (line.strip("|").split(" | ") for line in table):
            yield paper.strip(), re.findall("`(.+?)`", here), re.findall("`(.+?)`", checks)


def exists(symbol: str) -> bool:
    """`topk.top_k_actions`, or `DFP.update` in any module."""
    first, *rest = symbol.split(".")
    for found in ([MODULES[first]] if first in MODULES else [getattr(m, first, None) for m in MODULES.values()]):
        for name in rest:
            found = getattr(found, name, None)
        if found is not None:
            return True
    return False


@pytest.mark.parametrize("equation, symbols, tests", map_rows())
def test_map_names_code_and_tests_that_exist(equation, symbols, tests):
    assert symbols and [s for s in symbols if not exists(s)] == []
    pattern = lambda name: re.escape(name).replace("…", r"\w*")                # noqa: E731
    assert tests and [t for t in tests if not any(re.fullmatch(pattern(t), known) for known in TESTS)] == []


def test_map_is_complete():
    numbers = set()
    for equation, _, _ in map_rows():
        for part in re.findall(r"Eqs?\. ([\d–, ]+)", equation):
            for first, last in re.findall(r"(\d+)(?:–(\d+))?", part):
                numbers |= set(range(int(first), int(last or first) + 1))
    assert numbers == set(range(1, 19))
    assert {"Alg. 1, lines 1–2", "Alg. 1, lines 3–7", "Tables 5, 8"} <= {equation for equation, _, _ in map_rows()}


def test_links_and_figures_exist():
    for text in (README, PAPER):
        targets = [t for t in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in t]
        assert targets or text is PAPER
        assert [t for t in targets if not (ROOT / t).exists()] == []


def test_line_counts():
    for files, counts in re.findall(r"^\| (\[.+?\)) \| ([\d, ]+) \|", README, re.MULTILINE):
        for file, count in zip(re.findall(r"\((\S+?)\)", files), re.findall(r"\d+", counts), strict=True):
            lines = len((ROOT / file).read_text().splitlines())
            assert abs(lines - int(count)) <= 5, f"{file} has {lines} lines, README says {count}"


def test_results_are_the_report_s():
    assert (ROOT / "results/quick/table.md").read_text() in README


def test_what_methods_cost_is_the_benchmark_s():
    """README's ratios to DFP, ours and the paper's, are those of the tables that are shipped."""
    with open(ROOT / "results/methods/benchmark.csv", newline="") as file:
        ratios = {(row["what"], row["method"], row["mode"] == "Table 9"): row["ratio"] for row in csv.DictReader(file)}
    table = re.search(r"(?m)^\| \| DFP .*\n(?:\|.*\n)+", README)[0].splitlines()
    methods, _, *rows = (line.strip("| ").split(" | ") for line in table)
    rows = {name: cells for name, *cells in rows}
    names = {"offline update": ("offline update", ""), "online update": ("online update", "online step"),
             "choosing a chunk": ("act", "action")}
    for name, (ours, paper) in names.items():
        for method, cell in zip(methods, rows[name], strict=True):
            mine = ratios.get((f"{ours} / dfp's", method.lower(), False))
            papers = ratios.get((f"{paper} / dfp's", method.lower(), True))
            known = ", *".join(filter(None, (mine, papers))) + "*" * (papers is not None)
            assert cell == ("1" if method == "DFP" else known)


def test_commands_are_understood(capsys):
    """Every command line names files that exist and options that are known. (They are run by test_readme.py.)"""
    trained = 0
    text = "\n".join(COMMANDS).replace("$t", "lift").replace("$s", "1").replace("$m", "mvp")
    for command in re.split(r"&&|;|\n", text):
        words = shlex.split(command.strip().removeprefix("do "))
        if words[:1] == ["python"]:
            script = words[2].replace(".", "/") + ".py" if words[1] == "-m" else words[1]
            assert (ROOT / script).is_file() or (ROOT / script[:-3] / "__main__.py").is_file(), command
            if script.startswith("train_") and "--help" not in words:
                trained += 1
                with pytest.raises(SystemExit) as end:
                    command_line.parse("", words[2:] + ["--print-config"])
                assert end.value.code == 0
    assert trained >= 6
