"""Several seeds at once equal as many single ones."""
import copy

import pytest
import torch

import toy
from buffer import ReplayBuffer
from config import UserError
from dfp import DFP
from test_baselines import B, batch_for, make
from test_scripts import rows as numbers
from tools.speed.seeds import NETWORKS, Together


@pytest.mark.parametrize("method, compile", [
    ("dfp", False), ("dfp", True), ("qc-bfn", False), ("qc-fql", False), ("mvp-topk", False)])
def test_updates_equal_single_ones(method, compile, request):
    """Losses, weights, averages and what would be saved, over both stages, with a copy half way (a resumed run)."""
    if compile:
        request.getfixturevalue("compiler")
    knobs = dict(acting_ema_rate=0.3) if compile else {}
    single, stacked = ([make(method, seed=k, compile=on, **knobs) for k in range(3)] for on in (False, compile))
    together = Together(stacked)
    for step in range(8):
        if step == 3:
            for a in (*single, *stacked):
                a.start_online()
        if step == 5:                                            # as saved, and taken up again by fresh objects
            states = [copy.deepcopy(a.state_dict()) for a in stacked]
            stacked = [make(method, seed=k, compile=compile, **knobs) for k in range(3)]
            for a, state in zip(stacked, states):
                a.load_state_dict(state)
            together = Together(stacked)
        batches = [batch_for(a, 10 * step + k) for k, a in enumerate(single)]
        infos = together.update(batches)
        for a, batch, info in zip(single, batches, infos):
            alone = a.update(batch)
            assert alone.keys() == info.keys()
            for name in alone:
                assert torch.allclose(alone[name], info[name], rtol=1e-3, atol=1e-5), (step, name)
    for a, b in zip(single, stacked):
        assert a.parts == b.parts == [*NETWORKS, "optimizer", *["actor_average"] * compile]
        for name in {*a.parts} - {"optimizer"}:
            for p, q in zip(getattr(a, name).parameters(), getattr(b, name).parameters()):
                assert torch.allclose(p, q, atol=2e-5)
        one, other = a.state_dict()["optimizer"]["state"], b.state_dict()["optimizer"]["state"]
        for k in one:
            assert float(one[k]["step"]) == float(other[k]["step"]) == 8
            assert torch.allclose(one[k]["exp_avg"], other[k]["exp_avg"], atol=1e-5)
        obs = batch_for(a)["observations"]
        acts = [x.act(obs, torch.Generator().manual_seed(0)) for x in (a, b)]
        assert torch.allclose(*acts, atol=1e-3)
        assert torch.equal(a.draw_noise(B)["next"], b.draw_noise(B)["next"])
    fresh = [make(method, seed=k) for k in range(2)]
    assert len({float(a.update(batch_for(a))["q"]) for a in fresh}) == 2             # seeds differ


def test_a_method_with_a_gradient_step_of_its_own_is_refused():
    algo = make("dfp")
    algo.__class__ = type("Clipped", (DFP,), {"gradient_step": lambda self, loss: None})
    with pytest.raises(UserError, match=r"Clipped has its own gradient_step\(\)"):
        Together([algo])


def test_runs_in_lock_step_equal_single_ones(train):
    """Each in its own folder. What they do online hangs on choices between candidates, which rounding may turn in
    principle."""
    for k, folder in enumerate(train("together", seeds=3, seed=4)):
        single = train("single", seed=4 + k)
        assert folder.parts[-5:] == single.parts[-5:] and folder.name == f"seed{4 + k}"
        assert numbers(folder, "eval.csv") == numbers(single, "eval.csv")
        for name in ("checkpoint.pt", "offline.pt"):             # nothing of the other seeds is in them
            assert (folder / name).stat().st_size == pytest.approx((single / name).stat().st_size, rel=0.01)
        rows, alone = numbers(folder, "train.csv"), numbers(single, "train.csv")
        assert len(rows) == len(alone) == 11
        for a, b in zip(rows, alone):
            assert a.keys() == b.keys() and a.pop("stage") == b.pop("stage")
            for name in a:
                if a[name] or b[name]:                           # empty: a loss of the other stage
                    assert float(a[name]) == pytest.approx(float(b[name]), rel=1e-3, abs=1e-5), (name, a["step"])


def test_complete_and_cut_ones_beside_each_other(train, monkeypatch, capsys):
    """Seed 0 is complete; seed 1 lags behind seed 2 and goes alone when Ctrl-C comes, so there is only it to save."""
    whole = train("whole", seeds=3)
    others = [train("cut", seed=0), train("cut", seed=2, online_steps=20)]
    before = [(folder / "checkpoint.pt").read_bytes() for folder in others]
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        toy.ring(patch, ReplayBuffer, "add", 5)
        train("cut", seeds=3, resume=True)
    assert capsys.readouterr().out.count("stopped at step 17 and saved") == 1
    assert before == [(folder / "checkpoint.pt").read_bytes() for folder in others]
    resumed = train("cut", seeds=3, resume=True)
    assert numbers(whole[1], "eval.csv") == numbers(resumed[1], "eval.csv")              # it caught up
    for folder, again in zip(whole, resumed):
        assert numbers(folder, "eval.csv")[-1] == numbers(again, "eval.csv")[-1]
        assert (again / "online.f32").stat().st_size == (folder / "online.f32").stat().st_size
        steps = [[row["step"] for row in numbers(run, "train.csv")] for run in (folder, again)]
        assert steps[0] == steps[1]
