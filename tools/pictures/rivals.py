"""The pictures of baselines/flow.py and meanflow.py, from the networks and losses that train policies."""
from functools import partial

import torch

from baselines.flow import FlowActor, euler, flow_loss
from baselines.meanflow import MeanFlowActor, mean_flow_errors, two_times
from tools.pictures.concepts import (
    BLUE, CORNERS, GREY, ORANGE, drift_towards, four_modes, plt, save, square, state, train)


def flow() -> None:
    """flow.png: noise carried to four modes in 1, 2, 5 and 10 Euler steps, and by one pass of a drift policy."""
    torch.manual_seed(0)
    data = partial(four_modes, at=0.7, spread=0.05)
    many = FlowActor(0, 2, (128,) * 3, steps=10)

    def velocity(x, time):
        return many.velocity(state(len(x)), x, time)
    train(many, lambda: flow_loss(velocity, data(256), torch.randn(256, 2), torch.rand(256, 1)))
    once, loss = drift_towards(data, (0.05, 0.5), batch=128)
    train(once, loss)
    noise, target = torch.randn(300, 2), data(600)
    with torch.no_grad():
        panels = {f"flow, steps: {n}": euler(velocity, noise, n) for n in (1, 2, 5, 10)}
        panels["drift policy, one pass"] = once(state(300), noise)
    figure, axes = plt.subplots(1, 5, figsize=(12.5, 3.05), layout="constrained")
    for ax, (title, actions) in zip(axes, panels.items()):
        ax.scatter(*target.T, s=5, color=GREY, lw=0)
        ax.scatter(*actions.T, s=6, color=BLUE if title.startswith("flow") else ORANGE, lw=0)
        on = (torch.cdist(actions, 0.7 * CORNERS).amin(1) < 0.15).float().mean()
        square(ax, title=f"{title}\n{on:.0%} within 3 std of a mode")
    save(figure, "flow.png")


def meanflow() -> None:
    """meanflow.png: one dimension; where a path's first velocity points, and where its mean velocity does."""
    torch.manual_seed(0)
    actor = MeanFlowActor(0, 1, (128,) * 3)

    def data(n):
        return 0.7 * (2.0 * torch.randint(2, (n, 1)) - 1) + 0.05 * torch.randn(n, 1)

    def u(z, r, t):                                          # u(z_t, r, t) of meanflow.py
        return actor.mean_velocity(state(len(z)), z, r, t)

    def loss():
        mf, ivc = mean_flow_errors(u, data(256), torch.randn(256, 1), *two_times(torch.randn(256, 2), -0.4, 1.0))
        return (mf + ivc).mean()
    train(actor, loss, 2000)
    noise, one, steps = torch.randn(2000, 1), torch.ones(2000, 1), 50
    with torch.no_grad():
        path = [noise]                                       # many small steps along the velocity u(z, t, t)
        for i in range(steps, 0, -1):
            path.append(path[-1] - u(path[-1], one * i / steps, one * i / steps) / steps)
        instant, mean = (noise - u(noise, r * one, one) for r in (1, 0))
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    left.plot(torch.linspace(1, 0, steps + 1), torch.stack(path)[:, :60, 0], color=GREY, lw=0.6)
    left.set(xlim=(1, 0), ylim=(-2.2, 2.2), xlabel="time t: noise (1) to data (0)", ylabel="z",
             title="paths of the flow, and one step along two velocities")
    right.hist(data(2000)[:, 0], bins=60, orientation="horizontal", color=GREY, label="data")
    for end, color, label in ((instant, ORANGE, r"instantaneous, $\epsilon - u(\epsilon, 1, 1)$"),
                              (mean, BLUE, r"mean, $\epsilon - u(\epsilon, 0, 1)$")):
        left.plot((1, 0), torch.stack([noise, end])[:, :12, 0], color=color, lw=1.2)
        right.hist(end[:, 0], bins=60, orientation="horizontal", histtype="step", lw=1.5, color=color, label=label)
    right.set(xticks=[], title="where one step lands")
    right.legend(fontsize=8, loc="upper right")
    save(figure, "meanflow.png")
