"""What README.md, PAPER.md, docs/ and the READMEs of results/ say of the code is true: names, tests, links, line counts,
commands, the loop. (docs/extend.md: test_own.py.)"""
import ast
import csv
import importlib
import re
import shlex

import pytest

from conftest import ROOT
from tools.training import command_line

PAGES = {str(path.relative_to(ROOT)): path.read_text() for pattern in ("*.md", "docs/*.md", "standins/*.md", "results/*/README.md")
         for path in sorted(ROOT.glob(pattern))}
README, PAPER = PAGES["README.md"], PAGES["PAPER.md"]
MODULES = {name.split(".")[-1]: importlib.import_module(name) for name in (
    "drift", "policy", "critic", "topk", "dfp", "config", "buffer", "train_online", "baselines.flow", "baselines.meanflow",
    "tools.report.curves", "tools.report.tables", "tools.simulators.collector")}
TESTS = [f"{path.name}::{node.name}" for path in (ROOT / "tests").glob("test_*.py")
         for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
# results/batch and results/paper tell how older numbers came about; the rest is what a reader may type.
TYPED = [name for name in PAGES if not name.startswith(("results/batch", "results/paper"))]
BLOCKS = [block for name in TYPED for block in re.findall(r"```bash\n(.*?)```", PAGES[name], re.DOTALL)]
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
    assert {"Alg. 1, lines 1–2", "Alg. 1, line 3", "Alg. 1, lines 4–7", "Tables 5, 8"} <= {equation for equation, _, _ in map_rows()}


@pytest.mark.parametrize("name", PAGES)
def test_links_and_figures_exist(name):
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)", PAGES[name]) if "://" not in t]
    assert [t for t in targets if not ((ROOT / name).parent / t).exists()] == []


def test_readme_is_short_and_shows_the_loop_as_it_is():
    def code(text):
        return [line for line in (line.partition("#")[0].rstrip() for line in text.splitlines()) if line]
    assert len(README.split()) <= 1600 and max(map(len, README.splitlines())) <= 120
    shown, = re.findall(r"```python\n(for step in .*?)```", README, re.DOTALL)
    source = (ROOT / "train_online.py").read_text()
    loop = source[source.index("        for step in stage.steps:"):source.index("def both_stages")]
    assert code(shown) == [line[8:] for line in code(loop)]


def test_line_counts():
    for files, counts in re.findall(r"^\| (\[.+?\)) \| ([\d, ]+) \|", README, re.MULTILINE):
        for file, count in zip(re.findall(r"\((\S+?)\)", files), re.findall(r"\d+", counts), strict=True):
            lines = len((ROOT / file).read_text().splitlines())
            assert abs(lines - int(count)) <= 5, f"{file} has {lines} lines, README says {count}"


def test_results_are_the_report_s():
    for name in ("quick", "shipped", "laptop", "unaveraged"):
        assert (ROOT / f"results/{name}/table.md").read_text() in PAGES["docs/results.md"]


def test_what_methods_cost_is_the_benchmark_s():
    """The ratios to DFP in docs/speed.md, ours and the paper's, are those of the tables that are shipped."""
    with open(ROOT / "results/methods/benchmark.csv", newline="") as file:
        ratios = {(row["what"], row["method"], row["mode"] == "Table 9"): row["ratio"] for row in csv.DictReader(file)}
    table = re.search(r"(?m)^\| \| DFP .*\n(?:\|.*\n)+", PAGES["docs/speed.md"])[0].splitlines()
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
