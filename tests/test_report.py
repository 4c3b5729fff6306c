"""The report, from made-up run folders: what is averaged, what never is, and every layout's numbers."""
import csv
import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest
from pytest import approx

import config
import run
from tools.report import curves, results, tables
from tools.report.__main__ import main, table
from tools.training import command_line
from tools.training.tables import EVAL_COLUMNS


@pytest.fixture(autouse=True)
def own_tasks_are_forgotten(monkeypatch):
    monkeypatch.setattr(config, "TASKS", list(config.TASKS))


def steps_of(task):
    c = config.build(dict(task=task, preset="quick"))
    return c.offline_steps, c.online_steps


def make(folder, task="lift", method="dfp", seed=0, ends=(0.5, 0.9), preset="quick", kind="generated", data="a",
         raw=None, until=None, **knobs):
    """A run folder with evaluations at step 0, at the ends of both stages and, halfway, in between; `until`: killed
    after that step."""
    c = config.build(dict(task=task, method=method, preset=preset, seed=seed) | knobs)
    out = run.folder_of(dataclasses.replace(c, out=str(folder)), set(knobs), f"{kind}-{data}")
    out.mkdir(parents=True)
    record = dict(config=dataclasses.asdict(c), data=dict(kind=kind, sha256=data * 64))
    (out / "config.json").write_text(json.dumps(record))
    end, steps = c.offline_steps + c.online_steps, {0: 0.0, c.offline_steps: ends[0]}
    if c.online_steps:
        steps |= {c.offline_steps + c.online_steps // 2: 0.1, end: ends[1]}
    with open(out / "eval.csv", "w", newline="") as file:
        csv.writer(file).writerows([EVAL_COLUMNS] + [
            (step, "offline" if step <= c.offline_steps else "online", success, 50, 100.0, -100.0, 1.5 + step)
            for step, success in steps.items() if until is None or step <= until])
    if raw is not None:
        text = "".join(f"{end},online,{value},50,1,1,{n}\n" for value, n in [*((v, 1) for v in raw), (0.3, 2)])
        (out / "evaluate.csv").write_text("step,stage,success,episodes,length,return,best_of\n" + text)
    return out


def found(folder):
    return results.groups(results.collect([folder])[0])


def report(*words):
    main([*map(str, words)])


def filled(folder, *numbers):
    """The cells of these tables, of all if none is named."""
    return [row for row in tables.filled(found(folder)) if row["table"] in (numbers or tables.TITLES)]


def cell(folder, number, row, column, block=None):
    rows = [r for r in filled(folder, number)
            if (r["row"], r["column"]) == (row, column) and block in (None, r["block"])]
    assert len(rows) == 1, rows
    return rows[0]


# --------------------------------------------------------------------------------------------------- what is averaged
def test_seeds_are_averaged(tmp_path):
    for seed, end in enumerate((0.96, 0.86, 0.94)):              # of two raw numbers the newer one counts
        make(tmp_path, seed=seed, ends=(0.5, end), raw=(0.1, 0.8) if seed else None)
    assert table(found(tmp_path)) == (
        "| task | method | setting | data | seeds | offline | online | raw policy (best of 1) |\n"
        "|---|---|---|---|---|---|---|---|\n| lift | dfp | quick, 8,000 + 16,000 steps | generated | 3 "
        "| 50 (50, 50, 50) | 92 (96, 86, 94) | 80 (80, 80) |\n")
    got = cell(tmp_path, 1, "dfp", "lift")
    assert (got["online_mean"], got["online_seeds"], got["offline_std"]) == (approx(92), 3, 0)
    assert got["online_std"] == approx((56 / 2) ** 0.5)          # deviations 4, -6, 2; n - 1
    assert (got["paper_offline"], got["paper"], got["paper_std"]) == (85.2, 100.0, 0.0)


@pytest.mark.parametrize("other", [
    dict(data="b"), dict(kind="official"), dict(online_steps=17_000), dict(offline_steps=9_000), dict(preset="paper"),
    dict(lr=1e-3), dict(data_size=100), dict(topk_weight=5.0), dict(warmup=400)])
def test_never_mixed(tmp_path, other):
    """Another data set (of the same kind too), budget or knob is another row, another curve, another cell."""
    make(tmp_path, seed=0, ends=(0.2, 0.4))
    make(tmp_path, seed=1, ends=(0.6, 0.8), **other)
    two = found(tmp_path)
    assert len(two) == 2 and [len(seeds) for seeds in two.values()] == [1, 1]
    assert table(two).count("| lift |") == 2 and "(40)" in table(two) and "(80)" in table(two)
    assert {p["mean"] for p in curves.curve_points(two) if p["source"] == "here"} >= {40.0, 80.0}
    rows = [row for row in filled(tmp_path, 1, 3) if row["column"] == "lift"]
    assert {row["online_mean"] for row in rows} == {40.0, 80.0} and {row["online_seeds"] for row in rows} == {1}
    texts = {(row["table"], row["block"], row["row"]) for row in rows}         # two places, told apart in words
    assert len(texts) == len(rows) >= 2
    assert len({(key.setting, key.data, key.steps) for key in two}) == 2


def test_what_does_not_change_results_does_not_part_seeds(tmp_path):
    make(tmp_path, seed=0)
    make(tmp_path, seed=1, eval_every=2_000, threads=1, compile=True, workers=3, log_every=7)
    (seeds,) = found(tmp_path).values()
    assert sorted(seeds) == [0, 1]


def test_another_presets_budget_is_another_block(tmp_path):
    """Presets give each task its own budget; tasks stand in one block with those, or with one other that all share."""
    for task in ("lift", "can"):
        make(tmp_path, task=task)
        make(tmp_path, task=task, seed=1, offline_steps=1_000, online_steps=2_000)
    make(tmp_path, task="square", offline_steps=1_000, online_steps=3_000)
    blocks = results.grouped(filled(tmp_path), "block")
    assert {block: [row["column"] for row in rows] for (block,), rows in blocks.items()} == {
        "quick, generated data": ["lift", "can"],
        "quick, generated data, 1,000 + 2,000 steps": ["lift", "can"],
        "quick, generated data, 1,000 + 3,000 steps": ["square"]}


def test_runs_that_stopped_early_do_not_pass_for_finished(tmp_path):
    make(tmp_path, seed=0, ends=(0.4, 0.8))
    make(tmp_path, seed=1, ends=(0.6, 0.0), until=16_000, raw=(0.7,))                    # not evaluated at its end
    make(tmp_path, seed=2, until=0)                                                      # at step 0 only
    killed = make(tmp_path, seed=3)
    (killed / "eval.csv").unlink()                                                       # before any evaluation
    short = make(tmp_path, seed=4)                                                       # within its first line
    (short / "eval.csv").write_text("step,stage,success,episodes,length,return,seconds\n8000,off")
    rows, silent = results.collect([tmp_path])
    groups = results.groups(rows)
    got = cell(tmp_path, 1, "dfp", "lift")
    assert [got[f"{stage}_{what}"] for stage in ("offline", "online") for what in ("mean", "seeds")] == [50, 2, 80, 1]
    assert silent == [killed, short]
    assert [line.split("seed ")[1] for line in results.unfinished(groups)] == [
        "1: evaluated up to step 16,000 of 24,000", "2: evaluated up to step 0 of 24,000"]
    assert {p["seeds"] for p in curves.curve_points(groups) if p["source"] == "here"} == {1}     # the same throughout
    assert "8k + 16k, 2 → 1 seeds" in tables.markdown(tables.filled(groups), [], [])


def test_the_same_run_twice_is_refused(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    with pytest.raises(config.UserError, match="seed 0 of lift, dfp, quick, generated data was given twice"):
        found(tmp_path)
    assert len(results.collect([tmp_path / "a", tmp_path / "a/lift"])[0]) == 4           # one folder under two names


# ------------------------------------------------------------------------------------------------------- drawn again
def test_everything_is_drawn_again_without_the_runs(tmp_path, monkeypatch, capsys):
    for seed in (0, 1, 2):
        make(tmp_path / "runs", seed=seed, raw=(0.5,), ends=(0.1, 0.2 * seed))
    make(tmp_path / "runs", task="can", data="b", topk_weight=5.0)
    make(tmp_path / "runs", task="can", data="c", until=0)
    report(tmp_path / "runs", "--out", tmp_path / "one")
    assert ("unfinished: can, dfp, quick, generated cccccccc data, seed 0: evaluated up to step 0 of "
            f"{sum(steps_of('can')):,}") in capsys.readouterr().out
    report(tmp_path / "one/runs.csv", "--out", tmp_path / "two")
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {"runs.csv", "table.md", "curves.png", "curves.csv", "report.md", "tables.csv", "tables.png",
                     "aggregate.csv"}
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    # Folders and files together; and a preset that has changed since does not change what an old run was.
    monkeypatch.setitem(config.QUICK, "hidden", 256)
    make(tmp_path / "more", seed=3, ends=(0.1, 0.9))
    report(tmp_path / "one/runs.csv", tmp_path / "more", "--out", tmp_path / "three")
    lifts = [line for line in (tmp_path / "three/table.md").read_text().splitlines() if line.startswith("| lift")]
    assert [line.split(" | ")[2] for line in lifts] == [
        "quick, 8,000 + 16,000 steps", "quick,hidden=128, 8,000 + 16,000 steps"]


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "TASKS", [*config.TASKS, "reach"])
    make(tmp_path, task="reach", ends=(0.25, 1.0))
    for source in (tmp_path, tmp_path / "out/runs.csv"):
        monkeypatch.setattr(config, "TASKS", [t for t in config.TASKS if t != "reach"])  # unknown where it is reported
        report(source, "--out", tmp_path / "out")
        assert ("| reach | dfp | quick, 8,000 + 16,000 steps | generated | 1 | 25 (25) | 100 (100) | – |"
                in (tmp_path / "out/table.md").read_text())


# ------------------------------------------------------------------------------------------------------------ layouts
def test_figure1(tmp_path):
    """Points stand at their share of each stage; the interval is Student's; the paper's curve ends in Table 1's."""
    for seed, end in enumerate((0.96, 0.86, 0.94)):
        make(tmp_path, seed=seed, ends=(0.5, end))
    points = curves.curve_points(found(tmp_path))
    ours, paper = ([p for p in points if (p["source"] == "here") == here] for here in (True, False))
    assert [(p["step"], p["share"]) for p in ours] == [(0, 0), (8000, 1), (16000, 1.5), (24000, 2)]
    half = 4.302653 * 28**0.5 / 3**0.5                           # t of 2 degrees of freedom, 97.5 %
    assert (ours[-1]["low"], ours[-1]["high"]) == (approx(92 - half, abs=1e-4), 100.0)   # 105.1, cut at 100
    assert [p["share"] for p in paper] == approx([i / 10 for i in range(1, 21)])
    assert (paper[9]["mean"], paper[19]["mean"], paper[0]["method"]) == (85.2, 100.0, "dfp")
    assert curves.interval([40.0]) is None and curves.interval([50.0, 50.0]) == (50, 50)
    assert curves.share(1_500_000, 10**6, 10**6) == 1.5 and curves.share(0, 0, 10) == 0


def test_figure1_is_drawn_from_its_points(tmp_path, monkeypatch):
    for method, seeds in (("dfp", (0.8, 0.9, 1.0)), ("mvp", (0.2, 0.4))):
        for seed, end in enumerate(seeds):
            make(tmp_path, method=method, seed=seed, ends=(0.1 * seed, end))
    make(tmp_path, task="can", until=0)                                                  # nothing but its step 0
    (make(tmp_path, method="fql", task="can", raw=(0.5,)) / "eval.csv").unlink()         # nothing of its own: no panel
    points, drawn = curves.curve_points(found(tmp_path)), []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    curves.draw(points, tmp_path / "unused.png")
    assert [axes.get_title().split("\n")[0] for axes in drawn] == ["lift", "can"]
    lines = {(line.get_color(), line.get_linestyle(), line.get_linewidth()): line.get_xydata()
             for line in drawn[0].lines}
    for method, thin in (("dfp", 0), ("mvp", 2)):
        color = f"C{list(config.METHODS).index(method)}"
        for here, style, width in ((True, "-", 1.5), (False, "--", 1.0)):
            expected = [(p["share"], p["mean"]) for p in points
                        if (p["task"], p["method"], p["source"] == "here") == ("lift", method, here)]
            assert len(expected) == (4 if here else 20) and np.allclose(lines[color, style, width], expected)
        assert sum((line.get_linewidth(), line.get_color()) == (0.6, color) for line in drawn[0].lines) == thin
    (band,) = drawn[0].collections
    ours = [p for p in points if (p["source"], p["task"], p["method"]) == ("here", "lift", "dfp")]
    assert set(np.round(band.get_paths()[0].vertices[:, 1], 6)) == {
        round(float(p[name]), 6) for p in ours for name in ("low", "high")}


def test_the_papers_numbers():
    """Averages that the paper prints beside its tables come out of the cells; Figure 1's last points are Table 1's."""
    theirs = tables.paper()
    assert {number: len(cells) for number, cells in theirs.items()} == {1: 6 * 13, 2: 4, 3: 12, 4: 20, 7: 10}
    for method in ("bfn", "qc-bfn", "fql", "qc-fql", "mvp", "dfp"):
        mean = np.mean([theirs[1][method, task].mean for task in tables.SUITES["12 tasks"]])
        assert mean == approx(theirs[1][method, "12 tasks"].mean, abs=0.0501)
        for row in results.read_csv(results.PAPER / "curves.csv"):
            if row["method"].lower() == method and row["step"] == "2000000":
                assert theirs[1][method, row["task"]].mean == float(row["success_percent"])
    for k in "1248":
        parts = [theirs[4][k, suite].mean for suite in ("robomimic", "cube-double", "cube-triple", "cube-quadruple")]
        assert np.mean(parts) == approx(theirs[4][k, "12 tasks"].mean, abs=0.0501)
    assert theirs[2]["mvp", "12 tasks"].mean == theirs[1]["mvp", "12 tasks"].mean
    assert [theirs[3]["0.5", f"cube-quadruple-task{i}"].mean for i in (2, 3, 4)] == [99.6, 96.6, 99.0]
    assert theirs[7]["dfp", "scene-task2"] == (None, 93, 4) and theirs[1]["dfp", "square"] == (25.8, 93.2, 2)


def test_table1_lays_ours_beside_the_papers(tmp_path):
    for method, end in (("dfp", 0.9), ("qc-fql", 0.7)):
        for seed in (0, 1):
            make(tmp_path, method=method, seed=seed, ends=(0.5, end + 0.1 * seed))
    make(tmp_path, method="dfp", task="can", kind="official", ends=(0.25, 0.5))
    text, (offline, online) = tables.markdown(filled(tmp_path), [], []), steps_of("can")
    for line in ("## Table 1: methods (quick, generated data)", "## Table 1: methods (quick, official data)",
                 "| dfp | here | 50.0 ± 0.0 → 95.0 ± 7.1<br>generated, 8k + 16k, 2 seeds |",
                 "| qc-fql | here | 50.0 ± 0.0 → 75.0 ± 7.1<br>generated, 8k + 16k, 2 seeds |",
                 "| dfp | paper | 85.2 → 100.0 ± 0.0<br>official, 1M + 1M, 5 seeds |",
                 f"| dfp | here | 25.0 → 50.0<br>official, {offline // 1000}k + {online // 1000}k, 1 seed |"):
        assert line + "\n" in text


def test_tables_2_3_4_7(tmp_path):
    make(tmp_path, ends=(0.5, 0.9))
    make(tmp_path, method="mvp", ends=(0.5, 0.3))
    assert not filled(tmp_path, 2, 3, 4, 7)                                              # nothing to compare yet
    make(tmp_path, method="dfp-no-topk", ends=(0.5, 0.8))
    make(tmp_path, method="mvp-topk", ends=(0.5, 0.4))
    make(tmp_path, ends=(0.5, 0.7), topk_weight=5.0)
    make(tmp_path, ends=(0.5, 0.6), top_k=8)
    make(tmp_path, task="can", ends=(0.5, 0.1))                                          # no variant: in neither
    make(tmp_path, task="scene-task2", preset="offline-rl", ends=(0.95, None))
    got = {(r["table"], r["block"], r["row"], r["column"]): r["online_mean"] for r in filled(tmp_path, 2, 3, 4)}
    assert got == {(number, "quick, generated data", row, "lift"): approx(mean) for number, row, mean in (
        (2, "mvp", 30), (2, "mvp-topk", 40), (2, "dfp", 90), (2, "dfp-no-topk", 80),
        (3, "0.5", 90), (3, "5", 70), (4, "2", 90), (4, "8", 60))}
    assert cell(tmp_path, 1, "dfp", "lift")["online_mean"] == approx(90)                 # variants stay out of Table 1
    scene = cell(tmp_path, 7, "dfp", "scene-task2")
    assert (scene["offline_mean"], scene["online_mean"], scene["paper"]) == (95, None, 93)
    text, of_paper = tables.markdown(filled(tmp_path), [], []), "<br>official, 1M + 1M |"
    assert f"| 5 | paper | – | 99.2{of_paper} 94.2{of_paper} 98.0{of_paper}" in text
    assert "95.0<br>generated, 1M + 0, 1 seed" in text and f"| dfp-no-topk | paper | – | 88.4{of_paper}" in text
    make(tmp_path, method="dfp-no-topk", ends=(0.5, 0.2), top_k=8)                       # DFP with the same K beside it
    make(tmp_path, method="mvp-topk", ends=(0.5, 0.3), topk_weight=1.0)
    for number, method, knob, mean in (
            (1, "dfp", "top_k=8", 60), (1, "dfp-no-topk", "top_k=8", 20), (2, "dfp", "top_k=8", 60),
            (2, "dfp-no-topk", "top_k=8", 20), (1, "mvp-topk", "topk_weight=1", 30)):
        got = cell(tmp_path, number, method, "lift", f"quick,{knob}, generated data")
        assert got["online_mean"] == approx(mean)


def test_whole_suites_are_averaged_and_parts_are_not(tmp_path):
    for task, end in (("lift", 0.9), ("can", 0.6), ("square", 0.3)):
        assert not any(row["column"] == "robomimic" for row in filled(tmp_path))
        make(tmp_path, task=task, top_k=8, ends=(0.1, end))
    got = cell(tmp_path, 4, "8", "robomimic")
    assert (got["online_mean"], got["paper"]) == (approx(60), 88.6)
    assert not any(row["column"] == "12 tasks" for row in filled(tmp_path))


# ---------------------------------------------------------------------------------------------------------- aggregate
def plain_iqm(scores):
    flat = sorted(float(s) for s in np.ravel(scores))
    cut = len(flat) // 4
    return sum(flat[cut : len(flat) - cut]) / (len(flat) - 2 * cut)


def test_iqm():
    assert tables.iqm(np.arange(1.0, 9).reshape(4, 2)) == 4.5                            # of 1 ... 8: 3, 4, 5, 6
    assert tables.iqm(np.array([[0.0, 10, 20, 1000]])) == 15 and tables.iqm(np.array([[7.0]])) == 7
    scores = np.random.default_rng(0).normal(size=(50, 5, 3))
    assert np.allclose(tables.iqm(scores), [plain_iqm(s) for s in scores])


def test_bootstrap_is_stratified_and_its_intervals_are_right():
    scores = np.array([[0.0, 100], [10, 160], [20, 130]])                                # seeds by tasks
    drawn = tables.resamples(scores, 20_000)
    assert np.array_equal(drawn, tables.resamples(scores, 20_000))                       # the same every time
    assert all(set(np.unique(drawn[..., t])) == set(scores[:, t]) for t in (0, 1))       # no score changes its task
    assert np.corrcoef(drawn[:, 0, 0], drawn[:, 0, 1])[0, 1] == approx(0, abs=0.03)      # each task for itself
    every = [plain_iqm(np.array([first, second]).T) for first in itertools.product(scores[:, 0], repeat=3)
             for second in itertools.product(scores[:, 1], repeat=3)]                    # all 27 x 27 there are
    low, high = np.percentile(tables.iqm(drawn), (2.5, 97.5))
    assert (low, high) == tuple(np.percentile(every, (2.5, 97.5))) and low < plain_iqm(scores) < high
    assert tables.iqm(drawn).mean() == approx(np.mean(every), abs=0.3)


def test_aggregate_over_the_tasks_that_methods_share(tmp_path):
    for seed, (lift, can) in enumerate(((0.2, 0.6), (0.4, 0.8), (0.3, 1.0))):
        make(tmp_path, seed=seed, ends=(0, lift))
        if seed < 2:                                                                     # a seed is missing: two count
            make(tmp_path, task="can", seed=seed, ends=(0, can))
    for task, end in (("lift", 0.9), ("can", 0.5), ("square", 0.1)):
        make(tmp_path, method="mvp", task=task, ends=(0, end))
    make(tmp_path, method="qc-bfn", ends=(0, 1.0))                                       # one task: no aggregate
    got = {(row["method"], row["tasks"]): row for row in tables.aggregate(filled(tmp_path))}
    assert set(got) == {("mvp", "lift can square"), ("mvp", "lift can"), ("dfp", "lift can")}
    dfp, mvp = got["dfp", "lift can"], got["mvp", "lift can"]
    assert (dfp["seeds"], dfp["iqm"], dfp["mean"]) == (2, approx(50), approx(50))        # of 20, 40, 60, 80
    assert (dfp["iqm_low"], dfp["iqm_high"], dfp["paper_mean"]) == (approx(40), approx(60), approx(95.3))
    assert mvp["iqm_low"] == "" and mvp["mean"] == approx(70)
    for task in ("cube-quadruple-task3", "cube-quadruple-task4"):
        make(tmp_path, method="fql", task=task, ends=(0, 0.1))
    rows = filled(tmp_path)
    assert "| fql | 1 | 10.0 | 10.0 | 0.0 |\n" in tables.markdown(rows, tables.aggregate(rows), [])


# ------------------------------------------------------------------------------------------------------ one clear line
def test_one_line_when_there_is_nothing(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (make(tmp_path / "begun") / "eval.csv").unlink()
    (make(tmp_path / "aside", raw=(0.5,)) / "eval.csv").unlink()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    line = "lift,dfp,generated,a,quick,,0,8000,16000,4,8000,offline,high,50,1,1,1"
    (tmp_path / "wrong.csv").write_text(",".join(results.COLUMNS) + f"\n{line}\n")
    (make(tmp_path / "broken") / "config.json").write_text("{")
    for name, words in (("empty", "no evaluated runs in"), ("absent", "does not exist"), ("begun", "1 have begun"),
                        ("aside", "no evaluated runs in"), ("other.csv", "is no evaluation"),
                        ("wrong.csv", "is no evaluation"), ("broken", "config.json cannot be read")):
        with pytest.raises(SystemExit) as stop:
            command_line.main(functools.partial(report, tmp_path / name, "--out", tmp_path / "out"))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1 and words in error, error
        assert not (tmp_path / "out").exists()
