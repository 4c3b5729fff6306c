"""The pictures of drift.py, policy.py, critic.py and topk.py: the functions that train policies, on toy problems."""
import functools
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
from matplotlib.animation import FuncAnimation, PillowWriter  # noqa: E402

FOLDER = Path(__file__).resolve().parents[2] / "figures"
GREY, BLUE, ORANGE, GREEN, RED = "0.75", "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728"
CORNERS = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])


def train(network, loss, steps=1200, watch=lambda step: None) -> list[float]:
    """Adam on loss() with a decaying step -> its values. watch(step) is called before every step and after the last."""
    adam, values = torch.optim.Adam(network.parameters(), 2e-3), []
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.02, steps)
    for step in range(steps):
        watch(step)
        adam.zero_grad()
        value = loss()
        value.backward()
        adam.step()
        decay.step()
        values.append(value.item())
    watch(steps)
    return values


def save(figure, name):
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / name, dpi=100)
    plt.close(figure)
    print(FOLDER / name)


def square(ax, limit=1.6, title=""):
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    ax.set_title(title, fontsize=9)


def state(n):
    """n times the one state there is; nothing is observed."""
    return torch.zeros(n, 0)


def four_modes(n, at=0.8, spread=0.07, generator=None):
    corners = CORNERS[torch.randint(4, (n,), generator=generator)]
    return at * corners + spread * torch.randn(n, 2, generator=generator)


def drift_towards(data, temperatures, batch=256):
    """A fresh two-dimensional policy, and the loss that drifts its samples to data(n)."""
    actor = Actor(0, 2, (128,) * 3)
    return actor, lambda: drift_loss(actor(state(batch), torch.randn(batch, 2))[None], data(batch)[None],
                                     temperatures=temperatures)[0].mean()


def drift(steps=1200) -> None:
    """drift.png, drift.gif: the field V = V+ - V- on its way to zero. Then temperatures.png."""
    torch.manual_seed(0)
    actor, loss = drift_towards(four_modes, (0.1, 0.5, 2.0))
    noise, target = torch.randn(300, 2), four_modes(600)
    line = torch.linspace(-1.5, 1.5, 17)
    grid, frames = torch.cartesian_prod(line, line), {}
    shown = sorted({round(steps * (i / 40) ** 2) for i in range(41)})           # densest where most happens

    def watch(step):
        if step in shown:
            with torch.no_grad():
                x = actor(state(300), noise)
                frames[step] = [x, *(drift_field(points, target, x, bandwidth=0.25) for points in (grid, x))]
    train(actor, loss, steps, watch)

    def panel(ax, step):
        x, field, own = frames[step]
        ax.clear()
        ax.scatter(*target.T, s=4, color=GREY, lw=0)
        ax.quiver(*grid.T, *field.T, color="0.45", angles="xy", scale_units="xy", scale=6, width=0.003)
        ax.scatter(*x.T, s=6, color=BLUE, lw=0)
        square(ax, title=f"step {step:,}: mean |V| at the samples {own.norm(dim=1).mean():.2f}")

    figure, axes = plt.subplots(1, 5, figsize=(15, 3.3), layout="constrained")
    for ax, i in zip(axes, np.linspace(0, len(shown) - 1, 5)):
        panel(ax, shown[round(i)])
    save(figure, "drift.png")
    figure, ax = plt.subplots(figsize=(3.6, 3.8), layout="constrained")
    film = FuncAnimation(figure, lambda step: panel(ax, step), shown)
    film.save(FOLDER / "drift.gif", PillowWriter(fps=8), dpi=70)
    temperatures(steps)


def temperatures(steps=1200) -> None:
    """temperatures.png: with small ones alone, far from the data, all collapses onto the mean. The spread tells."""
    far = functools.partial(four_modes, at=1.6, spread=0.14)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.3), layout="constrained")
    for ax, widths, color in zip(axes, ((0.1,), (0.1, 0.5), (0.1, 0.5, 2.0)), (RED, BLUE, GREEN)):
        torch.manual_seed(0)
        actor, loss = drift_towards(far, widths)
        actor.mlp.linears[-1].weight.data.mul_(0.1)                             # starts narrow, at the origin
        noise = torch.randn(300, 2)
        values = train(actor, loss, steps)
        samples = actor(state(300), noise).detach()
        ax.scatter(*far(600).T, s=4, color=GREY, lw=0)
        ax.scatter(*samples.T, s=6, color=color, lw=0)
        label = ", ".join(f"{width:g}" for width in widths)
        square(ax, 3, f"R = {label}: loss {np.mean(values[-50:]):.2f}, spread {samples.std(0).mean():.2f}")
    save(figure, "temperatures.png")


def policy(steps=1200) -> None:
    """policy.png: one pass from noise to action, and which noise means which way to act."""
    torch.manual_seed(0)
    angle = torch.arange(5) * 2 * torch.pi / 5
    modes = torch.stack([angle.sin(), angle.cos()], 1)
    actor, loss = drift_towards(lambda n: modes[torch.randint(5, (n,))] + 0.06 * torch.randn(n, 2), (0.1, 0.5, 2.0))
    train(actor, loss, steps)
    noise = torch.randn(3000, 2)
    actions = actor(state(3000), noise).detach()
    distance, mode = torch.cdist(actions, modes).min(1)
    titles = (r"noise $\epsilon \sim N(0, I)$, coloured by the mode it becomes",
              rf"actions $f_\theta(\epsilon)$, one pass: {(distance < 0.18).float().mean():.0%} within 3 std of a mode")
    figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.8), layout="constrained")
    for ax, points, limit, title in zip(axes, (noise, actions), (3.3, 1.5), titles):
        ax.scatter(*points.T, s=4, c=mode, cmap="Set1", vmin=0, vmax=8, lw=0)
        square(ax, limit, title)
    save(figure, "policy.png")


