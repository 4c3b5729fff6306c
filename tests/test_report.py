"""The report, from made-up run folders: what is averaged, what never is, and every layout's numbers."""
import csv
import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from scipy import stats

import config
import run
from tools import command_line, curves, report, results, tables
from tools.rows import EVAL_COLUMNS


@pytest.fixture(autouse=True)
def own_tasks_are_forgotten(monkeypatch):
    monkeypatch.setattr(config, "TASKS", list(config.TASKS))


def can_steps():
    c = config.build(dict(task="can", preset="quick"))
    return c.offline_steps, c.online_steps


def make(folder, task="lift", method="dfp", seed=0, ends=(0.5, 0.9), preset="quick", kind="generated", data="a", raw=None, until=None, **knobs):
    """A run folder with evaluations at step 0, at the ends of both stages and, halfway, in between; `until`: killed after that step."""
    c = config.build(dict(task=task, method=method, preset=preset, seed=seed) | knobs)
    out = run.folder_of(dataclasses.replace(c, out=str(folder)), set(knobs), f"{kind}-{data}")
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(dict(config=dataclasses.asdict(c), data=dict(kind=kind, sha256=data * 64))))
    steps = {0: 0.0, c.offline_steps: ends[0]} | ({c.offline_steps + c.online_steps // 2: 0.1, c.offline_steps + c.online_steps: ends[1]}
                                                  if c.online_steps else {})
    with open(out / "eval.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(EVAL_COLUMNS)
        writer.writerows((step, "offline" if step <= c.offline_steps else "online", success, 50, 100.0, -100.0, 1.5 + step)
                         for step, success in steps.items() if until is None or step <= until)
    if raw is not None:
        text = "".join(f"{c.offline_steps + c.online_steps},online,{value},50,1,1,{n}\n" for value, n in [*((v, 1) for v in raw), (0.3, 2)])
        (out / "evaluate.csv").write_text("step,stage,success,episodes,length,return,best_of\n" + text)
    return out


def found(folder):
    return results.groups(results.collect([folder])[0])


def main(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["report", *map(str, words)])
    report.main()


def cell(folder, table, row, column, block=None):
    rows = [r for r in tables.filled(found(folder)) if (r["table"], r["row"], r["column"]) == (table, row, column) and block in (None, r["block"])]
    assert len(rows) == 1, rows
    return rows[0]


# ------------------------------------------------------------------------------------------------------------ what is averaged
def test_seeds_are_averaged_and_the_old_table_keeps_its_form(tmp_path):
    for seed, end in enumerate((0.96, 0.86, 0.94)):
        make(tmp_path, seed=seed, ends=(0.5, end), raw=(0.1, 0.8) if seed else None)     # of two raw numbers the newer one counts
    assert report.table(found(tmp_path)) == (
        "| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |\n|---|---|---|---|---|---|---|---|\n"
        "| lift | dfp | quick, 8,000 + 16,000 steps | generated | 3 | 50 (50, 50, 50) | 92 (96, 86, 94) | 80 (80, 80) |\n")
    got = cell(tmp_path, 1, "dfp", "lift")
    assert (got["online_mean"], got["online_seeds"], got["offline_std"]) == (pytest.approx(92), 3, 0)
    assert got["online_std"] == pytest.approx((56 / 2) ** 0.5)                            # deviations 4, -6, 2; n - 1
    assert (got["paper_offline"], got["paper"], got["paper_std"]) == (85.2, 100.0, 0.0)


@pytest.mark.parametrize("other", [dict(data="b"), dict(kind="official"), dict(online_steps=17_000), dict(offline_steps=9_000), dict(preset="paper"),
                                   dict(lr=1e-3), dict(data_size=100), dict(topk_weight=5.0), dict(warmup=400)])
def test_never_mixed(tmp_path, other):
    """Another data set (of the same kind too), budget or knob is another row, another curve, another cell."""
    make(tmp_path, seed=0, ends=(0.2, 0.4))
    make(tmp_path, seed=1, ends=(0.6, 0.8), **other)
    two = found(tmp_path)
    assert len(two) == 2 and [len(seeds) for seeds in two.values()] == [1, 1]
    assert report.table(two).count("| lift |") == 2 and "(40)" in report.table(two) and "(80)" in report.table(two)
    assert {p["mean"] for p in curves.lines(two) if p["source"] == "here"} >= {40.0, 80.0}
    rows = [r for r in tables.filled(two) if r["column"] == "lift" and r["table"] in (1, 3)]
    assert {r["online_mean"] for r in rows} == {40.0, 80.0} and {r["online_seeds"] for r in rows} == {1}
    texts = {(r["table"], r["block"], r["row"]) for r in rows}                           # two places, told apart in words
    assert len(texts) == len(rows) >= 2
    assert len({(key.setting, key.data, key.steps) for key in two}) == 2


def test_what_does_not_change_results_does_not_part_seeds(tmp_path):
    make(tmp_path, seed=0)
    make(tmp_path, seed=1, eval_every=2_000, threads=1, compile=True, workers=3, log_every=7)
    (seeds,) = found(tmp_path).values()
    assert sorted(seeds) == [0, 1]


def test_another_presets_budget_is_another_block(tmp_path):
    """Presets give each task its own budget; tasks stand in one block with those, or with one other budget that all share."""
    make(tmp_path)
    make(tmp_path, task="can")
    for task in ("lift", "can"):
        make(tmp_path, task=task, seed=1, offline_steps=1_000, online_steps=2_000)
    make(tmp_path, task="square", offline_steps=1_000, online_steps=3_000)
    blocks = {}
    for r in tables.filled(found(tmp_path)):
        blocks.setdefault(r["block"], []).append(r["column"])
    assert blocks == {"quick, generated data": ["lift", "can"], "quick, generated data, 1,000 + 2,000 steps": ["lift", "can"],
                      "quick, generated data, 1,000 + 3,000 steps": ["square"]}


def test_runs_that_stopped_early_do_not_pass_for_finished(tmp_path):
    make(tmp_path, seed=0, ends=(0.4, 0.8))
    make(tmp_path, seed=1, ends=(0.6, 0.0), until=16_000, raw=(0.7,))                    # no evaluation of its own at its end
    make(tmp_path, seed=2, until=0)                                                     # at step 0 only
    killed = make(tmp_path, seed=3)
    (killed / "eval.csv").unlink()                                                       # before any evaluation
    short = make(tmp_path, seed=4)
    (short / "eval.csv").write_text("step,stage,success,episodes,length,return,seconds\n8000,off")       # in the middle of its first line
    rows, silent = results.collect([tmp_path])
    groups = results.groups(rows)
    got = cell(tmp_path, 1, "dfp", "lift")
    assert (got["offline_mean"], got["offline_seeds"], got["online_mean"], got["online_seeds"]) == (50, 2, 80, 1)
    assert silent == [killed, short]
    assert [line.split("seed ")[1] for line in results.unfinished(groups)] == ["1: evaluated up to step 16,000 of 24,000",
                                                                              "2: evaluated up to step 0 of 24,000"]
    assert {p["seeds"] for p in curves.lines(groups) if p["source"] == "here"} == {1}    # no curve changes its seeds on the way
    assert "8k + 16k, 2 → 1 seeds" in tables.markdown(tables.filled(groups), [], [])


def test_the_same_run_twice_is_refused(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    with pytest.raises(config.UserError, match="seed 0 of lift, dfp, quick, generated data was given twice"):
        found(tmp_path)
    assert len(results.collect([tmp_path / "a", tmp_path / "a/lift"])[0]) == 4              # one folder named twice is one folder


# ------------------------------------------------------------------------------------------------------------ drawn again
def test_everything_is_drawn_again_without_the_runs(tmp_path, monkeypatch, capsys):
    for seed in (0, 1, 2):
        make(tmp_path / "runs", seed=seed, raw=(0.5,), ends=(0.1, 0.2 * seed))
    make(tmp_path / "runs", task="can", data="b", topk_weight=5.0)
    make(tmp_path / "runs", task="can", data="c", until=0)
    main(monkeypatch, tmp_path / "runs", "--out", tmp_path / "one")
    assert f"unfinished: can, dfp, quick, generated cccccccc data, seed 0: evaluated up to step 0 of {sum(can_steps()):,}" in capsys.readouterr().out
    main(monkeypatch, tmp_path / "one/runs.csv", "--out", tmp_path / "two")
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {"runs.csv", "table.md", "curves.png", "curves.csv", "report.md", "tables.csv", "tables.png", "aggregate.csv"}
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    # Folders and files together; and a preset that has changed since does not change what an old run was.
    monkeypatch.setitem(config.QUICK, "hidden", 256)
    results.preset.cache_clear()
    make(tmp_path / "more", seed=3, ends=(0.1, 0.9))
    try:
        rows = results.read_table(tmp_path / "one/runs.csv") + results.collect([tmp_path / "more"])[0]
        settings = {key.setting for key in results.groups(rows) if key.task == "lift"}
        assert settings == {"quick,hidden=128", "quick"}
    finally:
        results.preset.cache_clear()


def test_a_file_of_the_version_before(tmp_path, monkeypatch):
    old = ("task,method,data,setting,seed,offline_steps,best_of,step,stage,success,episodes,length,return,seconds\n"
           + "".join(f'lift,dfp,generated,"quick,topk_weight=5",{seed},8000,4,{step},{stage},{success},50,1,1,2.0\n'
                     for seed in (0, 1) for step, stage, success in ((8000, "offline", 0.5), (24000, "online", 0.75 + 0.25 * seed)))
           + 'lift,dfp,generated,"quick,topk_weight=5",1,8000,1,24000,online,0.25,50,1,1,\n'
           + 'lift,dfp,generated,"quick,topk_weight=5",2,8000,4,16000,online,0.5,20,1,1,2.0\n')            # killed there
    (tmp_path / "runs.csv").write_text(old)
    line = "| lift | dfp | quick,topk_weight=5, 8,000 + 16,000 steps | generated | 2 | 50 (50, 50) | 88 (75, 100) | 25 (25) |\n"
    for name in ("runs.csv", "again/runs.csv"):                                          # what is written from it can be read again
        main(monkeypatch, tmp_path / name, "--out", tmp_path / "again")
        assert (tmp_path / "again/table.md").read_text().endswith("|\n" + line)
        assert "seed 2: evaluated up to step 16,000 of 24,000" in (tmp_path / "again/report.md").read_text()


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "TASKS", [*config.TASKS, "reach"])
    make(tmp_path, task="reach", ends=(0.25, 1.0))
    monkeypatch.setattr(config, "TASKS", config.TASKS[:-1])                              # unknown to the process that reports
    results.preset.cache_clear()
    main(monkeypatch, tmp_path, "--out", tmp_path / "out")
    assert "| reach | dfp | quick, 8,000 + 16,000 steps | generated | 1 | 25 (25) | 100 (100) | – |" in (tmp_path / "out/table.md").read_text()


# ------------------------------------------------------------------------------------------------------------ layouts
def test_figure1(tmp_path):
    """Points stand at their share of each stage; the interval is Student's; the paper's curve ends in Table 1's numbers."""
    for seed, end in enumerate((0.96, 0.86, 0.94)):
        make(tmp_path, seed=seed, ends=(0.5, end))
    points = curves.lines(found(tmp_path))
    ours, paper = ([p for p in points if (p["source"] == "here") == here] for here in (True, False))
    assert [(p["step"], p["share"]) for p in ours] == [(0, 0), (8000, 1), (16000, 1.5), (24000, 2)]
    half = 4.302653 * 28**0.5 / 3**0.5                                                   # t of 2 degrees of freedom, 97.5 %
    assert (ours[-1]["low"], ours[-1]["high"]) == (pytest.approx(92 - half, abs=1e-4), 100.0)       # 105.1, cut at 100
    assert [p["share"] for p in paper] == pytest.approx([i / 10 for i in range(1, 21)])
    assert (paper[9]["mean"], paper[19]["mean"], paper[0]["method"]) == (85.2, 100.0, "dfp")
    assert curves.interval([40.0]) is None and curves.interval([50.0, 50.0]) == (50, 50)
    assert curves.share(1_500_000, 10**6, 10**6) == 1.5 and curves.share(0, 0, 10) == 0


def test_figure1_is_drawn_from_its_points(tmp_path, monkeypatch):
    for method, seeds in (("dfp", (0.8, 0.9, 1.0)), ("mvp", (0.2, 0.4))):
        for seed, end in enumerate(seeds):
            make(tmp_path, method=method, seed=seed, ends=(0.1 * seed, end))
    make(tmp_path, task="can", until=0)                                                  # nothing but its step 0
    (make(tmp_path, method="fql", task="can", raw=(0.5,)) / "eval.csv").unlink()         # nothing of its own: no panel
    points, drawn = curves.lines(found(tmp_path)), []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    curves.draw(points, tmp_path / "unused.png")
    assert [axes.get_title().split("\n")[0] for axes in drawn] == ["lift", "can"]
    lines = {(line.get_color(), line.get_linestyle(), line.get_linewidth()): line.get_xydata() for line in drawn[0].lines}
    for method, thin in (("dfp", 0), ("mvp", 2)):
        color = f"C{list(config.METHODS).index(method)}"
        for here, style, width in ((True, "-", 1.5), (False, "--", 1.0)):
            expected = [(p["share"], p["mean"]) for p in points if (p["task"], p["method"], p["source"] == "here") == ("lift", method, here)]
            assert len(expected) == (4 if here else 20) and np.allclose(lines[color, style, width], expected)
        assert sum(line.get_linewidth() == 0.6 and line.get_color() == color for line in drawn[0].lines) == thin
    band, = drawn[0].collections
    ends = band.get_paths()[0].vertices[:, 1]
    mine = [p for p in points if p["source"] == "here" and p["method"] == "dfp"]
    assert set(np.round(ends, 6)) == {round(float(p[name]), 6) for p in mine for name in ("low", "high") if p["task"] == "lift"}


def test_the_papers_numbers():
    """Averages that the paper prints beside its tables come out of the cells, and Figure 1's last points are Table 1's."""
    theirs = tables.paper()
    assert len(theirs) == 6 * 13 + 4 + 12 + 20 + 10
    for method in ("bfn", "qc-bfn", "fql", "qc-fql", "mvp", "dfp"):
        mean = np.mean([theirs[1, method, task][1] for task in tables.SUITES["12 tasks"]])
        assert mean == pytest.approx(theirs[1, method, "12 tasks"][1], abs=0.0501)
        for row in results.read_csv(results.PAPER / "curves.csv"):
            if row["method"].lower() == method and row["step"] == "2000000":
                assert theirs[1, method, row["task"]][1] == float(row["success_percent"])
    for k in "1248":
        parts = [theirs[4, k, suite][1] for suite in ("robomimic", "cube-double", "cube-triple", "cube-quadruple")]
        assert np.mean(parts) == pytest.approx(theirs[4, k, "12 tasks"][1], abs=0.0501)
    assert theirs[2, "mvp", "12 tasks"][1] == theirs[1, "mvp", "12 tasks"][1]
    assert [theirs[3, "0.5", f"cube-quadruple-task{i}"][1] for i in (2, 3, 4)] == [99.6, 96.6, 99.0]
    assert theirs[7, "dfp", "scene-task2"] == (None, 93, 4) and theirs[1, "dfp", "square"] == (25.8, 93.2, 2)


def test_table1_lays_ours_beside_the_papers(tmp_path):
    for method, end in (("dfp", 0.9), ("qc-fql", 0.7)):
        for seed in (0, 1):
            make(tmp_path, method=method, seed=seed, ends=(0.5, end + 0.1 * seed))
    make(tmp_path, method="dfp", task="can", kind="official", ends=(0.25, 0.5))
    text = tables.markdown(tables.filled(found(tmp_path)), [], [])
    assert "## Table 1: methods (quick, generated data)" in text and "## Table 1: methods (quick, official data)" in text
    assert "| dfp | here | 50.0 ± 0.0 → 95.0 ± 7.1<br>generated, 8k + 16k, 2 seeds |" in text
    assert "| qc-fql | here | 50.0 ± 0.0 → 75.0 ± 7.1<br>generated, 8k + 16k, 2 seeds |" in text
    assert "| dfp | paper | 85.2 → 100.0 ± 0.0<br>official, 1M + 1M, 5 seeds |" in text
    assert "| dfp | here | 25.0 → 50.0<br>official, {:.0f}k + {:.0f}k, 1 seed |".format(*(n / 1000 for n in can_steps())) in text


def test_tables_2_3_4_7(tmp_path):
    make(tmp_path, ends=(0.5, 0.9))
    make(tmp_path, method="mvp", ends=(0.5, 0.3))
    assert not [r for r in tables.filled(found(tmp_path)) if r["table"] != 1]            # nothing to compare yet
    make(tmp_path, method="dfp-no-topk", ends=(0.5, 0.8))
    make(tmp_path, method="mvp-topk", ends=(0.5, 0.4))
    make(tmp_path, ends=(0.5, 0.7), topk_weight=5.0)
    make(tmp_path, ends=(0.5, 0.6), top_k=8)
    make(tmp_path, task="can", ends=(0.5, 0.1))                                          # no variant there: not in Tables 3 and 4
    make(tmp_path, task="scene-task2", preset="offline-rl", ends=(0.95, None))
    got = {(r["table"], r["row"], r["column"]): r["online_mean"] for r in tables.filled(found(tmp_path)) if r["table"] in (2, 3, 4)}
    assert got == {key: pytest.approx(value) for key, value in {
        (2, "mvp", "lift"): 30, (2, "mvp-topk", "lift"): 40, (2, "dfp", "lift"): 90, (2, "dfp-no-topk", "lift"): 80,
        (3, "0.5", "lift"): 90, (3, "5", "lift"): 70, (4, "2", "lift"): 90, (4, "8", "lift"): 60}.items()}
    assert cell(tmp_path, 1, "dfp", "lift")["online_mean"] == pytest.approx(90)          # variants stay out of Table 1
    assert cell(tmp_path, 7, "dfp", "scene-task2")["offline_mean"] == 95 and cell(tmp_path, 7, "dfp", "scene-task2")["paper"] == 93
    text = tables.markdown(tables.filled(found(tmp_path)), [], [])
    assert "| 5 | paper | – | 99.2<br>official, 1M + 1M | 94.2<br>official, 1M + 1M | 98.0<br>official, 1M + 1M |" in text
    make(tmp_path, method="dfp-no-topk", ends=(0.5, 0.2), top_k=8)                       # DFP with the same K stands beside it
    make(tmp_path, method="mvp-topk", ends=(0.5, 0.3), topk_weight=1.0)
    for table, method, setting, value in ((1, "dfp", "top_k=8", 60), (1, "dfp-no-topk", "top_k=8", 20), (2, "dfp", "top_k=8", 60),
                                          (2, "dfp-no-topk", "top_k=8", 20), (1, "mvp-topk", "topk_weight=1", 30)):
        assert cell(tmp_path, table, method, "lift", f"quick,{setting}, generated data")["online_mean"] == pytest.approx(value)
    assert "95.0<br>generated, 1M + 0, 1 seed" in text and "| dfp-no-topk | paper | – | 88.4<br>official, 1M + 1M |" in text


def test_whole_suites_are_averaged_and_parts_are_not(tmp_path):
    for task, end in (("lift", 0.9), ("can", 0.6), ("square", 0.3)):
        assert not any(r["column"] == "robomimic" for r in tables.filled(found(tmp_path)))
        make(tmp_path, task=task, top_k=8, ends=(0.1, end))
    got = cell(tmp_path, 4, "8", "robomimic")
    assert (got["online_mean"], got["paper"]) == (pytest.approx(60), 88.6)
    assert not any(r["column"] == "12 tasks" for r in tables.filled(found(tmp_path)))


# ------------------------------------------------------------------------------------------------------------ aggregate
def plain_iqm(scores):
    flat = sorted(float(s) for s in np.ravel(scores))
    cut = len(flat) // 4
    return sum(flat[cut : len(flat) - cut]) / (len(flat) - 2 * cut)


def test_iqm():
    assert tables.iqm(np.arange(1.0, 9).reshape(4, 2)) == 4.5                             # of 1 ... 8: 3, 4, 5, 6
    assert tables.iqm(np.array([[0.0, 10, 20, 1000]])) == 15 and tables.iqm(np.array([[7.0]])) == 7
    scores = np.random.default_rng(0).normal(size=(50, 5, 3))
    assert np.allclose(tables.iqm(scores), [plain_iqm(s) for s in scores])
    assert np.allclose(tables.iqm(scores), [stats.trim_mean(s, 0.25, axis=None) for s in scores])         # what rliable takes


def test_bootstrap_is_stratified_and_its_intervals_are_right():
    scores = np.array([[0.0, 100], [10, 160], [20, 130]])                                 # seeds by tasks
    drawn = tables.resamples(scores, 20_000)
    assert np.array_equal(drawn, tables.resamples(scores, 20_000))                        # a table is the same every time
    assert all(set(np.unique(drawn[..., t])) == set(scores[:, t]) for t in (0, 1))        # no score changes its task
    assert np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1] == pytest.approx(0, abs=0.03)          # each task for itself
    every = [plain_iqm(np.array([first, second]).T) for first in itertools.product(scores[:, 0], repeat=3)
             for second in itertools.product(scores[:, 1], repeat=3)]                     # all 27 x 27 resamples there are
    low, high = np.percentile(tables.iqm(drawn), (2.5, 97.5))
    assert (low, high) == tuple(np.percentile(every, (2.5, 97.5))) and low < plain_iqm(scores) < high
    assert tables.iqm(drawn).mean() == pytest.approx(np.mean(every), abs=0.3)


def test_aggregate_over_the_tasks_that_methods_share(tmp_path):
    for seed, (a, b) in enumerate(((0.2, 0.6), (0.4, 0.8), (0.3, 1.0))):
        make(tmp_path, seed=seed, ends=(0, a))
        if seed < 2:                                                                     # a seed is missing: two of each count
            make(tmp_path, task="can", seed=seed, ends=(0, b))
    make(tmp_path, method="mvp", ends=(0, 0.9))
    make(tmp_path, method="mvp", task="can", ends=(0, 0.5))
    make(tmp_path, method="qc-bfn", ends=(0, 1.0))                                       # one task: nothing to aggregate
    make(tmp_path, method="mvp", task="square", ends=(0, 0.1))
    got = {(r["method"], r["tasks"]): r for r in tables.aggregate(found(tmp_path))}
    assert set(got) == {("mvp", "lift can square"), ("mvp", "lift can"), ("dfp", "lift can")}
    dfp = got["dfp", "lift can"]
    assert (dfp["seeds"], dfp["iqm"], dfp["mean"]) == (2, pytest.approx(50), pytest.approx(50))          # of 20, 40, 60, 80
    assert (dfp["iqm_low"], dfp["iqm_high"]) == (pytest.approx(40), pytest.approx(60)) and dfp["paper_mean"] == pytest.approx(95.3)
    assert got["mvp", "lift can"]["iqm_low"] == "" and got["mvp", "lift can"]["mean"] == pytest.approx(70)
    for task in ("cube-quadruple-task3", "cube-quadruple-task4"):
        make(tmp_path, method="fql", task=task, ends=(0, 0.1))
    assert "| fql | 1 | 10.0 | 10.0 | 0.0 |" in tables.markdown(tables.filled(found(tmp_path)), tables.aggregate(found(tmp_path)), [])


# ------------------------------------------------------------------------------------------------------------ one clear line
def test_one_line_when_there_is_nothing(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    begun = make(tmp_path / "begun")
    (begun / "eval.csv").unlink()
    (make(tmp_path / "aside", raw=(0.5,)) / "eval.csv").unlink()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "wrong.csv").write_text(",".join(results.COLUMNS) + "\nlift,dfp,generated,a,quick,,0,8000,16000,4,8000,offline,high,50,1,1,1\n")
    broken = make(tmp_path / "broken") / "config.json"
    broken.write_text("{")
    for name, words in (("empty", "no evaluated runs in"), ("absent", "does not exist"), ("begun", "1 have begun"), ("aside", "no evaluated runs in"),
                        ("other.csv", "is no evaluation"), ("wrong.csv", "is no evaluation"), ("broken", "config.json cannot be read")):
        with pytest.raises(SystemExit) as stop:
            command_line.main(lambda: main(monkeypatch, tmp_path / name, "--out", tmp_path / "out"))       # noqa: B023
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error, error
        assert not (tmp_path / "out").exists()
