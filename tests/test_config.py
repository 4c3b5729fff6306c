"""Tables 5 and 8, precedence, and one clear line for every impossible wish."""
import dataclasses
import itertools
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config import CUBES, METHODS, OFFLINE_RL, PRESETS, ROBOMIMIC, TASKS, Config, UserError, build, from_plain, knob
from tools.checks import MAY_DIFFER, READ_BY, STAGE_2, problem_with
from tools.training import command_line
from tools.training.command_line import parse


def test_table5():
    for task in TASKS:
        c = build({"task": task})
        networks = c.batch_size, c.discount, c.lr, c.target_rate, c.layers, c.hidden, c.ensemble, c.q_aggregate
        assert networks == (256, 0.99, 3e-4, 5e-3, 4, 512, 2, "mean")
        assert (c.offline_steps, c.online_steps, c.chunk, c.num_generated, c.ema_rate) == (10**6, 10**6, 5, 8, 1e-4)
        per_task = c.best_of, c.top_k, c.temperatures, c.num_candidates, c.topk_weight
        if task in ROBOMIMIC:
            assert per_task == (4, 2, (0.005, 0.05), 16, 0.5)
        elif task in CUBES:
            assert per_task == (16, 4, (0.05,), 16, 0.5)
    assert build({}) == Config()                        # the defaults are those of the default task
    assert (len(ROBOMIMIC), len(CUBES), len(TASKS)) == (3, 9, 3 + 9 + 4) and set(OFFLINE_RL) <= set(TASKS)


@pytest.mark.parametrize("task, weight, temperatures, n, k", [
    ("cube-single-task2", 0.45, (0.05,), 16, 8), ("cube-double-task2", 0.55, (0.05,), 16, 8),
    ("scene-task2", 0.5, (0.01, 0.05), 16, 8), ("puzzle-3x3-task4", 0.5, (0.01, 0.05), 16, 8),
    ("puzzle-4x4-task4", 0.5, (0.01, 0.05), 32, 16)])
def test_table8(task, weight, temperatures, n, k):
    c = build({"task": task, "preset": "offline-rl"})
    assert (c.topk_weight, c.temperatures, c.num_candidates, c.top_k) == (weight, temperatures, n, k)
    assert (c.chunk, c.best_of, c.topk_offline) == (1, 1, True)
    online = build({"task": task})                      # run online: Table 5's values, with Table 8's where 5 is silent
    assert (online.chunk, online.best_of, online.topk_offline) == (5, 16, False)
    assert online.top_k == (4 if task == "cube-double-task2" else k)


@pytest.mark.parametrize("method, chunk, best_of", [("bfn", 1, 4), ("qc-bfn", 5, 32), ("fql", 1, 1), ("qc-fql", 5, 1),
                                                    ("mvp", 5, 16), ("mvp-topk", 5, 16)])
def test_baselines(method, chunk, best_of):
    """App. A.2: everything that is not listed is DFP's, on every task."""
    for task in TASKS:
        c, dfp = build({"task": task, "method": method}), build({"task": task})
        assert (c.chunk, c.best_of, c.flow_steps, c.time_mean, c.time_std) == (chunk, best_of, 10, -0.4, 1.0)
        alphas = {"lift": 1e4, "can": 1e4, "square": 1e4, "cube-triple": 100, "cube-quadruple": 100, "puzzle": 1000}
        assert c.distill_weight == next((a for name, a in alphas.items() if task.startswith(name)), 300)
        assert c.ivc_weight == (0 if task.startswith("cube-triple") else 1)
        assert {k for k in vars(c) if vars(c)[k] != vars(dfp)[k]} <= {"method", "chunk", "best_of"}
    pure = build({"task": "scene-task2", "method": method, "preset": "offline-rl"})     # Table 7: as they are
    assert (pure.chunk, pure.best_of, pure.topk_offline, pure.online_steps) == (chunk, best_of, False, 0)


def test_lists_of_knobs_name_knobs():
    assert {*READ_BY, *STAGE_2, *MAY_DIFFER} <= set(vars(Config())) and not {*STAGE_2} & {*MAY_DIFFER}


def test_precedence_option_preset_table_default():
    released = build({"task": "lift", "preset": "released"})
    assert build({"task": "lift"}).temperatures == (0.005, 0.05)                              # table over default
    assert (released.best_of, released.top_k, released.num_candidates, released.mask_bc) == (16, 4, 16, False)
    assert released.temperatures == (0.1,)                                                    # preset over table
    assert build({"task": "lift", "preset": "released", "temperatures": (0.2,)}).temperatures == (0.2,)
    assert build({"task": "lift", "method": "dfp-no-topk", "preset": "released"}).topk_weight == 0
    assert build({"task": "lift", "method": "qc-bfn"}).best_of == 32                          # method over task
    assert build({"task": "lift", "method": "qc-bfn", "preset": "quick", "best_of": 8}).best_of == 8


