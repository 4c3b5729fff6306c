"""The concept files' pictures: all are drawn; the bandit's best action is where it says."""
import functools
import sys

import pytest
import torch

from config import UserError
from tools.pictures import __main__ as pictures
from tools.pictures import bandit, concepts, rivals


def test_every_picture_is_drawn(tmp_path, monkeypatch):
    """With networks that have hardly been trained."""
    monkeypatch.setattr(concepts, "FOLDER", tmp_path / "figures")
    concepts.FOLDER.mkdir()
    train = concepts.train
    monkeypatch.setattr(rivals, "train", lambda network, loss, steps=0: train(network, loss, 2))
    concepts.drift(4)
    concepts.policy(2)
    concepts.critic(4)
    concepts.topk(2)
    bandit.draw(2, 2)
    rivals.flow()
    rivals.meanflow()
    names = {path.name for path in concepts.FOLDER.iterdir() if path.stat().st_size > 5_000}
    assert names == {"drift.png", "drift.gif", "temperatures.png", "policy.png", "critic.png", "topk.png", "dfp.png",
                     "flow.png", "meanflow.png"}


def test_command_knows_the_files_and_nothing_else(monkeypatch):
    names, drawn = ["drift", "policy", "critic", "topk", "dfp", "flow", "meanflow"], []
    monkeypatch.setattr(pictures, "DRAW", {name: functools.partial(drawn.append, name) for name in pictures.DRAW})
    for words in ([], *([name] for name in names)):
        monkeypatch.setattr(sys, "argv", ["pictures", *words])
        pictures.main()
    assert drawn == names + names
    monkeypatch.setattr(sys, "argv", ["pictures", "drfit"])
    with pytest.raises(UserError, match="invalid choice: 'drfit' .*drift"):
        pictures.main()


def test_the_bandit():
    """Its best action is where it says; DFP's samples come to earn more by L_topK, which finds what no demonstration
    holds."""
    line = torch.linspace(-1, 1, 401)
    grid = torch.cartesian_prod(line, line)
    value, best = bandit.reward(grid).max(0)
    assert value == pytest.approx(1, abs=1e-3) and torch.allclose(grid[best], bandit.PEAKS[0], atol=0.006)
    before, after = bandit.train(bandit.METHODS["DFP"] | dict(topk_weight=2.0), 300, 250)
    assert bandit.reward(after).mean() > bandit.reward(before).mean() + 0.2
