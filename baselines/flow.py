"""The flow baselines: a policy of many steps (BFN, QC-BFN), and one distilled from it to a single step (FQL, QC-FQL).

Flow matching (Lipman et al., arXiv 2210.02747) learns behaviour as a velocity field on straight paths, noise to data:

    x_t = (1 - t) eps + t a,   L_flow = E || v(s, x_t, t) - (a - eps) ||^2,   t ~ U(0, 1)

Many paths cross in one point, and v learns their mean. So curves that follow v bend, and an action takes several steps:

    x_0 = eps,   x_{i+1} = x_i + v(s, x_i, i/n) / n,   a = clip(x_n) = clip(flow_n(s, eps))       n = 10 Euler steps

BFN  behaviour alone, and the critic chooses: the best of N' samples acts and bootstraps, as in DFP.
FQL  (Park, Li, Levine, arXiv 2502.02538) lets Q shape a one-step student mu beside that teacher:

    L = L_flow + alpha E || mu(s, eps) - sg clip(flow_n(s, eps)) ||^2 - E[Q(s, clip mu(s, eps))]

In code each ||.||^2 is a mean over the D coordinates, as released; alpha is meant for that.
BFN and FQL make single actions, H = 1. QC-BFN and QC-FQL are the same with chunks of H = 5. DFP needs no Euler steps,
no second trained policy, no gradient of Q, and no alpha, which spans 100 to 10,000 over the tasks; it has h, K and
lambda. In code BFN and FQL are dfp.DFP with another map from noise to action and another actor loss; the rest is
inherited.

    python -m tools.pictures flow        noise carried to four modes in 1 to 10 steps, or one pass of a drift policy

Axes: B states, O observation, H chunk, A action, D = H*A the flat chunk; ... any leading axes. Times are [..., 1].
"""
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dfp import DFP
from policy import MLP, Actor


def flow_loss(velocity, action: Tensor, noise: Tensor, time: Tensor, mask: Tensor | float = 1.0) -> Tensor:
    """L_flow: velocity(x [..., D], time [..., 1]) -> [..., D]; action, noise [..., D], time [..., 1] in [0, 1] -> [].

    mask [..., D] of 0/1 leaves coordinates out; they still count in the mean (as released).
    """
    x = (1 - time) * noise + time * action                                                          # [..., D]
    return (mask * (velocity(x, time) - (action - noise)).square()).mean()


def euler(velocity, noise: Tensor, steps: int) -> Tensor:
    """The end at t = 1 of dx/dt = velocity(x, t) from noise [..., D], in equal steps. Not clipped: a bend may leave the
    bounds and come back. Raises ValueError without a step."""
    if steps < 1:
        raise ValueError(f"Euler's method needs at least one step, got {steps}")
    x = noise
    for i in range(steps):
        x = x + velocity(x, torch.full_like(x[..., :1], i / steps)) / steps
    return x


class FlowActor(nn.Module):
    """eps -> a by integrating a learned velocity: (obs [..., O], noise [..., D]) -> chunk [..., D], not clipped."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], steps: int):
        super().__init__()
        self.mlp, self.steps = MLP(obs_dim + chunk_dim + 1, hidden, chunk_dim), steps

    def velocity(self, obs: Tensor, x: Tensor, time: Tensor) -> Tensor:
        """v(s, x, t): [..., O], [..., D], [..., 1] -> [..., D]."""
        return self.mlp(torch.cat([obs, x, time], dim=-1))

    def integrate(self, obs: Tensor, noise: Tensor) -> Tensor:
        return euler(partial(self.velocity, obs), noise, self.steps)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.integrate(obs, noise)


class DistilledActor(FlowActor):
    """The inherited flow only teaches; a one-pass student acts: (obs [..., O], noise [..., D]) -> [..., D]."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...], steps: int):
        super().__init__(obs_dim, chunk_dim, hidden, steps)
        self.student = Actor(obs_dim, chunk_dim, hidden)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.student(obs, noise)


class BFN(DFP):
    """BFN, QC-BFN: flow matching on the data, best of N' by the critic. See dfp.DFP for the interface.

    noise of update(): {"next": [B, N', D], "path": [B, D], "time": [B, 1] in [0, 1]}.
    """

    def make_actor(self, obs_dim, chunk_dim, hidden):
        return FlowActor(obs_dim, chunk_dim, hidden, self.config.flow_steps)

    def start_online(self) -> None:
        """Nothing changes: the actor keeps imitating a buffer that now holds what the critic chose. No pi_old."""

    def actor_loss(self, batch, noise):
        velocity = partial(self.actor.velocity, batch["observations"])
        loss = flow_loss(velocity, batch["actions"].flatten(1), noise["path"], noise["time"], self.bc_mask(batch))
        return loss, {"flow_loss": loss, "actor_loss": loss}

    def draw_noise(self, batch_size):
        time = torch.rand(batch_size, 1, generator=self.generator, device=self.device)
        return {"next": self.normal(batch_size, self.config.best_of), "path": self.normal(batch_size, 1)[:, 0],
                "time": time}


class FQL(BFN):
    """FQL, QC-FQL: BFN's flow as teacher of a one-step student that also climbs Q. One sample acts and bootstraps.

    noise of update(): BFN's and "student" [B, D].
    """

    def make_actor(self, obs_dim, chunk_dim, hidden):
        return DistilledActor(obs_dim, chunk_dim, hidden, self.config.flow_steps)

    def actor_loss(self, batch, noise):
        obs, eps = batch["observations"], noise["student"]
        loss, info = super().actor_loss(batch, noise)                                    # the teacher's own
        student = self.actor(obs, eps)                                                              # [B, D]

        # Distillation noise by noise: the student repeats where the flow carries this eps, in one pass. Its output is
        # compared before clipping, so that a coordinate outside the bounds is pulled back. Q sees it clipped.
        with torch.no_grad():
            teacher = self.actor.integrate(obs, eps).clamp(-1, 1)                                   # [B, D]
        distill_loss = (student - teacher).square().mean()

        # -Q with the critic's parameters as constants: the gradient reaches the action and not the critic, which would
        # otherwise learn to flatter the student. Always the ensemble's mean, as released.
        constants = {name: parameter.detach() for name, parameter in self.critic.named_parameters()}
        q_loss = -functional_call(self.critic, constants, (obs, student.clamp(-1, 1))).mean()

        loss = loss + self.config.distill_weight * distill_loss + q_loss
        return loss, info | {"distill_loss": distill_loss, "q_loss": q_loss, "actor_loss": loss}

    def draw_noise(self, batch_size):
        return super().draw_noise(batch_size) | {"student": self.normal(batch_size, 1)[:, 0]}