@pytest.mark.parametrize("preset", ["quick", "laptop"])
def test_a_smaller_preset_is_the_same_algorithm(preset):
    allowed = {"preset", "hidden", "batch_size", "offline_steps", "online_steps", "warmup", "eval_every",
               "eval_episodes", "final_episodes", "log_every", "data", "data_size", "goal_share", "threads"}
    for task, method in itertools.product(TASKS, METHODS):
        paper, small = (vars(build(dict(task=task, method=method, preset=name))) for name in ("paper", preset))
        changed = {k for k in paper if paper[k] != small[k]}
        own = {"acting_ema_rate"} if preset == "laptop" else set()
        own |= {"lr"} if preset == "laptop" or task in ("can", "square", *CUBES) else set()
        own |= {"q_aggregate"} if preset == "laptop" and task in ("can", "square") else set()
        assert changed <= allowed | own


def test_a_task_of_ones_own_has_the_size_of_others_whatever_its_name(monkeypatch):
    monkeypatch.setattr("config.TASKS", [*TASKS, "can-task7"])
    mine, others = (build(dict(task=name, preset="laptop")) for name in ("can-task7", "scene-task2"))
    assert (mine.data_size, mine.q_aggregate) == (others.data_size, others.q_aggregate) == (200_000, "mean")


@pytest.mark.parametrize("default, value, says", [
    (0.0, 0.0, ""), (0.0, -1.0, "must not be negative"), (1.0, 0.0, "must be positive"), (-1.0, -2.0, "")])
def test_a_knob_of_ones_own_may_be_zero_where_its_default_is(default, value, says):
    one, = dataclasses.fields(dataclasses.make_dataclass("Own", [("jerk_weight", float, knob(default, "jerk"))]))
    assert problem_with(one, value) == says


def test_command_line():
    c, named = parse("", ["--task", "can", "--topk-weight", "0.7", "--no-compile", "--temperatures", "0.1", "0.3"])
    assert (c.task, c.topk_weight, c.compile, c.temperatures) == ("can", 0.7, False, (0.1, 0.3))
    assert named == {"task", "topk_weight", "compile", "temperatures"}


@pytest.mark.parametrize("wish, says", [
    ("--task sqare", "did you mean 'square'"), ("--task 123", "unknown task '123'. Known: lift"),
    ("--data 123", "official, generated. Nor is there such a file"), ("--method dpf", "did you mean 'dfp'"),
    ("--nonsense 3", "unrecognized"), ("--preset quik", "did you mean 'quick'"), ("--lr nan", "--lr"),
    ("--data offical", "did you mean 'official'"), ("--top-k 20", "cannot exceed"),
    ("--batch-size 0", "--batch-size must be positive"), ("--discount 1.5", "must not exceed 1"),
    ("--temperatures 0.1 0", "must be positive"), ("--offline-steps many", "invalid int value"),
    ("--preset offline-rl", "Table 8"), ("--method fql --preset released", "DFP's own"),
    ("--method dfp-no-topk --topk-weight 0.5", "means --topk-weight 0"), ("--ivc-weight 1", "mvp, mvp-topk"),
    ("--method mvp --time-mean nan", "--time-mean"), ("--method mvp --top-k 2", "does not read --top-k"),
    ("--method bfn --flow-steps 0", "must be positive"), ("--method qc-fql --distill-weight -1", "--distill-weight"),
    (dict(hidden=64.0), "--hidden must be a whole number, not 64.0"), (dict(lr="3e-4"), "--lr must be a number"),
    (dict(hidden=True), "--hidden must be a whole number"), (dict(mask_bc=1), "--mask-bc must be true or false"),
    (dict(temperatures=0.1), "--temperatures must be a tuple"), (dict(q_aggregate="maen"), "did you mean 'mean'"),
    (dict(hiden=64), "'hiden' is no knob; did you mean 'hidden'"), (dict(seed=2**31), "below 2^31")])
def test_every_error_is_one_line(wish, says):
    """On the command line and from Python."""
    with pytest.raises(UserError) as error:
        parse("", wish.split()) if isinstance(wish, str) else build(wish)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_method_of_ones_own_reads_any_knob(monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "smooth", METHODS["dfp"]._replace(family="smooth"))
    assert build(dict(task="lift", method="smooth", topk_weight=1.0, temperatures=(0.2,))).topk_weight == 1
    with pytest.raises(SystemExit):
        parse("", ["--method", "smooth", "--print-config"])
    assert "\ntemperatures     " in capsys.readouterr().out


