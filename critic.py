"""The critic: Q_phi(s, a) for whole action chunks, and the target it regresses on  (Eq. 1).

The policy commits to H actions at a time, so the critic values a chunk, and one backup jumps H steps:

    y = sum_{i<H} gamma^i r_{t+i}  +  gamma^H * m * Q_target(s_{t+H}, a'),    L_Q = E[(Q_phi(s, a) - y)^2]     (Eq. 1)

m = 0 where the task has *terminated*, as nothing follows; a mere time limit keeps m = 1. A chunk that reaches past the
episode's end adds no error (`valid` in td_loss). Say an episode succeeds at step 100 and H = 5: the last chunk to count
is that of steps 96 to 100, and its m is 0. The H-step return needs no correction although the data are off-policy: Q
is asked about exactly the H actions that were taken, as if they had been one chunk (Li et al., "Q-chunking", arXiv
2507.07969). The paper writes a' ~ pi_theta; here, as in the released code, a' is the best of N' samples, see topk.py.

Table 5: an ensemble of 2, aggregated by its mean (not the minimum), MLP 4 x 512 with LayerNorm, target rate 5e-3.

Axes: B states, E ensemble members, O observation, H chunk, D = H*A the flat chunk.
"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy import MLP, gelu


class Critic(nn.Module):
    """E independent Q-functions, each an MLP as the policy's with a LayerNorm behind every GELU:

        x = [s || a];   for each hidden layer: x = LayerNorm(GELU(Linear(x)));   Q = Linear(x)

    It computes what a list of E such MLPs would. For speed alone the members' parameters lie in one tensor a layer,
    weights [E, in, out]: a layer of all members is then one product.

    aggregate: "mean" (Table 5) or "min" (the field's usual, pessimistic choice).
    """

    def __init__(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...] = (512,) * 4, ensemble: int = 2,
                 aggregate: str = "mean"):
        super().__init__()
        self.ensemble, self.aggregate = ensemble, aggregate
        # Each member is initialised as the policy is. Then the members' weights of each layer are stacked.
        members = [MLP(obs_dim + chunk_dim, hidden, 1).linears for _ in range(ensemble)]
        self.weights = nn.ParameterList()                                                           # [E, in, out]
        for layer in range(len(hidden) + 1):
            self.weights.append(torch.stack([linears[layer].weight.detach().T for linears in members]))
        self.biases = nn.ParameterList(torch.zeros(ensemble, 1, w.shape[2]) for w in self.weights)  # [E, 1, out]
        self.gains = nn.ParameterList(torch.ones(ensemble, 1, h) for h in hidden)                   # LayerNorm's
        self.offsets = nn.ParameterList(torch.zeros(ensemble, 1, h) for h in hidden)

    def forward(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """Each member's Q: obs [..., O], chunk [..., D] -> [E, ...], without a trailing 1: (B, 1) minus (B,)
        would silently broadcast to (B, B)."""
        x = torch.cat([obs, chunk], dim=-1)
        *axes, dim = x.shape
        x = x.reshape(-1, dim).expand(self.ensemble, -1, -1)                               # [E, rows, O+D]
        for layer, (gain, offset) in enumerate(zip(self.gains, self.offsets)):                # the hidden layers
            x = gelu(x @ self.weights[layer] + self.biases[layer])
            # Normalising *after* the activation is unusual; it is what the released critic does (eps as there).
            x = F.layer_norm(x, x.shape[2:], eps=1e-6) * gain + offset                           # [E, rows, hidden]
        # The last layer in float32: bf16 has 8 bits of mantissa and cannot tell Q = -100.0 from -100.2.
        with torch.autocast(x.device.type, enabled=False):
            q = x.to(self.weights[-1].dtype) @ self.weights[-1] + self.biases[-1]                # [E, rows, 1]
        return q.reshape(-1, *axes)

    def value(self, obs: Tensor, chunk: Tensor) -> Tensor:
        """The ensemble's one value: obs [B, O], chunk [B, D] -> [B], or N candidates a state, [B, N, D] -> [B, N]."""
        if chunk.dim() == obs.dim() + 1:
            obs = obs[:, None].expand(-1, chunk.shape[1], -1)                                       # [B, N, O]
        q = self(obs, chunk)                                                                        # [E, ...]
        return q.mean(0) if self.aggregate == "mean" else q.amin(0)


def chunk_return(rewards: Tensor, discount: float) -> Tensor:
    """sum_{i<H} gamma^i r_{t+i}: rewards [..., H] -> [...]. All H rewards, even where the episode ended before: such
    chunks have `valid` = 0, and td_loss drops them."""
    return rewards @ (discount ** torch.arange(rewards.shape[-1], dtype=rewards.dtype, device=rewards.device))


def td_target(returns: Tensor, masks: Tensor, next_q: Tensor, discount: float, horizon: int) -> Tensor:
    """y of Eq. 1 from the chunk's return [B], its mask [B] (0 = the task terminated) and Q_target(s', a') [B]."""
    return returns + discount**horizon * masks * next_q


def td_loss(q: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Mean over members and batch of valid * (q - y)^2: q [E, B], target [B], valid [B] -> [].

    valid is that of a chunk's last step: 0 where the episode ended before it. Such rows still count in the denominator,
    as released. They are few, H - 1 for each episode.
    """
    return (valid * (q - target).square()).mean()


@torch.no_grad()
def move_towards(average: nn.Module, source: nn.Module, rate: float) -> None:
    """average <- rate * source + (1 - rate) * average: the target critic, pi_old, the average that acts."""
    # a.lerp_(b, rate) for each pair of parameters, all in one call.
    torch._foreach_lerp_(list(average.parameters()), list(source.parameters()), rate)
