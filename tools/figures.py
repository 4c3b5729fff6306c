"""The pictures of the concept files, drawn from the functions that train policies, on toy problems, in seconds.

    python drift.py        figures/drift.png, drift.gif: the field, and samples that follow it; temperatures.png: too small a one
    python policy.py       figures/policy.png: one noise, one action
    python critic.py       figures/critic.png: values of action chunks on a chain, learned beside exact
    python topk.py         figures/topk.png: candidates, the top K, the drift; what the selection converges to
    python -m tools.figures                 all of them, and dfp.py's (bandit.py)
"""
import itertools
from pathlib import Path

import matplotlib
import numpy as np
import torch

from critic import Critic, chunk_return, move_towards, td_loss, td_target
from drift import drift_field, drift_loss
from policy import Actor
from topk import top_k_actions

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).resolve().parent.parent / "figures"
GREY, BLUE, ORANGE, GREEN = "0.75", "#1f77b4", "#ff7f0e", "#2ca02c"


def train(network, loss, steps=1200, rate=2e-3, watch=None):
    """Adam on loss() with a decaying step; watch(step) is called before every step, and after the last."""
    adam = torch.optim.Adam(network.parameters(), rate)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, steps)
    for step in range(steps):
        if watch:
            watch(step)
        adam.zero_grad()
        loss().backward()
        adam.step()
        decay.step()
    if watch:
        watch(steps)


def save(figure, name):
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=100)
    plt.close(figure)
    print(FOLDER / name)


def square(ax, limit=1.6, title=""):
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=10)


def state(n):
    """n times the one state there is: nothing is observed."""
    return torch.zeros(n, 0)


CORNERS = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])


def four_modes(n, at=0.8, spread=0.07, generator=None):
    return at * CORNERS[torch.randint(4, (n,), generator=generator)] + spread * torch.randn(n, 2, generator=generator)


def drift_towards(data, temperatures, batch=256):
    """A fresh two-dimensional policy, and the loss that drifts its samples to data(n)."""
    actor = Actor(0, 2, (128,) * 3)
    return actor, lambda: drift_loss(actor(state(batch), torch.randn(batch, 2))[None], data(batch)[None], temperatures=temperatures)


# --------------------------------------------------------------------------------------------------- drift.py
def drift(steps=1200) -> None:
    """The field V = V+ - V- on its way to zero, as the samples come to the target."""
    torch.manual_seed(0)
    actor, loss = drift_towards(four_modes, (0.1, 0.5, 2.0))
    noise, target = torch.randn(300, 2), four_modes(600)
    line = torch.linspace(-1.5, 1.5, 17)
    grid, frames, h = torch.cartesian_prod(line, line), {}, 0.25
    film = {round(steps * (i / 40) ** 2) for i in range(41)}                    # densest at the start, where most happens

    def watch(step):
        if step in film:
            with torch.no_grad():
                x = actor(state(300), noise)
                frames[step] = x, drift_field(grid, target, x, bandwidth=h), drift_field(x, target, x, bandwidth=h)
    train(actor, lambda: loss()[0].mean(), steps, watch=watch)

    def panel(ax, step):
        x, field, own = frames[step]
        ax.clear()
        ax.scatter(*target.T, s=4, color=GREY, lw=0)
        ax.quiver(*grid.T, *field.T, color="0.45", angles="xy", scale_units="xy", scale=6, width=0.003)
        ax.scatter(*x.T, s=6, color=BLUE, lw=0)
        square(ax, title=f"step {step:,}: mean |V| at the samples {own.norm(dim=1).mean():.2f}")

    shown = sorted(frames)
    strip = [shown[round(i)] for i in np.linspace(0, len(shown) - 1, 5)]
    figure, axes = plt.subplots(1, 5, figsize=(15, 3.3), layout="constrained")
    for ax, step in zip(axes, strip):
        panel(ax, step)
    save(figure, "drift.png")

    from matplotlib.animation import FuncAnimation, PillowWriter
    figure, ax = plt.subplots(figsize=(3.6, 3.8), layout="constrained")
    FuncAnimation(figure, lambda step: panel(ax, step), frames=shown).save(FOLDER / "drift.gif", PillowWriter(fps=8), dpi=70)
    plt.close(figure)
    print(FOLDER / "drift.gif")
    temperatures(steps)


