"""The drifting field and its loss: the whole idea of the paper in one file that needs nothing but torch.

A one-step generator x = f_theta(noise) is trained without a time variable and without an ODE. Where do its samples
have to go? Towards the samples of the target p ("positives", y+) and away from its own samples q ("negatives", y-):

    V_{p,q}(x) = V_p+(x) - V_q-(x),   V_p+(x) = sum_j k(x, y+_j) (y+_j - x) / sum_j k(x, y+_j)              (Eq. 3)

Each half is a kernel mean shift. Both halves cancel on average when p = q: a generator that matches the target has
nowhere to go. The loss asks the network to output what it outputs now, moved by the field; no gradient flows through
the goal:

    L_drift = E || x - sg(x + V_{p,q}(x)) ||^2                                                              (Eq. 4)

Two functions, because theory and practice use two kernels:

    drift_field   Eq. 3 to the letter with the Gaussian kernel. h^2 (grad log p_kde - grad log q_kde) equals it exactly
                  (Eq. 8): this is why following it is, but for the kernel's smoothing, a Wasserstein gradient flow of
                  KL(q || p) (Eqs. 5-7). It serves the theory's tests and the pictures; nothing is trained with it.
    drift_loss    what trains policies: a bounded kernel of the *distance*, normalised over both sides, with several
                  temperatures (Deng et al., "Generative Modeling via Drifting", arXiv 2602.04770, as DFP uses it).

Axes: B states, G generated samples, P positives, M further negatives, T = G + M + P targets, D sample dimension.
"""
import torch
from torch import Tensor


