"""The report, from made-up run folders: what is averaged, what never is, and every layout's numbers."""
import dataclasses
import itertools
import json

import numpy as np
import pytest
from pytest import approx

import config
from conftest import ROOT
from tools.report import curves, results, tables
from tools.report.__main__ import main, table
from tools.training import command_line
from tools.training.files import EVAL_COLUMNS, csv_bytes
from tools.training.saving import folder_of


@pytest.fixture(autouse=True)
def own_tasks_are_forgotten(monkeypatch):
    monkeypatch.setattr(config, "TASKS", list(config.TASKS))


def make(folder, task="lift", method="dfp", seed=0, ends=(0.5, 0.9), preset="quick", kind="generated", data="a",
         raw=(), until=None, **knobs):
    """A run folder, evaluated at step 0, at the ends of both stages and halfway online; `until`: killed after it."""
    c = config.build(dict(task=task, method=method, preset=preset, seed=seed) | knobs)
    out = folder_of(dataclasses.replace(c, out=str(folder)), set(knobs), f"{kind}-{data}")
    out.mkdir(parents=True)
    record = dict(config=dataclasses.asdict(c), data=dict(kind=kind, sha256=data * 64))
    (out / "config.json").write_text(json.dumps(record))
    end, steps = c.offline_steps + c.online_steps, {0: 0.0, c.offline_steps: ends[0]}
    if c.online_steps:
        steps |= {c.offline_steps + c.online_steps // 2: 0.1, end: ends[1]}
    (out / "eval.csv").write_bytes(csv_bytes([EVAL_COLUMNS] + [
        (step, "offline" if step <= c.offline_steps else "online", success, 50, 100.0, -100.0, 1.5 + step)
        for step, success in steps.items() if until is None or step <= until]))
    if raw:
        (out / "evaluate.csv").write_bytes(csv_bytes([(*EVAL_COLUMNS[:-1], "best_of")] + [
            (end, "online", value, 50, 1, 1, n) for value, n in [*((v, 1) for v in raw), (0.3, 2)]]))
    return out


def found(folder):
    return results.groups(results.collect([folder]))


def filled(folder, *numbers):
    """The cells of these tables, of all if none is named."""
    return [row for row in tables.cells(found(folder)) if row["table"] in (numbers or tables.TITLES)]


def cell(folder, number, row, column):
    (one,) = [r for r in filled(folder, number) if (r["row"], r["column"]) == (row, column)]
    return one


def test_seeds_are_averaged(tmp_path):
    for seed, end in enumerate((0.96, 0.86, 0.94)):              # of two raw numbers the newer one counts
        make(tmp_path, seed=seed, ends=(0.5, end), raw=(0.1, 0.8) if seed else ())
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
    assert [len(seeds) for seeds in two.values()] == [1, 1]
    assert table(two).count("| lift |") == 2 and "(40)" in table(two) and "(80)" in table(two)
    assert {curves.curve_points(key, seeds)[1][-1].item() for key, seeds in two.items()} == {40.0, 80.0}
    rows = [row for row in filled(tmp_path, 1, 3) if row["column"] == "lift"]
    assert {row["online_mean"] for row in rows} == {40.0, 80.0} and {row["online_seeds"] for row in rows} == {1}
    texts = {(row["table"], row["block"], row["row"]) for row in rows}         # two places, told apart in words
    assert len(texts) == len(rows) >= 2


def test_what_does_not_change_results_does_not_part_seeds(tmp_path):
    make(tmp_path, seed=0)
    make(tmp_path, seed=1, eval_every=2_000, threads=1, compile=True, workers=3, log_every=7)
    assert [list(seeds) for seeds in found(tmp_path).values()] == [[0, 1]]


def test_what_is_no_run_is_left_out_with_a_line(tmp_path, capsys):
    folder = make(tmp_path, seed=1)
    make(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text('{"another": "program"}')
    (folder / "config.json").write_text((folder / "config.json").read_text().replace('"dfp"', '"smooth"'))
    assert [list(seeds) for seeds in found(tmp_path).values()] == [[0]]
    said = capsys.readouterr().out
    assert said.count("left out: ") == 2 and "/x is not a run's folder" in said and "'smooth' is not one of" in said


def test_another_presets_budget_is_another_block(tmp_path):
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
    (make(tmp_path, seed=3) / "eval.csv").unlink()                                       # before any evaluation
    cut = make(tmp_path, seed=4) / "eval.csv"                                            # within its first line
    cut.write_text("step,stage,success,episodes,length,return,seconds\n8000,off")
    groups, got = found(tmp_path), cell(tmp_path, 1, "dfp", "lift")
    assert [got[f"{stage}_{what}"] for stage in ("offline", "online") for what in ("mean", "seeds")] == [50, 2, 80, 1]
    assert [line.split("seed ")[1] for line in results.unfinished(groups)] == [
        "1: evaluated up to step 16,000 of 24,000", "2: evaluated up to step 0 of 24,000"]
    (one,) = (curves.curve_points(key, seeds) for key, seeds in groups.items())
    assert one[1].shape == (4, 1)                                                        # the same seed throughout
    assert "| 50.0 ± 14.1 (2) → 80.0 (1)<br>8k + 16k |" in tables.markdown(tables.cells(groups), [])


def test_the_same_run_twice_is_refused(tmp_path):
    make(tmp_path / "a")
    make(tmp_path / "b")
    with pytest.raises(config.UserError, match="seed 0 of lift, dfp, quick, generated data was given twice"):
        found(tmp_path)
    assert len(results.collect([tmp_path / "a", tmp_path / "a/lift"])) == 4              # one folder under two names


def test_everything_is_drawn_again_without_the_runs(tmp_path, monkeypatch, capsys):
    runs, one, two, three = (str(tmp_path / name) for name in ("runs", "one", "two", "three"))
    for seed in (0, 1, 2):
        make(runs, seed=seed, raw=(0.5,), ends=(0.1, 0.2 * seed))
    make(runs, task="can", data="b", topk_weight=5.0)
    make(runs, task="can", data="c", until=0)
    main([runs, "--out", one])
    assert "unfinished: can, dfp, quick, generated cccccccc data, seed 0: evaluated up" in capsys.readouterr().out
    main([f"{one}/runs.csv", "--out", two])
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert names == {"aggregate.csv", "curves.png", "report.md", "runs.csv", "table.md", "tables.csv"}
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    # Folders and files together; and a preset that has changed since does not change what an old run was.
    monkeypatch.setitem(config.SIZES, ("quick", "lift"), config.SIZES["quick", "lift"]._replace(hidden=256))
    make(tmp_path / "more", seed=3, ends=(0.1, 0.9))
    main([f"{one}/runs.csv", str(tmp_path / "more"), "--out", three])
    text = (tmp_path / "three/table.md").read_text()
    assert "| dfp | quick, 8,000" in text and "| dfp | quick,hidden=128, 8,000" in text


@pytest.mark.parametrize("name", ["quick", "shipped", "laptop", "unaveraged"])
def test_published_runs_are_those_of_the_presets_as_they_are(name):
    """Else docs/results.md would tell of a preset what another size has reached."""
    path = ROOT / "results" / name / "runs.csv"
    rows = results.read_csv(path)
    assert [row["setting"] for row in results.collect([path])] == [row["setting"] for row in rows]
    lengths = {(row["task"], row["method"], row["setting"]): set() for row in rows}
    for row in rows:
        lengths[row["task"], row["method"], row["setting"]].add((int(row["offline_steps"]), int(row["online_steps"])))
    for (task, method, setting), seen in lengths.items():
        if "," not in setting:                   # the preset and nothing else
            usual = results.preset(task, method, setting)
            assert (usual.offline_steps, usual.online_steps) in seen, (task, method)


def test_a_task_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "TASKS", [*config.TASKS, "reach"])
    make(tmp_path, task="reach", ends=(0.25, 1.0))
    monkeypatch.setattr(config, "TASKS", config.TASKS[:-1])                              # unknown where it is reported
    assert ("| reach | dfp | quick, 8,000 + 16,000 steps | generated | 1 | 25 (25) | 100 (100) | – |"
            in table(found(tmp_path)))


def test_figure1(tmp_path, monkeypatch):
    """Points stand at their share of each stage; the interval is Student's; the paper's curve ends in Table 1's."""
    ends = {"dfp": (0.96, 0.86, 0.94), "mvp": (0.2, 0.4)}
    for method, seed in (("dfp", 0), ("dfp", 1), ("dfp", 2), ("mvp", 0), ("mvp", 1)):
        make(tmp_path, method=method, seed=seed, ends=(0.5, ends[method][seed]))
    make(tmp_path, task="can", until=0)                                                  # nothing but its step 0
    drawn = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *_, **__: drawn.extend(figure.axes))
    curves.draw(found(tmp_path), tmp_path / "unused.png")
    assert [axes.get_title().split("\n")[0] for axes in drawn] == ["lift", "can"]
    lines = {(line.get_color(), line.get_linestyle()): line.get_xydata() for line in drawn[0].lines}
    for method, last in (("dfp", 92), ("mvp", 30)):
        color = f"C{list(config.METHODS).index(method)}"
        assert np.allclose(lines[color, "-"], [(0, 0), (1, 50), (1.5, 10), (2, last)])
        paper = lines[color, "--"]
        assert np.allclose(paper[:, 0], np.arange(1, 21) / 10)
        assert paper[-1, 1] == tables.paper()[1][method, "lift"][1]
    (band,) = drawn[0].collections                                                       # of three seeds, not of two
    half = 4.302653 * 28**0.5 / 3**0.5                           # t of 2 degrees of freedom, 97.5 %
    corners = band.get_paths()[0].vertices
    at_end = corners[corners[:, 0] == 2, 1]
    assert (at_end.min(), at_end.max()) == (approx(92 - half, abs=1e-4), 100)            # 105.1, cut at 100
    assert curves.share(1_500_000, 10**6, 10**6) == 1.5 and curves.share(0, 0, 10) == 0


