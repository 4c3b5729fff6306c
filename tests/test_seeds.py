"""Several seeds at once equal as many single ones."""
import copy

import pytest
import torch

from test_baselines import B, batch_for, make
from tools.seeds import NETWORKS, Together


@pytest.mark.parametrize("method", ["dfp", "qc-bfn", "qc-fql", "mvp-topk"])
def test_updates_equal_single_ones(method):
    """Losses, weights, averages and what would be saved, over both stages, with a copy half way (a resumed run)."""
    single, stacked = ([make(method, seed=k) for k in range(3)] for _ in range(2))
    together = Together(stacked)
    for step in range(8):
        if step == 3:
            for a in (*single, *stacked):
                a.start_online()
        if step == 5:                                            # as saved, and taken up again by fresh objects
            states = [copy.deepcopy(a.state_dict()) for a in stacked]
            stacked = [make(method, seed=k) for k in range(3)]
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
        for name in NETWORKS:
            for p, q in zip(getattr(a, name).parameters(), getattr(b, name).parameters()):
                assert torch.allclose(p, q, atol=2e-5)
        one, other = a.state_dict()["optimizer"]["state"], b.state_dict()["optimizer"]["state"]
        for k in one:
            assert float(one[k]["step"]) == float(other[k]["step"]) == 8
            assert torch.allclose(one[k]["exp_avg"], other[k]["exp_avg"], atol=1e-5)
        obs = batch_for(a)["observations"]
        act = lambda x: x.act(obs, torch.Generator().manual_seed(0))           # noqa: E731
        assert torch.allclose(act(a), act(b), atol=1e-3)
        assert torch.equal(a.draw_noise(B)["next"], b.draw_noise(B)["next"])


def test_seeds_differ():
    together = Together([make("dfp", seed=k) for k in range(2)])
    infos = together.update([batch_for(a) for a in together.algorithms])
    assert infos[0]["q"] != infos[1]["q"]


def test_unequal_numbers_of_updates_are_refused():
    one, two = make("dfp"), make("dfp", seed=1)
    one.update(batch_for(one))
    two.update(batch_for(two))
    two.update(batch_for(two))
    with pytest.raises(ValueError, match="different numbers"):
        Together([one, two])
