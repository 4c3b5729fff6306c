"""MVP: a one-step policy that learns the mean velocity of a flow, and its variant with DFP's top-K positives.

As in flow.py, straight paths join data and noise. Time runs the other way: t = 0 is the action a, t = 1 the noise eps.

    z_t = (1 - t) a + t eps,   velocity eps - a                                            one such path

MeanFlow (Geng et al., arXiv 2505.13447). flow.py learns the velocity v(z, t) of a point. It changes on the way, so an
action takes many small steps. MeanFlow learns the *mean* velocity u between two times r < t. It takes a point from t to
r in one step, also from noise to action:

    z_r = z_t - (t - r) u(z_t, r, t),       a = clip(eps - u(eps, 0, 1))

How to learn u. The stretch (t - r) u is the integral of the velocities on the way from r to t. As t grows, it grows at
the rate of the velocity at its end, v(z_t, t). By the product rule this rate is u + (t - r) du/dt. So

    u = v(z_t, t) - (t - r) du/dt                                                          MeanFlow identity

The right side, taken without a gradient (sg), is the regression target for the left side. Two things in it need a word:

  - du/dt follows the moving point: z changes with velocity v, t with velocity 1, and r stands still. So it is
    v ∂u/∂z + ∂u/∂t, the derivative of the network in the direction (v, 0, 1) of its inputs (z, r, t). Forward-mode
    differentiation, a JVP, gives it in one pass.
  - v(z_t, t) = E[eps - a | z_t], over all paths through z_t, is unknown. The sampled path's eps - a takes its place,
    also in du/dt. On average this is right: a regression learns E[target | z_t], and the target is linear in eps - a:

        E[target | z_t] = v - (t - r) (v ∂u/∂z + ∂u/∂t)   with v = v(z_t, t)

    L_MF = E || u(z_t, r, t) - sg((eps - a) - (t - r) du/dt) ||^2

MVP (Zhan et al., arXiv 2602.13810). At r = t the identity says u = v, which all longer stretches build on. Two random
times are never equal. MeanFlow sets r = t for a share of its samples. MVP has a loss of its own for that case, the
instantaneous velocity constraint (IVC):

    L_IVC = E || u(y, r, r) - (eps - a) ||^2,   y = (1 - r) a + r eps,       L_BC = L_MF + w L_IVC

MVP       L_BC on the data, and the critic chooses: the best of N' samples acts and bootstraps.
MVPTopK   the ablation of Table 2: online, DFP's positives P_K(s) (Eq. 15) are regression targets too.

    python -m tools.pictures meanflow        instantaneous and mean velocity of a flow in one dimension

Axes: B states, n targets a state, N candidates, K positives, D = H*A the flat chunk, O observation; ... leading axes.
"""
from functools import partial

import torch
from torch import Tensor, nn

from dfp import DFP
from policy import MLP