def test_the_papers_numbers():
    """Averages that the paper prints beside its tables come out of the cells; Figure 1's last points are Table 1's."""
    assert {number: len(cells) for number, cells in tables.paper().items()} == {1: 6 * 13, 2: 4, 3: 12, 4: 20, 7: 10}
    theirs = {(number, *place): cell[1] for number, cells in tables.paper().items() for place, cell in cells.items()}
    parts = {1: config.ROBOMIMIC + config.CUBES, 4: {suite for _, suite in tables.paper()[4]} - {"12 tasks"}}
    for number, name in [(1, m) for m in "bfn qc-bfn fql qc-fql mvp dfp".split()] + [(4, k) for k in "1248"]:
        mean = np.mean([theirs[number, name, part] for part in parts[number]])
        assert mean == approx(theirs[number, name, "12 tasks"], abs=0.0501)
    for row in results.read_csv(results.PAPER / "curves.csv"):
        if row["step"] == "2000000" and (1, row["method"].lower(), row["task"]) in theirs:
            assert theirs[1, row["method"].lower(), row["task"]] == float(row["success_percent"])
    assert theirs[2, "mvp", "12 tasks"] == theirs[1, "mvp", "12 tasks"]
    assert [theirs[3, "0.5", f"cube-quadruple-task{i}"] for i in (2, 3, 4)] == [99.6, 96.6, 99.0]
    assert tables.paper()[7]["dfp", "scene-task2"] + tables.paper()[1]["dfp", "square"] == (None, 93, 4, 25.8, 93.2, 2)


