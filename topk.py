"""Policy improvement by selection: the top K of N candidates are the positives  (Eqs. 15, 16).

The improved policy pi+ = pi_old exp(Q / alpha) / Z (Eqs. 10-12; the smaller alpha, the greedier) cannot be sampled.
Its stand-in can: draw N actions from pi_old, keep the K that the critic likes best,

    P_K(s) = the K of a^(1..N) ~ pi_old(.|s) with the highest Q_phi(s, a^(j))                              (Eq. 15)
    L_topK(theta) = L_drift(theta; P_K, pi_theta)                                                          (Eq. 16)

and the drift does the rest. With rho = K/N fixed and N -> infinity this is the drift towards pi_old restricted to the
best rho of its mass (Proposition 1, Eq. 17). The critic only *ranks*: no gradient of Q is taken, so its slopes, the
worst part of a learned Q, are never trusted, and every positive is an action that pi_old could have made.

The same selection with K = 1 acts and bootstraps: the best of N' samples of the current policy (Alg. 1, line 1).

Axes: B states, N candidates, K kept, D = H*A the flat chunk.
"""
from torch import Tensor


def top_k_actions(candidates: Tensor, scores: Tensor, k: int) -> Tensor:
    """P_K(s) of Eq. 15: candidates [B, N, D], their values scores [B, N] -> the k best [B, K, D], best first.

    Raises ValueError unless 1 <= k <= N.
    """
    if not 1 <= k <= candidates.shape[1]:
        raise ValueError(f"top-K needs 1 <= K <= N, got K = {k} of N = {candidates.shape[1]}")
    index = scores.topk(k, dim=1).indices                                                           # [B, K]
    return candidates.gather(1, index[..., None].expand(-1, -1, candidates.shape[2]))               # [B, K, D]


def best_action(candidates: Tensor, scores: Tensor) -> Tensor:
    """The best of N' samples: candidates [B, N', D], scores [B, N'] -> [B, D]."""
    return top_k_actions(candidates, scores, 1)[:, 0]
