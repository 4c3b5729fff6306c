"""What bf16 candidates change of a trained run: which K of N it picks, and the values it bootstraps from, beside fp32's.

    python -m tools.ranking runs/square/dfp/generated/quick/seed0

In states of its own online transitions. bf16 keeps 8 bits: candidates whose values lie closer than its error may
change places. overlap is the share of fp32's K that bf16 picks too; lost is what that costs, in fp32's Q, as a share of what picking
gains over the mean of all N; value is the mean difference of Q_target(s, best of N') as a share of its mean size.
"""
import argparse

import numpy as np
import torch

import run
from config import UserError
from policy import sample
from tools import command_line


@torch.no_grad()
def compare(policy, obs: torch.Tensor, generator: torch.Generator) -> dict[str, float]:
    """policy: a dfp.DFP, left in fp32; obs [n, O] -> the numbers above, Q's mean, and its spread within a state."""
    c = policy.config
    noise, next_noise = (torch.randn(len(obs), n, policy.chunk_dim, generator=generator) for n in (c.num_candidates, c.best_of))
    scores, values = [], []
    for policy.bf16 in (True, False):
        with policy.candidate_precision():
            scores.append(policy.critic.value(obs, sample(policy.actor_old, obs, noise)))           # [n, N]
        values.append(policy.critic_target.value(obs, policy.choose(obs, next_noise)))              # [n]
    picked, exact = (q.topk(c.top_k, dim=1).indices for q in scores)                                # [n, K]
    q = scores[1]
    best, mine = (q.gather(1, index).mean() for index in (exact, picked))
    return dict(overlap=(picked[:, :, None] == exact[:, None]).float().sum().item() / exact.numel(),
                lost=((best - mine) / (best - q.mean())).item(), value=((values[0] - values[1]).abs().mean() / values[1].abs().mean()).item(),
                q=q.mean().item(), spread=q.std(dim=1).mean().item())


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", help="folders of runs of DFP that have been online")
    parser.add_argument("--states", type=int, default=2000)
    args = parser.parse_args()
    for folder in args.runs:
        policy = run.load(folder)
        if policy.stage != "online" or policy.config.method not in ("dfp", "dfp-no-topk"):
            raise UserError(f"{folder} is no run of DFP that has been online")
        obs_dim, count = policy.actor.mlp.linears[0].in_features - policy.chunk_dim, policy.step - policy.config.offline_steps
        width = 2 * obs_dim + policy.action_dim + 3
        rows = np.fromfile(f"{folder}/online.f32", np.float32, count * width) if count else []     # the file may hold more
        if not count or len(rows) < count * width:
            raise UserError(f"{folder} has no online transitions, or not all of them")
        obs = torch.from_numpy(rows.reshape(count, width)[:, :obs_dim].copy())
        generator = torch.Generator().manual_seed(0)
        found = compare(policy, obs[torch.randperm(len(obs), generator=generator)[: args.states]], generator)
        print(f"{folder}: " + ", ".join(f"{name} {value:.3g}" for name, value in found.items()))


if __name__ == "__main__":
    command_line.main(main)