def drift_field(x: Tensor, positives: Tensor, negatives: Tensor, *, bandwidth: float) -> Tensor:
    """V_{p,q}(x) of Eq. 3, exact, with the Gaussian kernel k(x, y) = exp(-|x - y|^2 / (2 h^2)).

    x [..., G, D], positives [..., P, D], negatives [..., M, D], bandwidth h > 0 in the units of x -> V [..., G, D].
    At least float32, float64 stays float64. Raises ValueError for h <= 0, an empty side or another D.
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    if positives.shape[-2] == 0 or negatives.shape[-2] == 0:
        raise ValueError("drift_field needs at least one positive and one negative sample")
    if not x.shape[-1] == positives.shape[-1] == negatives.shape[-1]:                    # D = 1 would broadcast
        raise ValueError(f"all need one D, got {x.shape[-1]}, {positives.shape[-1]} and {negatives.shape[-1]}")
    x, positives, negatives = (y.to(torch.promote_types(y.dtype, torch.float32)) for y in (x, positives, negatives))

    def mean_shift(y: Tensor) -> Tensor:
        # k(x, y_j) / sum_j k(x, y_j) is a softmax of -|x - y|^2 / 2h^2. Written so, a sample far from everything gets
        # weights that still sum to one; exp() first would give 0/0 = NaN there.
        offset = y[..., None, :, :] - x[..., :, None, :]                       # y_j - x_i            [..., G, P, D]
        weight = torch.softmax(offset.square().sum(-1) / (-2 * bandwidth**2), dim=-1)               # [..., G, P]
        return (weight[..., None] * offset).sum(-2)                                                 # [..., G, D]

    return mean_shift(positives) - mean_shift(negatives)


def drift_loss(
    generated: Tensor,
    positives: Tensor,
    negatives: Tensor | None = None,                       # not used by DFP
    *,
    temperatures: tuple[float, ...] = (0.1,),
    mask: Tensor | None = None,
    generated_weight: Tensor | None = None,                # these three neither
    positive_weight: Tensor | None = None,
    negative_weight: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """L_drift(theta; p, q) of Eq. 4 in the practical form of Deng et al. (2026).

    generated  [B, G, D]  x = f_theta(noise, s), carries the gradient; it is also the negative set, q = pi_theta
    positives  [B, P, D]  samples of the target p, for each state its own
    negatives  [B, M, D]  further samples to move away from, or None
    temperatures          kernel widths (R in Deng et al., h in Table 5) as shares of the batch's mean distance; their
                          forces are added. A small one sharpens, a large one reaches samples that are still far away.
                          Where the other samples are nearer than all positives by some 14 kernel widths, the positives
                          fall to the floor of step 3. They pull equally then, towards their mean, and samples may
                          collapse there. For hundreds of positives a state, add a temperature of 1 or more.
    mask       [B, D]     0 or 1; where it is 0, x and y are set to 0 before anything else. DFP does so for chunk steps
                          past an episode's end.
    *_weight   [B, G] / [B, P] / [B, M], non-negative, default 1. Where no positive weighs anything the loss is 0,
               where nothing does it is NaN.

    Returns the loss per state [B] (take .mean()) and an info dict of detached 0-d tensors: "scale", the mean distance,
    and "force_rms_<R>", the root mean square of each temperature's force before it is normalised. Raises ValueError
    where shapes do not fit, for no positive and for a temperature that is not above 0. Runs in float32 under autocast;
    float64 inputs stay float64. Memory: all differences at once, [B, G, G + M + P, D].

    The value says nothing about progress. With one temperature its mean over the batch is 1 *by construction*: the
    force is divided by its own size, unless that is tiny. With n of them it is at most n^2. Even samples that have
    arrived are pushed, to another side in each batch. So watch the samples: their distance to the data and their
    spread. A falling force_rms is no progress either: it also falls when all samples collapse.
    """
    if negatives is None:
        negatives = generated.new_zeros(generated.shape[0], 0, generated.shape[-1])
    _check(generated, positives, negatives, temperatures, mask, generated_weight, positive_weight, negative_weight)

    with torch.autocast(generated.device.type, enabled=False):  # squared distances lose everything in half precision
        dtype = torch.promote_types(generated.dtype, torch.float32)
        x = generated.to(dtype)                                                                     # [B, G, D]
        if mask is not None:
            x = x * mask[:, None]
        with torch.no_grad():  # everything down to the goal is a target: sg(.) in Eq. 4
            # Negatives first, the samples themselves among them; positives last.
            targets = torch.cat([x, negatives.to(dtype), positives.to(dtype)], dim=1)               # [B, T, D]
            if mask is not None:
                targets = targets * mask[:, None]
            weight = torch.cat([_or_ones(generated_weight, x), _or_ones(negative_weight, negatives),
                                _or_ones(positive_weight, positives)], dim=1).to(dtype)             # [B, T]
            num_negatives = x.shape[1] + negatives.shape[1]                                         # G + M
            scale, unit, force, rms = _force(x, targets, weight[:, None], num_negatives, temperatures)     # steps 1-5
            goal = x / unit + force
        loss = (x / unit - goal).square().mean(dim=(1, 2))                                          # 6. Eq. 4, [B]
    return loss, {"scale": scale} | {f"force_rms_{R:g}": size for R, size in zip(temperatures, rms)}


def _or_ones(weight: Tensor | None, samples: Tensor) -> Tensor:
    return torch.ones_like(samples[:, :, 0]) if weight is None else weight


def _force(x: Tensor, targets: Tensor, weight: Tensor, num_negatives: int, temperatures):
    """Steps 1 to 5 of the loss, numbered as in PAPER.md, from x [B, G, D], targets [B, T, D] that begin with x, their
    weights [B, 1, T]. Returns the scale [], the unit of coordinates [], the force [B, G, D] in this unit, and a list of
    each temperature's root mean square []."""
    G, D = x.shape[1:]
    # 1. Distances, and their mean. From differences: |x|^2 + |y|^2 - 2xy would lose half the digits for close samples,
    # which matter most at a small temperature. No distance is below 1e-4, not even that of a sample to itself.
    offset = targets[:, None] - x[:, :, None]                                                       # [B, G, T, D]
    distance = offset.square().sum(-1).clamp_min(1e-8).sqrt()                                       # [B, G, T]

    # The mean is ONE number for the whole batch, not one per state: temperatures are shares of it, so the kernel is as
    # wide in every state. Self-pairs count (as released). The floor 1e-3 matters only if all sits in one point.
    scale = (distance * weight).mean() / weight.expand_as(distance).mean()                          # []
    # 2. Distances are divided by this mean, coordinates by mean / sqrt(D), the typical gap along one coordinate. So the
    # loss does not depend on the scale of actions.
    distance = distance / scale.clamp_min(1e-3)
    unit = (scale / D**0.5).clamp_min(1e-3)
    # A sample's own copy, the nearest, would take nearly all the weight. Adding 100 takes it out of both softmaxes.
    distance = distance + 100.0 * torch.eye(G, targets.shape[1], dtype=x.dtype, device=x.device)

    force, rms = 0.0, []
    for temperature in temperatures:
        logits = -distance / temperature
        # 3. Affinity: the square root of two softmaxes' product. Over targets: which of them a sample attends to. Over
        # samples: a target that is close to one sample attracts the others less. The floor 1e-6 leaves every pair an
        # affinity of 1e-3, so a sample far from all data is still attracted. It lifts self-pairs too, which the
        # 100 above had brought to 0. They move nothing, as their offset is 0, but count in the sums of step 4.
        affinity = (logits.softmax(dim=2) * logits.softmax(dim=1)).clamp_min(1e-6).sqrt() * weight  # [B, G, T]
        # 4. The force: attraction minus repulsion.
        f = (_coefficients(affinity, num_negatives)[..., None] * offset).sum(2) / unit              # [B, G, D]
        # 5. Divided by its size, again one number for the batch: states keep their proportions. Temperatures add up.
        mean_square = f.square().mean()
        force = force + f / mean_square.clamp_min(1e-8).sqrt()
        rms.append(mean_square.sqrt())
    return scale, unit, force, rms