def temperatures(steps=1200) -> None:
    """Only small temperatures, and samples that start far from the data: everything collapses onto the mean. The loss does
    not tell; the spread does."""
    figure, axes = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained", width_ratios=(1, 1, 1, 1.3))
    for ax, widths, color in zip(axes, ((0.1,), (0.1, 0.5), (0.1, 0.5, 2.0)), ("#d62728", BLUE, GREEN)):
        torch.manual_seed(0)
        actor, loss = drift_towards(lambda n: 2 * four_modes(n), widths)
        with torch.no_grad():
            actor.mlp.linears[-1].weight.mul_(0.1)                              # starts narrow, at the origin
        spread, values, noise = [], [], torch.randn(300, 2)

        def measured():
            value = loss()[0].mean()
            values.append(value.item())
            return value

        def watch(step):
            with torch.no_grad():
                spread.append(actor(state(300), noise).std(0).mean().item())
        train(actor, measured, steps, watch=watch)
        with torch.no_grad():
            x = actor(state(300), noise)
        ax.scatter(*(2 * four_modes(600)).T, s=4, color=GREY, lw=0)
        ax.scatter(*x.T, s=6, color=color, lw=0)
        names = ", ".join(f"{r:g}" for r in widths)
        square(ax, 3, f"R = {names}: loss {np.mean(values[-50:]):.2f}, spread {spread[-1]:.2f}")
        axes[3].plot(spread, color=color, label=f"R = {names}")
    axes[3].axhline((2 * four_modes(4000)).std(0).mean(), color="0.5", ls=":", label="the data's")
    axes[3].set(xlabel="step", ylabel="spread of the samples")
    axes[3].legend(fontsize=8)
    save(figure, "temperatures.png")


# --------------------------------------------------------------------------------------------------- policy.py
def policy(steps=1200) -> None:
    """One pass from noise to action: which noise means which way to act."""
    torch.manual_seed(0)
    angle = torch.arange(5) * 2 * torch.pi / 5
    modes = torch.stack([angle.sin(), angle.cos()], 1)
    data = lambda n: modes[torch.randint(5, (n,))] + 0.06 * torch.randn(n, 2)  # noqa: E731
    actor, loss = drift_towards(data, (0.1, 0.5, 2.0))
    train(actor, lambda: loss()[0].mean(), steps)

    noise = torch.randn(3000, 2)
    with torch.no_grad():
        actions = actor(state(3000), noise)
    distance, mode = torch.cdist(actions, modes).min(1)
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.8), layout="constrained")
    for ax, points, limit, title in ((left, noise, 3.3, r"noise $\epsilon \sim N(0, I)$"),
                                     (right, actions, 1.5, r"actions $f_\theta(\epsilon)$, one pass")):
        ax.scatter(*points.T, s=4, c=mode, cmap="Set1", vmin=0, vmax=8, lw=0)
        square(ax, limit, title)
    left.set_title(left.get_title() + ", coloured by the mode it becomes", fontsize=9)
    right.set_title(right.get_title() + f": {(distance < 0.18).float().mean():.0%} within 3 std of a mode", fontsize=9)
    save(figure, "policy.png")


# --------------------------------------------------------------------------------------------------- critic.py
def chain_values(length, chunk, discount, right=0.7):
    """Exact Q of every chunk of a chain's left (-1) and right (+1) moves: 0 where its end is reached, -1 a step before, and
    afterwards each move is right with probability `right` -> {(place, chunk): Q}."""
    places = np.arange(length)
    go = {-1: np.maximum(places - 1, 0), 1: places + 1}                        # the end is place `length`
    transition, reward = np.zeros((length, length)), np.zeros(length)
    for move, probability in ((1, right), (-1, 1 - right)):
        for place, after in zip(places, go[move]):
            reward[place] -= probability * (after < length)
            if after < length:
                transition[place, after] += probability
    value = np.append(np.linalg.solve(np.eye(length) - discount * transition, reward), 0.0)
    table = {}
    for place in places:
        for moves in itertools.product((-1, 1), repeat=chunk):
            at, total = place, 0.0
            for i, move in enumerate(moves):
                if at < length:
                    at = go[move][at]
                    total -= discount**i * (at < length)
            table[int(place), moves] = total + discount**chunk * value[at]
    return table