def chain_values(length, chunk, discount, right=0.7):
    """Exact Q of every chunk of a chain's left (-1) and right (+1) moves: -1 for each step before its end is reached.
    After the chunk each move is right with probability `right` -> {(place, chunk): Q}."""
    places, value, table = np.arange(length), np.zeros(length + 1), {}          # place `length` is the end, for ever
    go = {-1: np.append(np.maximum(places - 1, 0), length), 1: np.append(places + 1, length)}

    def q(move, following):
        return discount * following[go[move]] - (go[move] < length)
    for _ in range(2000):                                                       # Bellman's equation, to convergence
        value = right * q(1, value) + (1 - right) * q(-1, value)
    for moves in itertools.product((-1, 1), repeat=chunk):
        table[moves] = value
        for move in reversed(moves):
            table[moves] = q(move, table[moves])
    return {(place, moves): values[place] for place in range(length) for moves, values in table.items()}


def critic(steps=3000, length=8, chunk=3, discount=0.95) -> None:
    """critic.png: values of chunks on a chain, learned with chunk_return, td_target and td_loss, beside exact ones."""
    torch.manual_seed(0)
    exact, places = chain_values(length, chunk, discount), torch.arange(length)
    q, target = Critic(1, chunk, (64, 64)), Critic(1, chunk, (64, 64)).requires_grad_(False)
    target.load_state_dict(q.state_dict())

    def observe(place):
        return place[:, None] / length - 0.5

    def loss():
        place, moves = torch.randint(length, (256,)), 2.0 * torch.randint(2, (256, chunk)) - 1
        at, rewards, done = place, [], torch.zeros(256, dtype=torch.bool)
        for i in range(chunk):
            at = torch.where(done, at, (at + moves[:, i].long()).clamp(min=0))
            done = at >= length
            rewards.append(-(~done).float())                                    # 0 from the end on: nothing follows
        with torch.no_grad():
            follow = 2.0 * (torch.rand(256, chunk) < 0.7) - 1                   # a' of the policy
            y = td_target(chunk_return(torch.stack(rewards, 1), discount), (~done).float(),
                          target.value(observe(at), follow), discount, chunk)
        move_towards(target, q, 0.02)
        return td_loss(q(observe(place), moves), y, torch.ones(256))
    train(q, loss, steps)
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for i, moves in enumerate(itertools.product((-1, 1), repeat=chunk)):
        learned = q.value(observe(places), torch.tensor(moves).float().expand(length, -1)).detach()
        ax.plot([exact[place, moves] for place in range(length)], color=f"C{i}", lw=1,
                label=" ".join("→" if move > 0 else "←" for move in moves))
        ax.plot(learned, "o", color=f"C{i}", ms=4)
    ax.set(xlabel="place (the goal is to the right)", ylabel="Q(s, chunk)", title="lines: exact; dots: learned")
    ax.legend(fontsize=8)
    save(figure, "critic.png")


def landscape(a):
    """A value over two-dimensional actions: a ridge with a best place on it."""
    hill = 1.5 * torch.exp(-((a[..., 0] - 0.7) ** 2 + (a[..., 1] - 0.4) ** 2) / 0.25)
    return hill - 0.6 * (a[..., 1] - 0.6 * a[..., 0]) ** 2


def topk(steps=600) -> None:
    """topk.png: selection once, in two dimensions; and again and again, in one, beside the exact improved policies."""
    torch.manual_seed(2)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    line = torch.linspace(-1.6, 1.6, 81)
    height = landscape(torch.cartesian_prod(line, line)).reshape(81, 81)
    left.contourf(line, line, height.T, 18, cmap="Greys_r", alpha=0.5)
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

    # One dimension: pi_old has two modes, Q(a) = a prefers the right one and there the right side.
    actor = Actor(0, 1, (64,) * 3)

    def loss():
        pool = 0.7 * (2.0 * torch.randint(2, (1, 1024, 1)) - 1) + 0.25 * torch.randn(1, 1024, 1)
        best = top_k_actions(pool, pool[..., 0], 256)
        return drift_loss(actor(state(256), torch.randn(256, 1))[None], best, temperatures=(0.1, 0.5, 2.0))[0].mean()
    train(actor, loss, steps)
    samples = actor(state(20_000), torch.randn(20_000, 1))[:, 0]
    a = torch.linspace(-2, 2, 801)
    old = sum(torch.exp(-((a - m) ** 2) / (2 * 0.25**2)) for m in (-0.7, 0.7)) / (2 * 0.25 * (2 * torch.pi) ** 0.5)
    tilted = old * (a / 0.5).exp()                                              # pi+ of Eq. 11
    tilted /= torch.trapezoid(tilted, a)
    quarter = torch.cumsum(old.flip(0), 0).flip(0) * (a[1] - a[0]) <= 0.25      # at most so much of pi_old is better
    right.plot(a, old, color="0.5", label=r"$\pi_{old}$")
    right.plot(a, tilted, color=GREEN, label=r"$\pi^+ \propto \pi_{old}\,e^{Q/\alpha}$, $\alpha$ = 0.5")
    right.plot(a, quarter * old / 0.25, color=ORANGE, label=r"$\pi_{old}$ on its best quarter (Eq. 17)")
    right.hist(samples.tolist(), torch.linspace(-2, 2, 90).tolist(), density=True, color=BLUE, alpha=0.35,
               label=r"$\pi_\theta$ trained by L_topK")
    right.set(xlabel="action; Q(a) = a", title="policy improvement: K/N = 1/4")
    right.legend(fontsize=8, loc="upper left")
    save(figure, "topk.png")
