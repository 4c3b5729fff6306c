"""The soak's measure and its verdict; `python tests/soak.py 30` is the soak itself."""
import os
import subprocess
import sys

import pytest

import soak


def test_what_grows_is_found():
    flat = [{"main MB": 400 + i % 3, "workers MB": 300, "files": 40 + i % 2, "processes": 4} for i in range(30)]
    assert soak.grown(flat) == []
    assert soak.grown([s | {"main MB": 200} for s in flat[:10]] + flat[10:]) == []               # before, all may grow
    leaks = {"main MB": [400 + 3 * i for i in range(30)], "workers MB": [300 + 2 * i for i in range(30)],
             "files": [40 + i // 5 for i in range(30)], "processes": [4 + (i >= 20) for i in range(30)]}
    for name, values in leaks.items():
        found = soak.grown([s | {name: value} for s, value in zip(flat, values)])
        assert [words.split(" grew")[0] for words in found] == [name]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="Linux only")
def test_a_process_and_its_children_are_measured():
    child = ("held = bytearray(30_000_000); files = [open('/dev/null') for _ in range(7)]; print(1, flush=True); "
             "input()")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               start_new_session=True)
    process.stdout.readline()
    found = soak.measure(process.pid)
    process.communicate(b"\n")
    assert found["processes"] == 2 and found["files"] >= 3 + 3 + 7 and found["workers MB"] > 30 > found["main MB"] > 1
    assert soak.measure(process.pid)["processes"] == 0