def critic(steps=3000, length=8, chunk=3, discount=0.95) -> None:
    """Values of chunks on a chain, learned with chunk_return, td_target and td_loss, beside the exact ones."""
    torch.manual_seed(0)
    exact = chain_values(length, chunk, discount)
    observe = lambda place: place[:, None] / length - 0.5  # noqa: E731
    q = Critic(1, chunk, (64, 64))
    target = Critic(1, chunk, (64, 64)).requires_grad_(False)
    target.load_state_dict(q.state_dict())

    def loss():
        place, moves = torch.randint(length, (256,)), 2.0 * torch.randint(2, (256, chunk)) - 1
        at, rewards, done = place, [], torch.zeros(256, dtype=torch.bool)
        for i in range(chunk):
            at = torch.where(done, at, (at + moves[:, i].long()).clamp(min=0))
            done = at >= length
            rewards.append(-(~done).float())                                   # 0 from the end on: nothing follows
        with torch.no_grad():
            follow = 2.0 * (torch.rand(256, chunk) < 0.7) - 1                  # a' of the policy
            y = td_target(chunk_return(torch.stack(rewards, 1), discount), (~done).float(),
                          target.value(observe(at), follow), discount, chunk)
        move_towards(target, q, 0.02)
        return td_loss(q(observe(place), moves), y, torch.ones(256))
    error = []
    places, chunks = (torch.tensor(column) for column in zip(*exact))
    true = torch.tensor(list(exact.values()))

    def watch(step):
        if step % 20 == 0 or step == steps:
            with torch.no_grad():
                found = q.value(observe(places), chunks.float())
            error.append((step, (found - true).abs().mean().item()))
            watch.found = found
    train(q, loss, steps, watch=watch)

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    left.plot(true, true, color="0.5", lw=1)
    points = left.scatter(true, watch.found, c=places, cmap="viridis", s=14)
    figure.colorbar(points, ax=left, label="place on the chain")
    left.set(xlabel="exact Q(s, chunk)", ylabel="learned", title=f"all {len(true)} pairs of place and chunk")
    for moves, color in (((1, 1, 1), GREEN), ((1, -1, 1), BLUE), ((-1, -1, -1), "#d62728")):
        which = [i for i, key in enumerate(exact) if key[1] == moves]
        middle.plot(true[which], color=color, lw=1, label=" ".join("→" if m > 0 else "←" for m in moves))
        middle.plot(watch.found[which], "o", color=color, ms=4)
    middle.set(xlabel="place (the goal is to the right)", ylabel="Q", title="lines: exact; dots: learned")
    middle.legend(fontsize=9)
    right.semilogy(*zip(*error), color=BLUE)
    right.set(xlabel="update", ylabel="mean |learned - exact|", title="on the way")
    save(figure, "critic.png")


# --------------------------------------------------------------------------------------------------- topk.py
def landscape(a):
    """A value over two-dimensional actions: a ridge with a best place on it."""
    return 1.5 * torch.exp(-((a[..., 0] - 0.7) ** 2 + (a[..., 1] - 0.4) ** 2) / 0.25) - 0.6 * (a[..., 1] - 0.6 * a[..., 0]) ** 2


def level_set_loss(x, negatives, rho, h):
    """L_drift towards pi_old = N(0, 1) restricted to its best share rho, where Q(a) = a (the limit in Proposition 1)."""
    u = 1 - rho + rho * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    return drift_field(x, torch.special.ndtri(u)[:, None], negatives, bandwidth=h).square().sum(-1).mean()


