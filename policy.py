"""The policy: one forward pass from noise to action, a = f_theta(eps, s) with eps ~ N(0, I)  (Eq. 9).

The action distribution is whatever the network makes of the noise: pi_theta(.|s) = [f_theta(., s)]# N(0, I), the
pushforward. No time input, no steps, no likelihood. The noise has the dimension of what is generated, here of a whole
chunk of H actions, so two noises can mean two different ways to do the task.

Table 5: MLP 4 x 512, GELU, no LayerNorm. From the released code: input [s || eps], nothing squashes the output
(samples are clipped to [-1, 1] where they are used), tanh-form GELU, Xavier-uniform weights, zero biases.

Axes: ... any leading axes, O observation, H chunk, A action, D = H*A the flat chunk (time-major: index h*A + a).
"""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Linear -> GELU for each hidden layer, then one Linear. [..., in_dim] -> [..., out_dim]."""

    def __init__(self, in_dim: int, hidden: tuple[int, ...], out_dim: int):
        super().__init__()
        sizes = (in_dim, *hidden, out_dim)
        self.linears = nn.ModuleList(nn.Linear(i, o) for i, o in zip(sizes, sizes[1:]))
        for linear in self.linears:
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears[:-1]:
            x = gelu(linear(x))
        # The last layer runs in float32, so that actions keep their precision where the hidden layers run in bf16
        # (DFP.candidate_precision).
        with torch.autocast(x.device.type, enabled=False):
            return self.linears[-1](x.to(self.linears[-1].weight.dtype))


class Actor(nn.Module):
    """f_theta(eps, s): (obs [..., O], noise [..., D]) -> action chunk [..., D], not clipped."""

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...] = (512,) * 4):
        super().__init__()
        self.mlp = MLP(obs_dim + chunk_dim, hidden, chunk_dim)

    def forward(self, obs: Tensor, noise: Tensor) -> Tensor:
        return self.mlp(torch.cat([obs, noise], dim=-1))


def sample(actor: Actor, obs: Tensor, noise: Tensor) -> Tensor:
    """n actions for each state: obs [B, O], noise [B, n, D] -> [B, n, D] in [-1, 1].

    Clipping, and not tanh, as in the released code. It has a price: a coordinate outside the bounds gets no gradient
    from any loss. It only comes back when the network changes for the sake of other samples and coordinates.
    """
    obs = obs[:, None].expand(-1, noise.shape[1], -1)                                               # [B, n, O]
    return actor(obs, noise).clamp(-1, 1)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form: x (1 + tanh u) / 2 with u = sqrt(2/pi) (x + 0.044715 x^3)."""
    if torch.compiler.is_compiling():
        # The same, as x sigmoid(2u): on a CPU the compiler makes this three times as fast.
        twice = 2 * math.sqrt(2 / math.pi)
        return x * torch.sigmoid(x * (twice + twice * 0.044715 * x * x))
    return F.gelu(x, approximate="tanh")
