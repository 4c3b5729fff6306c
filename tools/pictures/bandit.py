"""The picture of dfp.py: Algorithm 1 from end to end on a bandit whose best action is known, beside MVP and FQL.

After stage 1 each method has the four corners of the demonstrations; the best action lies beside one. In stage 2 DFP's
K best proposals pull the samples themselves, also to where nobody was. MVP+top-K makes the same K targets of a
velocity, of which the one pass uses only one value. MVP imitates what was done. FQL climbs the slope of Q, each sample
to the top of its own corner's hill.
"""
import torch

from buffer import ReplayBuffer
from config import Config
from run import algorithm
from tools.pictures.concepts import BLUE, ORANGE, four_modes, plt, save, square

PEAKS = torch.tensor([[0.8, 0.3], [0.55, -0.55], [-0.55, 0.55], [-0.55, -0.55]])
HEIGHTS = torch.tensor([1.0, 0.5, 0.5, 0.5])

# Not the paper's: single actions, a small network, batch and N', a large lr; temperatures as wide as distances are;
# a faster pi_old, for a thousand steps and not a million; FQL's alpha, the best of 1, 3 and 10 here.
COMMON = dict(hidden=64, layers=3, batch_size=128, lr=3e-3, chunk=1, compile=False, precision="fp32")
TOPK = dict(best_of=4, num_candidates=16, top_k=4, topk_weight=0.5, ema_rate=5e-3)
METHODS = {"DFP": TOPK | dict(method="dfp", temperatures=(0.1, 0.5)), "MVP+top-K": TOPK | dict(method="mvp-topk"),
           "MVP": dict(method="mvp", best_of=4), "FQL": dict(method="fql", best_of=1, distill_weight=3.0)}


def reward(a: torch.Tensor) -> torch.Tensor:
    """Four hills, the highest of height 1 at PEAKS[0]: actions [..., 2] -> [...]."""
    return (HEIGHTS * torch.exp(-(a[..., None, :] - PEAKS).square().sum(-1) / (2 * 0.25**2))).amax(-1)


def seen(a: torch.Tensor, generator) -> torch.Tensor:
    """What a pull of the arm pays: the reward and noise."""
    return reward(a) + 0.1 * torch.randn(a.shape[:-1], generator=generator)


def train(knobs: dict, offline=600, online=900, seed=0):
    """Both stages -> the samples [2000, 2] after either stage."""
    generator, config, n = torch.Generator().manual_seed(seed), Config(**COMMON, **knobs, seed=seed), 1000
    data = four_modes(n, 0.55, 0.1, generator).clamp(-1, 1)
    nothing, zeros, ones = torch.zeros(n, 0), torch.zeros(n), torch.ones(n)        # there is nothing to observe
    buffer = ReplayBuffer(dict(observations=nothing, actions=data, rewards=seen(data, generator), masks=zeros,
                               terminals=ones, next_observations=nothing), online, 1, config.discount)
    algo = algorithm(config, 0, 2, "cpu")

    def samples():
        return algo.act(torch.zeros(2000, 0), torch.Generator().manual_seed(1), best_of=1)[:, 0]
    for step in range(offline + online):
        if step == offline:
            algo.start_online()
            before = samples()
        if step >= offline:
            action = algo.act(nothing[:1], generator)[0, 0]                        # the best of N' by the critic
            buffer.add(nothing[0], action, seen(action, generator), True, False, nothing[0])
        algo.update(buffer.chunks(buffer.starts(config.batch_size, generator)))
    return before, samples()


def draw(offline=600, online=900) -> None:
    """dfp.png, in under a minute on a laptop."""
    results = {name: train(knobs, offline, online) for name, knobs in METHODS.items()}
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.7), layout="constrained")
    line = torch.linspace(-1, 1, 101)
    height = reward(torch.cartesian_prod(line, line)).reshape(101, 101)
    for ax, (name, (before, after)) in zip(axes, results.items()):
        first, then = (reward(samples).mean() for samples in (before, after))
        ax.contourf(line, line, height.T, 12, cmap="Greys", alpha=0.6)
        ax.scatter(*before[:400].T, s=5, color=BLUE, lw=0, label="after stage 1")
        ax.scatter(*after[:400].T, s=5, color=ORANGE, lw=0, label="after stage 2")
        ax.plot(*PEAKS[0], "*", color="w", mec="k", ms=11)
        square(ax, 1.02, f"{name}: one sample earns\n{first:.2f}, then {then:.2f} (best: 1)")
    axes[0].legend(fontsize=7, loc="lower left", markerscale=2)
    save(figure, "dfp.png")