def topk(steps=600, draws=20) -> None:
    """What selection does: once, in two dimensions; again and again, in one, beside the exact improved policies; and how fast
    Proposition 1's limit comes."""
    torch.manual_seed(2)
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    line = torch.linspace(-1.6, 1.6, 81)
    grid = torch.cartesian_prod(line, line).reshape(81, 81, 2)
    left.contourf(line, line, landscape(grid).T, 18, cmap="Greys_r", alpha=0.5)
    candidates = 0.55 * torch.randn(1, 16, 2) - torch.tensor([0.1, 0.1])
    best = top_k_actions(candidates, landscape(candidates), 4)[0]
    generated = 0.45 * torch.randn(10, 2) - torch.tensor([0.25, 0.2])
    field = drift_field(generated, best, generated, bandwidth=0.5)
    left.scatter(*candidates[0].T, s=26, color="w", edgecolor="0.3", label=r"N = 16 candidates of $\pi_{old}$")
    left.scatter(*best.T, s=30, color=ORANGE, edgecolor="k", lw=0.5, label="the K = 4 best by Q: positives")
    left.scatter(*generated.T, s=26, color=BLUE, label=r"samples of $\pi_\theta$, and the drift V")
    left.quiver(*generated.T, *field.T, color=BLUE, angles="xy", scale_units="xy", scale=1.6, width=0.006)
    square(left, title="one step of L_topK over a landscape of Q")
    left.legend(fontsize=8, loc="lower left")

    # One dimension: pi_old has two modes, Q prefers the right one and there the right side.
    old = lambda n: 0.7 * (2.0 * torch.randint(2, (1, n, 1)) - 1) + 0.25 * torch.randn(1, n, 1)  # noqa: E731
    a, alpha, rho = torch.linspace(-2, 2, 801), 0.5, 0.25
    density = sum(torch.exp(-((a - m) ** 2) / (2 * 0.25**2)) for m in (-0.7, 0.7)) / (2 * 0.25 * (2 * torch.pi) ** 0.5)
    tilted = density * (a / alpha).exp()                                       # pi+ of Eq. 11, Q(a) = a
    tilted /= torch.trapezoid(tilted, a)
    order = torch.cumsum(density.flip(0), 0).flip(0) * (a[1] - a[0])           # share of pi_old that is better than a
    actor = Actor(0, 1, (64,) * 3)

    def improve():
        pool = old(1024)
        positives = top_k_actions(pool, pool[..., 0], 256)
        return drift_loss(actor(state(256), torch.randn(256, 1))[None], positives, temperatures=(0.1, 0.5, 2.0))[0].mean()
    train(actor, improve, steps)
    with torch.no_grad():
        samples = actor(state(20_000), torch.randn(20_000, 1))[:, 0]
    middle.plot(a, density, color="0.5", label=r"$\pi_{old}$")
    middle.plot(a, tilted, color=GREEN, label=rf"$\pi^+ \propto \pi_{{old}}\,e^{{Q/\alpha}}$, $\alpha$ = {alpha}")
    middle.plot(a, torch.where(order <= rho, density / rho, 0.0), color=ORANGE, label=r"$\pi_{old}$ on its best quarter (Eq. 17)")
    middle.hist(samples.tolist(), torch.linspace(-2, 2, 90).tolist(), density=True, color=BLUE, alpha=0.35, label=r"$\pi_\theta$ trained by L_topK")
    middle.set(xlabel="action; Q(a) = a", title="policy improvement: K/N = 1/4")
    middle.legend(fontsize=8, loc="upper left")

    x, negatives, h = torch.randn(64, 1, dtype=torch.float64), torch.randn(64, 1, dtype=torch.float64), 0.3
    for rho, color in ((0.5, GREEN), (0.25, BLUE), (0.125, ORANGE)):
        limit, sizes, errors = level_set_loss(x, negatives, rho, h), 2 ** np.arange(3, 13), []
        for n in sizes:
            pool = torch.randn(draws, int(n), 1, dtype=torch.float64)
            kept = top_k_actions(pool, pool[..., 0], int(rho * n))
            found = drift_field(x.expand(draws, -1, -1), kept, negatives.expand(draws, -1, -1), bandwidth=h).square().sum(-1).mean(-1)
            errors.append((found - limit).abs().mean().item())
        right.loglog(sizes, errors, "o-", ms=4, color=color, label=f"K/N = {rho:g}")
    right.loglog(sizes, errors[0] * (sizes[0] / sizes) ** 0.5, ":", color="0.5", label=r"$\propto N^{-1/2}$")
    right.set(xlabel="N candidates", ylabel="|L_topK - its limit|", title=f"Proposition 1, mean over {draws} draws")
    right.legend(fontsize=8)
    save(figure, "topk.png")


if __name__ == "__main__":
    from tools import bandit
    for draw in (drift, policy, critic, topk, bandit.draw):
        draw()