def _coefficients(affinity: Tensor, num_negatives: int) -> Tensor:
    """The k_ij of F_i = sum_j k_ij (y_j - x_i), from affinities A [B, G, T] whose first targets are the negatives:

        S+_i = sum_pos A_ij,   S-_i = sum_neg A_ij
        F_i = S-_i sum_pos A_ij (y_j - x_i) - S+_i sum_neg A_ij (y_j - x_i)
            = S+_i S-_i (V+ - V-):  Eq. 3 with A in place of the kernel k, times a gate. The gate S+_i S-_i is large for
                                    samples that are close to positives and to negatives: those move most.

    They sum to zero for each i, as those of V+ - V- do: attraction and repulsion have equal totals.
    """
    repel, attract = affinity[..., :num_negatives], affinity[..., num_negatives:]
    return torch.cat([-repel * attract.sum(-1, keepdim=True), attract * repel.sum(-1, keepdim=True)], dim=-1)


def _check(generated, positives, negatives, temperatures, mask, generated_weight, positive_weight, negative_weight):
    """ValueError unless everything fits: a wrong shape would broadcast in silence."""
    if generated.dim() != 3 or positives.dim() != 3:
        raise ValueError(f"expected [B, G, D] and [B, P, D], got {tuple(generated.shape)} and {tuple(positives.shape)}")
    for name, y in (("positives", positives), ("negatives", negatives)):
        if y.dim() != 3 or y.shape[0] != generated.shape[0] or y.shape[2] != generated.shape[2]:
            raise ValueError(f"{name} {tuple(y.shape)} do not fit generated {tuple(generated.shape)}")
    if positives.shape[1] == 0 or not temperatures or not all(r > 0 for r in temperatures):
        raise ValueError("needs at least one positive and temperatures above 0, "
                         f"got {positives.shape[1]} and {temperatures}")
    for name, w, y in (("generated", generated_weight, generated), ("positive", positive_weight, positives),
                       ("negative", negative_weight, negatives)):
        if w is not None and w.shape != y.shape[:2]:
            raise ValueError(f"{name}_weight {tuple(w.shape)} does not fit its samples {tuple(y.shape)}")
    if mask is not None and mask.shape != generated.shape[::2]:
        raise ValueError(f"mask {tuple(mask.shape)} is not [B, D] = {tuple(generated.shape[::2])}")