def test_table1_lays_ours_beside_the_papers(tmp_path):
    make(tmp_path, seed=0, ends=(0.5, 0.9))
    make(tmp_path, seed=1, ends=(0.5, 1.0))
    make(tmp_path, method="dfp", task="can", kind="official", ends=(0.25, 0.5))
    text = tables.markdown(filled(tmp_path), [])
    for line in ("## Table 1: methods (quick, generated data)", "## Table 1: methods (quick, official data)",
                 "| dfp | here | 50.0 ± 0.0 (2) → 95.0 ± 7.1 (2)<br>8k + 16k |", "| dfp | paper | 85.2 → 100.0 ± 0.0 |",
                 "| dfp | here | 25.0 (1) → 50.0 (1)<br>24k + 48k |"):
        assert line + "\n" in text


def test_tables_2_3_4_7(tmp_path):
    make(tmp_path, ends=(0.5, 0.9))
    make(tmp_path, method="mvp", ends=(0.5, 0.3))
    assert not filled(tmp_path, 2, 3, 4, 7)                                              # nothing to compare yet
    make(tmp_path, method="dfp-no-topk", ends=(0.5, 0.8))
    make(tmp_path, method="mvp-topk", ends=(0.5, 0.4))
    make(tmp_path, ends=(0.5, 0.7), topk_weight=5.0)
    make(tmp_path, ends=(0.5, 0.6), top_k=8)
    make(tmp_path, task="scene-task2", preset="offline-rl", ends=(0.95, None))
    got = {(r["table"], r["block"], r["row"], r["column"]): r["online_mean"] for r in filled(tmp_path, 2, 3, 4)}
    assert got == {(number, "quick, generated data", row, "lift"): approx(mean) for number, row, mean in (
        (2, "mvp", 30), (2, "mvp-topk", 40), (2, "dfp", 90), (2, "dfp-no-topk", 80),
        (3, "0.5", 90), (3, "5", 70), (4, "2", 90), (4, "8", 60))}
    assert cell(tmp_path, 1, "dfp", "lift")["online_mean"] == approx(90)                 # variants stay out of Table 1
    scene = cell(tmp_path, 7, "dfp", "scene-task2")
    assert (scene["offline_mean"], scene["online_mean"], scene["paper"]) == (95, None, 93)
    text = tables.markdown(filled(tmp_path), [])
    assert "| 5 | paper | – | – → 99.2 | – → 94.2 | – → 98.0 |" in text
    assert "| 95.0 (1) → –<br>1M + 0 |" in text and "| dfp-no-topk | paper | – | – → 88.4 |" in text


