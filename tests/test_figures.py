"""The concept files' pictures: all are drawn, and what they call exact is exact."""
import itertools

import numpy as np
import pytest
import torch

from baselines import pictures
from tools import bandit, figures


def test_every_picture_is_drawn(tmp_path, monkeypatch):
    """With networks that have hardly been trained."""
    monkeypatch.setattr(figures, "FOLDER", tmp_path / "figures")
    figures.FOLDER.mkdir()
    train = figures.train
    monkeypatch.setattr(pictures, "train", lambda network, loss, steps=0: train(network, loss, 2))
    figures.drift(4)
    figures.policy(2)
    figures.critic(4)
    figures.topk(2, draws=2)
    bandit.draw(2, 2)
    pictures.flow()
    pictures.meanflow()
    names = {path.name for path in figures.FOLDER.iterdir() if path.stat().st_size > 5_000}
    assert names == {"drift.png", "drift.gif", "temperatures.png", "policy.png", "critic.png", "topk.png", "dfp.png", "flow.png", "meanflow.png"}


def test_exact_values_of_the_chain():
    """Against rollouts: the mean discounted return of a chunk that is followed by the random walk."""
    length, chunk, discount = 4, 2, 0.9
    exact, draw = figures.chain_values(length, chunk, discount), np.random.default_rng(0)
    assert len(exact) == length * 4 and exact[3, (1, -1)] == 0 and exact[2, (1, 1)] == -1
    for place, moves in itertools.product((0, 2), ((-1, 1), (-1, -1))):
        returns = []
        for _ in range(4000):
            at, total, step = place, 0.0, 0
            while at < length and step < 100:
                at = max(at + (moves[step] if step < chunk else 1 if draw.random() < 0.7 else -1), 0)
                total -= discount**step * (at < length)
                step += 1
            returns.append(total)
        assert np.mean(returns) == pytest.approx(exact[place, moves], abs=4 * np.std(returns) / 4000**0.5)


def test_limit_of_proposition_1():
    """All of pi_old kept (rho = 1) and its own samples as negatives: no drift is left."""
    everything = torch.special.ndtri((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    assert figures.level_set_loss(everything[::200], everything, 1.0, 0.3) < 1e-12


def test_the_bandit():
    """Its best action is where it says; DFP's samples come to earn more by L_topK, which finds what no demonstration holds."""
    line = torch.linspace(-1, 1, 401)
    grid = torch.cartesian_prod(line, line)
    value, best = bandit.reward(grid).max(0)
    assert value == pytest.approx(1, abs=1e-3) and torch.allclose(grid[best], bandit.PEAKS[0], atol=0.006)
    _, before, after = bandit.train(bandit.METHODS["DFP"] | dict(topk_weight=2.0), 300, 250)
    assert bandit.reward(after).mean() > bandit.reward(before).mean() + 0.2