def test_what_python_gives_becomes_plain():
    """Numbers of numpy's, paths, ~: as a file would give them back, and a shell."""
    c = build(dict(task=np.str_("lift"), lr=np.float64(1e-3), hidden=np.int64(8), compile=np.bool_(False),
                   temperatures=np.array([0.1, 0.2]), out=Path("~/runs"), data_dir="~/data") | dict(seed=np.uint8(3)))
    checked(c)
    home = os.path.expanduser("~")
    assert (c.task, c.lr, c.hidden, c.compile, c.seed) == ("lift", 1e-3, 8, False, 3)
    assert (c.temperatures, c.out, c.data_dir) == ((0.1, 0.2), f"{home}/runs", f"{home}/data")
    assert from_plain(json.loads(json.dumps(c.plain()))) == c


def test_help_and_print_config(capsys):
    with pytest.raises(SystemExit):
        parse("", ["--help"])
    text = capsys.readouterr().out
    assert all("--" + name.replace("_", "-") in text for name in vars(build({})))
    assert text.index("policy improvement:") < text.index("--num-candidates") < text.index("the baselines:")
    with pytest.raises(SystemExit):
        parse("", ["--task", "list"])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines] == TASKS and "lift robomimic 19 7 300 300 demonstrations".split() in lines
    assert "cube-quadruple-task3 ogbench 55 5 1000 100M transitions of play".split() in lines
    with pytest.raises(SystemExit):
        parse("", ["--task", "lift", "--print-config"])
    text = capsys.readouterr().out
    assert "temperatures     (0.005, 0.05)" in text and "distill_weight" not in text     # only what the method reads


def test_user_error_ends_with_code_2(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x.py", "~/a", "--data=~/b", "--lr", "3"])
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("HOME", "/home/me")

    def fail():
        assert sys.argv[1:] == ["/home/me/a", "--data=/home/me/b", "--lr", "3"] and os.environ["MUJOCO_GL"] == "disable"
        raise UserError("say why")
    with pytest.raises(SystemExit) as stop:
        command_line.main(fail)
    assert stop.value.code == 2 and capsys.readouterr().err == "error: say why\n"


KNOBS = {f: default for f, default in vars(Config()).items() if f not in ("task", "method", "preset", "data")}
TYPICAL = "0", "1", "2", "-1", "0.5", "nan", "inf", "1e400", "9" * 400, "", "auto", "cpu", "x", "--"
WORDS = st.sampled_from(TYPICAL) | st.text(max_size=5)


def checked(c: Config) -> None:
    """What every Config that is let through must have, whoever asks."""
    for name, default in vars(Config()).items():
        value = getattr(c, name)
        assert type(value) is type(default) or type(default) is float and type(value) is int, name
        for number in value if isinstance(value, tuple) else (value,) if not isinstance(value, (bool, str)) else ():
            assert math.isfinite(number) and abs(number) < 2**31, name
    assert min(c.hidden, c.layers, c.batch_size, c.chunk, c.best_of, c.lr, *c.temperatures, c.eval_every) > 0
    assert 1 <= c.top_k <= c.num_candidates and 0 < c.discount <= 1 and c.warmup >= 0 <= c.seed


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(TASKS), st.sampled_from([*METHODS]), st.sampled_from(PRESETS),
       st.dictionaries(st.sampled_from([*KNOBS]), WORDS, max_size=3))
def test_any_command_line_is_refused_in_one_line_or_checked(task, method, preset, options):
    words = ["--task", task, "--method", method, "--preset", preset]
    for name, word in options.items():
        words += ["--" + name.replace("_", "-")] + ([] if isinstance(KNOBS[name], bool) else [word])
    try:
        c, named = parse("", words)
    except UserError as error:
        assert "\n" not in str(error)
        return
    checked(c)
    assert named == {"task", "method", "preset", *options}
    assert from_plain(json.loads(json.dumps(c.plain()))) == c                                 # as config.json keeps it


SINGLE = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(SINGLE, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from([*vars(Config())]) | st.text(max_size=8), VALUES, max_size=3))
def test_any_knobs_from_a_file_are_refused_in_one_line_or_checked(knobs):
    try:
        c = from_plain(build({}).plain() | knobs)
    except UserError as error:
        assert "\n" not in str(error)
        return
    checked(c)
    assert set(knobs) <= set(vars(c))
