"""What the benchmark prints adds up. (No test asserts a speed.)"""
import argparse
import csv
import sys

import pytest
import torch

from config import UserError
from tools import benchmark, ranking


def test_rows_add_up(tmp_path, monkeypatch):
    words = "--task lift --preset quick --methods dfp mvp --device cpu --largest 1024 --rounds 1 --repeat 1 --seeds 2 --workers 1"
    monkeypatch.setattr(benchmark, "simulating", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["benchmark", *words.split(), "--modes", "plain auto", "--out", str(tmp_path)])
    benchmark.main()
    with open(tmp_path / "benchmark.csv", newline="") as file:
        rows = {(row["what"], row["method"]): row for row in csv.DictReader(file)}
    ms = {key: float(row["ms"]) for key, row in rows.items() if row["ms"]}
    for stage in ("offline", "online"):
        row = rows[f"{stage} update", "dfp"]
        assert float(row["gflop"]) / ms[f"{stage} update", "dfp"] * 1e3 == pytest.approx(float(row["rate"]), rel=0.1)
        assert float(row["rate"]) / float(row["peak"]) == pytest.approx(float(row["ratio"]), abs=0.02)
        share = ms[f"{stage} update", "mvp"] / ms[f"{stage} update", "dfp"]
        assert float(rows[f"{stage} update / dfp's", "mvp"]["ratio"]) == pytest.approx(share, abs=0.01)
    assert [float(rows[f"{what} / dfp's", "mvp"]["ratio"]) for what in ("online step", "action")] == [0.97, 0.88]      # 13.2/13.6, 25.7/29.3
    assert ("online update of 2 seeds", "dfp") in ms and float(rows["online update, 2 seeds / one", "dfp"]["ratio"]) > 0


def test_work_is_counted_from_the_shapes():
    """The critic's part of an offline update by hand: forward and twice that backward for two networks at the data's actions, one
    pass each of the candidates and of the chosen ones; the actor's: N' candidates, and N_gen samples with their gradients."""
    args = argparse.Namespace(task="lift", preset="quick", device=torch.device("cpu"))
    found = benchmark.build(args, "dfp", False, compile=False)[2]
    batch, hidden, obs, chunk, best_of, generated = 128, 128, 19, 35, 4, 8
    body = 3 * hidden * hidden
    critic, actor, first = (obs + chunk) * hidden + body + hidden, (obs + chunk) * hidden + body + chunk * hidden, (obs + chunk) * hidden
    trained = lambda weights: 3 * weights - first                # noqa: E731  no gradient is asked of the inputs
    passes = 2 * (best_of * critic + critic + trained(critic)) + best_of * actor + generated * trained(actor)
    assert found == pytest.approx(2e-9 * batch * passes, rel=0.02)          # and the drift's own distances


def test_profile_parts_make_up_the_update(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "simulator_seconds", lambda _: 0.5)
    monkeypatch.setattr(sys, "argv", "benchmark --profile --task lift --preset quick --device cpu --repeat 2".split())
    benchmark.main()
    ms = {what: float(t) for line in capsys.readouterr().out.splitlines() if " ms  " in line for t, what in [line.split(" ms  ")]}
    assert ms.pop("simulator, in a process of its own, while the update runs") == 500
    assert ms.pop("1/5 of choosing a chunk") > 0
    whole, parts = ms.pop("update"), [what.strip() for what in ms]
    assert parts == [f"of it {what}" for what in ("batch", "noise", "critic's loss", "actor's loss", "backward pass, averages, Adam")]
    assert 0.5 * whole < sum(ms.values()) < whole + 0.03 and min(ms.values()) > 0        # what is left is the summing of two losses


def test_ranking_tells_of_the_transitions_that_a_run_has_saved(train, monkeypatch, capsys):
    folder = train("run")
    with open(folder / "online.f32", "ab") as file:
        file.write(b"torn")                                      # by a process that was killed
    monkeypatch.setattr(sys, "argv", ["ranking", str(folder), "--states", "30"])
    ranking.main()
    found = dict(part.rsplit(" ", 2)[-2:] for part in capsys.readouterr().out.splitlines()[-1].split(", "))
    assert 0.5 < float(found["overlap"]) <= 1 and 0 <= float(found["value"]) < 0.05 and float(found["spread"]) > 0
    (folder / "online.f32").write_bytes(b"torn")
    with pytest.raises(UserError, match="not all of them"):
        ranking.main()
