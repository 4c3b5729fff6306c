"""The command blocks of README.md, docs/ and results/, run as they are printed, by bash, in a copy of the project: with
fewer steps, and less of all."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from test_docs import BLOCKS

# Stands in PATH as `python`, and says after each command what is to be less of. The last word wins. Knobs given by hand
# name a run's folder, so that what evaluates one has to look for it.
LESS = f"""#!{sys.executable}
import glob, os, sys
words = sys.argv[1:]
what = words[1] if words[0] == "-m" else words[0]
def less(text):
    words.extend(text.split())
task = words[words.index("--task") + 1] if "--task" in words else "lift" if what == "tools.sweep" else "square"
size = " --data generated --data-size " + ("4" if task in ("lift", "can", "square") else "2002")
if "--film" in words:                                            # not every machine renders: test_film.py
    film = words.index("--film")
    del words[film:film + 2]
if what in ("train_online.py", "train_offline.py", "tools.sweep") and "--help" not in words:
    less(size + " --no-compile --device cpu --workers 2 --threads 1")
    less("--eval-every 100000 --eval-episodes 1 --offline-steps 10")
    less("--seeds 0 --cluster local" if what == "tools.sweep" else "--seeds 2" if "--seeds" in words else "")
    less("--hidden 16 --batch-size 8" + " --online-steps 12 --warmup 5" * (what != "train_offline.py"))
    if what != "tools.sweep":
        less("--resume")                                         # several lines name the same run
elif what == "evaluate.py":
    words[1] = glob.glob(words[1].replace("/quick/", "/quick*/"))[0]
    less("--episodes 1")
elif what == "data.py":
    less(size + " --check 1" * ("--check" in words))
elif what == "tools.demos":
    less("--size 4" if task in ("lift", "can", "square") else "--size 2002")
elif what == "tools.benchmark":
    less("--task lift --preset quick --device cpu --largest 1024 --rounds 1 --repeat 1 --steps 30")
    words.extend(["--modes", "plain auto"])
with open("said", "a") as file:
    print(*words, file=file)
os.execv({sys.executable!r}, [{sys.executable!r}, *words])
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The project's files, without what was made by running it."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", "runs*", "data", "__pycache__", ".*_cache"))
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text(LESS)
    (folder / "bin/python").chmod(0o755)
    return folder


def bash(folder: Path, text: str) -> None:
    # Installed already; and pytest is what runs this.
    text = re.sub(r"^pip install .*$", "", text, flags=re.MULTILINE)
    text = text.replace("0 1 2", "0").replace("in 0 1;", "in 0;").replace("{0,1,2}", "0").replace("FILE", "missing")
    environment = os.environ | {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-euc", text], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.slow
def test_command_blocks_run(copy):
    for block in BLOCKS:
        bash(copy, block)
    ran = (copy / "said").read_text().splitlines()
    assert len(ran) >= sum(line.count("python ") for block in BLOCKS for line in block.splitlines())


def test_what_needs_no_simulator_runs(copy):
    """The first pages: help, the list of tasks, and the report from the tables that are shipped."""
    bash(copy, f"python train_online.py --help; python -m tools.report {ROOT}/results/quick/runs.csv --out again")
    for name in ("table.md", "report.md"):
        assert (copy / "again" / name).read_text() == (ROOT / "results/quick" / name).read_text()
