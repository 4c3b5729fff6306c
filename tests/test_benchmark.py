"""What the benchmark prints adds up. (No test asserts a speed.)"""
import csv
import sys

import pytest

from tools import benchmark


def test_rows_add_up(tmp_path, monkeypatch):
    common = "--preset quick --device cpu --task lift --repeat 1 --rounds 1 --steps 30 --largest 1024 --out"
    words = [*common.split(), str(tmp_path), *"--methods dfp mvp --seeds 2 --modes".split(), "plain auto"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *words])
    benchmark.main()
    with open(tmp_path / "benchmark.csv", newline="") as file:
        rows = {(row["what"], row["method"]): row for row in csv.DictReader(file)}
    ms = {key: float(row["ms"]) for key, row in rows.items() if row["ms"]}
    for stage in ("offline", "online"):
        row, one = rows[f"{stage} update", "dfp"], ms[f"{stage} update", "dfp"]
        assert float(row["gflop"]) / one * 1e3 == pytest.approx(float(row["rate"]), rel=0.1)
        assert float(row["rate"]) / float(row["peak"]) == pytest.approx(float(row["ratio"]), abs=0.02)
        mvp, seeds = f"{stage} update / dfp's", f"{stage} update, 2 seeds / one"
        assert float(rows[mvp, "mvp"]["ratio"]) == pytest.approx(ms[f"{stage} update", "mvp"] / one, abs=0.01)
        assert float(rows[seeds, "dfp"]["ratio"]) == pytest.approx(ms[seeds, "dfp"] / one, abs=0.01)
    for what, method in (("simulator step", "-"), ("act, best of 4", "dfp"), ("demonstrations a minute", "-")):
        assert float(rows[what, method]["rate"]) > 0
    assert ms["step of a run", "dfp"] > ms["simulator step", "-"] / 5            # of a chunk the first is waited for
    ratio = ms["act, best of 16", "mvp"] / ms["act, best of 4", "dfp"]
    assert float(rows["act / dfp's", "mvp"]["ratio"]) == pytest.approx(ratio, rel=0.05)
    fast, own = (float(rows[f"simulator step{text}", "-"]["ms"]) for text in ("", ", robosuite's own"))
    assert float(rows["simulator step / robosuite's own", "-"]["ratio"]) == pytest.approx(fast / own, abs=0.02)
    theirs = [float(rows[f"{what} / dfp's", "mvp"]["ratio"]) for what in ("online step", "action")]
    assert theirs == [0.97, 0.88]                                # Table 9: 13.2 / 13.6, 25.7 / 29.3