def total_derivative(u, z: Tensor, r: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """du/dt along a path of velocity v, r fixed: the JVP of u(z, r, t) in direction (v, 0, 1). It carries no gradient.

    u maps z [..., D], r and t [..., 1] to [..., D]; v [..., D] -> [..., D]. Do not pass a compiled module as u, as it
    can lose the derivative in silence. Compile the function that calls this one.
    """
    def at(z, t):                                    # r stays fixed
        return u(z, r, t)
    with torch.no_grad():                            # the result is part of a target; the JVP itself is forward mode
        return torch.func.jvp(at, (z, t), (v, torch.ones_like(t)))[1]


def mean_flow_errors(u, action: Tensor, noise: Tensor, r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Squared errors of L_MF and L_IVC by coordinate: action, noise [..., D], r <= t [..., 1] -> two [..., D]."""
    v = noise - action                                                                   # of the sampled path
    z_t, y = (1 - t) * action + t * noise, (1 - r) * action + r * noise
    target = v - (t - r) * total_derivative(u, z_t, r, t, v)                             # the identity, sg(.)
    return (u(z_t, r, t) - target).square(), (u(y, r, r) - v).square()


def two_times(normal: Tensor, mean: float, std: float) -> tuple[Tensor, Tensor]:
    """(r, t), r <= t: two logit-normal draws in order, from standard normals [..., 2] -> [..., 1] each.

    The bounds 1e-6 (as released) keep both inside (0, 1) whatever mean and std are."""
    times = torch.sigmoid(mean + std * normal).clamp(1e-6, 1 - 1e-6)
    return times.amin(-1, keepdim=True), times.amax(-1, keepdim=True)


class MeanFlowActor(nn.Module):
    """eps -> a = eps - u(eps, 0, 1) in one pass: (obs [..., O], noise [..., D]) -> chunk [..., D], not clipped."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...]):
        super().__init__()
        self.mlp = MLP(obs_dim + chunk_dim + 2, hidden, chunk_dim)

    def mean_velocity(self, obs: Tensor, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """u(s, z, r, t): [..., O], [..., D], [..., 1] twice -> [..., D]."""
        return self.mlp(torch.cat([obs, z, r, t], dim=-1))

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        zero = torch.zeros_like(noise[..., :1])
        return noise - self.mean_velocity(obs, noise, zero, zero + 1)


class MVP(DFP):
    """The plain mean velocity policy, in both stages. See dfp.DFP for the interface.

    noise of update(): {"next": [B, N', D], "path": [B, 1, D], "times": [B, 1, 2]}, all standard normal.
    """

    def make_actor(self, obs_dim, chunk_dim, hidden):
        return MeanFlowActor(obs_dim, chunk_dim, hidden)

    def start_online(self) -> None:
        """Nothing changes: the actor keeps imitating a buffer that now holds what the critic chose. No pi_old."""

    def actor_loss(self, batch, noise):
        data, mask = batch["actions"].flatten(1)[:, None], self.bc_mask(batch)[:, None]             # [B, 1, D]
        mf, ivc = self.errors(batch, data, noise["path"], noise["times"])                           # [B, 1, D]
        mf_loss, ivc_loss = (mask * mf).mean(), (mask * ivc).mean()
        loss = self.config.bc_weight * (mf_loss + self.config.ivc_weight * ivc_loss)
        return loss, {"mf_loss": mf_loss, "ivc_loss": ivc_loss, "actor_loss": loss}

    def errors(self, batch, targets, noise, times):
        """mean_flow_errors() of each state: targets and noise [B, n, D], normals for the times [B, n, 2]."""
        obs = batch["observations"][:, None].expand(-1, targets.shape[1], -1)                       # [B, n, O]
        r, t = two_times(times, self.config.time_mean, self.config.time_std)                        # [B, n, 1]
        return mean_flow_errors(partial(self.actor.mean_velocity, obs), targets, noise, r, t)

    def draw_noise(self, batch_size):
        return {"next": self.normal(batch_size, self.config.best_of),
                "path": self.normal(batch_size, 1), "times": self.normal(batch_size, 1, 2)}


class MVPTopK(MVP):
    """MVP + L_topK: L_BC + lambda * mean over the K positives of the same loss, each with noise and times of its own.

    noise of update(): MVP's; online also {"candidates": [B, N, D], "topk_path": [B, K, D], "topk_times": [B, K, 2]}.
    """
    start_online = DFP.start_online                  # pi_old, the proposer, starts as a copy of the policy

    def actor_loss(self, batch, noise):
        loss, info = super().actor_loss(batch, noise)
        if self.improving and self.config.topk_weight:
            positives = self.positives(batch["observations"], noise["candidates"])                  # [B, K, D], Eq. 15
            mf, ivc = self.errors(batch, positives, noise["topk_path"], noise["topk_times"])
            topk_loss = (mf + self.config.ivc_weight * ivc).mean()
            loss = loss + self.config.topk_weight * topk_loss
            info |= {"topk_loss": topk_loss, "actor_loss": loss}
        return loss, info

    def draw_noise(self, batch_size):
        noise, c = super().draw_noise(batch_size), self.config
        if self.improving:
            noise |= {"candidates": self.normal(batch_size, c.num_candidates),
                      "topk_path": self.normal(batch_size, c.top_k), "topk_times": self.normal(batch_size, c.top_k, 2)}
        return noise