def plain_iqm(scores):
    flat = sorted(float(s) for s in np.ravel(scores))
    cut = len(flat) // 4
    return sum(flat[cut : len(flat) - cut]) / (len(flat) - 2 * cut)


def test_bootstrap_is_stratified_and_its_intervals_are_right():
    """Those of all 27 x 27 ways to draw each task's seeds again, for itself."""
    tasks = [[0.0, 10, 20], [100.0, 160, 130]]
    every = [plain_iqm(drawn) for drawn in itertools.product(*(itertools.product(task, repeat=3) for task in tasks))]
    row = tables.over_tasks(tasks)
    assert (row["iqm_low"], row["iqm_high"]) == tuple(np.percentile(every, (2.5, 97.5)))
    assert row["iqm_low"] < row["iqm"] == plain_iqm(tasks) < row["iqm_high"] and row == tables.over_tasks(tasks)


def test_aggregate_over_the_tasks_that_methods_share(tmp_path):
    for seed, (lift, can) in enumerate(((0.2, 0.6), (0.4, 0.8), (0.3, 1.0))):
        make(tmp_path, seed=seed, ends=(0, lift))
        if seed < 2:                                                                     # a seed is missing: two count
            make(tmp_path, task="can", seed=seed, ends=(0, can))
    for task, end in (("lift", 0.9), ("can", 0.5), ("square", 0.1)):
        make(tmp_path, method="mvp", task=task, ends=(0, end))
    make(tmp_path, method="qc-bfn", ends=(0, 1.0))                                       # one task: no aggregate
    rows = filled(tmp_path)
    got = {(row["method"], row["tasks"]): row for row in tables.aggregate(rows)}
    assert set(got) == {("mvp", "lift can square"), ("mvp", "lift can"), ("dfp", "lift can")}
    dfp, mvp = got["dfp", "lift can"], got["mvp", "lift can"]
    assert (dfp["seeds"], dfp["iqm"], dfp["mean"]) == (2, approx(50), approx(50))        # of 20, 40, 60, 80
    assert (dfp["iqm_low"], dfp["iqm_high"], dfp["paper_mean"]) == (approx(40), approx(60), approx(95.3))
    assert mvp["iqm_low"] == "" and mvp["mean"] == approx(70)
    assert "| mvp | 1 | 70.0 | 70.0 | 91.7 |\n" in tables.markdown(rows, tables.aggregate(rows))


def test_one_line_when_there_is_nothing(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (make(tmp_path / "begun", raw=(0.5,)) / "eval.csv").unlink()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for name, words in (("empty", "no evaluated runs in"), ("absent", "no such file"), ("no.csv", "no such file"),
                        ("begun", "no evaluated runs in"), ("other.csv", "is no evaluation")):
        with pytest.raises(SystemExit) as stop:
            command_line.main(lambda: main([str(tmp_path / name), "--out", str(tmp_path / "out")]))
        error = capsys.readouterr().err
        assert stop.value.code == 2 and error[:7] == "error: " and error.count("\n") == 1 and words in error
        assert not (tmp_path / "out").exists()
