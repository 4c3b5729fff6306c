"""The theory as numbers (drift_field: Eqs. 3, 8, Remark 1, Proposition 1) and the training loss (drift_loss)."""
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import drift
from conftest import ROOT
from drift import drift_field, drift_loss
from topk import top_k_actions


def points(*shape, seed=0, dtype=torch.float64, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --------------------------------------------------------------------------------------------- drift_field: the theory
@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 2.5])
def test_eq8_field_is_difference_of_kde_scores(bandwidth):
    """h^2 (grad log p_kde - grad log q_kde) = V, scores by autograd."""
    x, p, q = points(6, 3).requires_grad_(), points(11, 3, seed=1), points(7, 3, seed=2)

    def log_kde(y):
        return torch.logsumexp(-torch.cdist(x, y).square() / (2 * bandwidth**2), dim=1) - math.log(len(y))
    score = torch.autograd.grad((log_kde(p) - log_kde(q)).sum(), x)[0]
    field = drift_field(x.detach(), p, q, bandwidth=bandwidth)
    assert field.dtype == torch.float64
    assert (bandwidth**2 * score - field).abs().max() < 1e-5


def test_field_is_antisymmetric_and_rests_at_p_equal_q():
    x, p, q = points(2, 5, 3), points(2, 8, 3, seed=1), points(2, 6, 3, seed=2)
    forth, back = drift_field(x, p, q, bandwidth=0.7), drift_field(x, q, p, bandwidth=0.7)
    assert forth.abs().max() > 0.1
    assert (forth + back).abs().max() < 1e-12
    assert drift_field(x, p, p[:, torch.randperm(8)], bandwidth=0.7).abs().max() < 1e-12


def test_field_against_a_plain_loop():
    x, p, q, h = points(4, 2), points(5, 2, seed=1), points(3, 2, seed=2), 0.6
    field = drift_field(x, p, q, bandwidth=h)
    for i in range(4):
        expected = torch.zeros(2, dtype=torch.float64)
        for sign, ys in ((1, p), (-1, q)):
            k = [math.exp(-float((x[i] - y).square().sum()) / (2 * h * h)) for y in ys]
            expected += sign * sum(w * (y - x[i]) for w, y in zip(k, ys)) / sum(k)
        assert (field[i] - expected).abs().max() < 1e-12


def test_field_is_finite_far_away():
    """exp(-1e8) is 0: dividing two sums of kernels would give NaN."""
    field = drift_field(torch.full((1, 2), 1e4), torch.zeros(3, 2), torch.ones(3, 2), bandwidth=0.05)
    assert torch.isfinite(field).all() and torch.allclose(field, torch.tensor([[-1.0, -1.0]]))


@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (1, 1)])
def test_field_refuses_samples_of_another_size(sizes):
    with pytest.raises(ValueError, match="one D"):
        drift_field(points(7, 3), *(points(4, D) for D in sizes), bandwidth=0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_field_of_half_precision_is_computed_in_float32(dtype):
    """x^2 / 2h^2 soon passes float16's 65504."""
    half = [points(9, 7, seed=seed, dtype=dtype) for seed in range(3)]
    field = drift_field(*half, bandwidth=0.005)
    assert torch.equal(field, drift_field(*(x.float() for x in half), bandwidth=0.005)) and field.isfinite().all()


def test_remark1_field_follows_the_gradient_of_q():
    """pi_old = N(0, I), Q = g.a, so pi+ = N(g/alpha, I): V = h^2/(1+h^2) g/alpha as samples grow (Eqs. 13, 14)."""
    g, alpha, h, x = torch.tensor([0.6, -0.3], dtype=torch.float64), 0.8, 0.7, points(20, 2, scale=0.5)
    expected = h**2 / (1 + h**2) * g / alpha

    def error(n):
        fields = [drift_field(x, points(n, 2, seed=2 * s + 1) + g / alpha, points(n, 2, seed=2 * s + 2), bandwidth=h)
                  for s in range(4)]
        return (torch.stack(fields) - expected).abs().mean()
    few, many = error(250), error(16_000)
    assert many < 0.3 * few            # 64 times the samples: an eighth of the error
    assert many < 0.04 * expected.abs().max()


def test_proposition1_topk_loss_comes_to_the_level_set_loss():
    """rho = K/N fixed, N -> infinity: L_topK -> L_drift(theta; pi_old restricted to the best rho) (Eq. 17)."""
    rho, h = 0.25, 0.3
    x, negatives = points(64, 1), points(64, 1, seed=1)             # samples of pi_theta, the same throughout

    def loss(positives):
        return drift_field(x, positives, negatives, bandwidth=h).square().sum(-1).mean()
    u = 1 - rho + rho * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    level_set = loss(torch.special.ndtri(u)[:, None])               # exact quantiles of N(0,1) above q^rho

    def mean_error(n):
        candidates = [points(1, n, 1, seed=100 + seed) for seed in range(20)]      # pi_old = N(0, 1), Q(a) = a
        losses = [loss(top_k_actions(a, a[..., 0], int(rho * n))[0]) for a in candidates]
        return (torch.stack(losses) - level_set).abs().mean()
    assert mean_error(4096) <= mean_error(64) / 4


def test_field_refuses_what_has_no_meaning():
    with pytest.raises(ValueError, match="bandwidth"):
        drift_field(points(2, 2), points(2, 2), points(2, 2), bandwidth=0)
    with pytest.raises(ValueError, match="at least one"):
        drift_field(points(2, 2), points(0, 2), points(2, 2), bandwidth=1)


# ------------------------------------------------------------------------------------------- drift_loss: what trains
def loop_loss(x, y, negatives, temperatures, wx, wy, wn):
    """PAPER.md's steps 1-6 with loops and scalars only. [B][G][D] -> (loss [B], mean squares)."""
    B, G, D = x.shape
    targets = torch.cat([x, negatives, y], 1)
    w = torch.cat([wx, wn, wy], 1)
    T, first_positive = targets.shape[1], G + negatives.shape[1]
    d = [[[math.sqrt(max(float((x[b, i] - targets[b, j]).square().sum()), 1e-8)) for j in range(T)]
          for i in range(G)] for b in range(B)]
    scale = (sum(d[b][i][j] * float(w[b, j]) for b in range(B) for i in range(G) for j in range(T))
             / sum(float(w[b, j]) for b in range(B) for i in range(G) for j in range(T)))
    unit, width = max(scale / math.sqrt(D), 1e-3), max(scale, 1e-3)
    total, squares = torch.zeros_like(x), []
    for R in temperatures:
        force = torch.zeros_like(x)
        for b in range(B):
            e = [[math.exp(-(d[b][i][j] / width + (100 if i == j else 0)) / R) for j in range(T)] for i in range(G)]
            for i in range(G):
                a = []
                for j in range(T):
                    row, column = sum(e[i]), sum(e[m][j] for m in range(G))
                    product = e[i][j] / row * (e[i][j] / column if column else 1.0)     # alone, its softmax is 1
                    a.append(float(w[b, j]) * math.sqrt(max(product, 1e-6)))
                plus, minus = sum(a[first_positive:]), sum(a[:first_positive])
                k = [-a[j] * plus if j < first_positive else a[j] * minus for j in range(T)]
                assert abs(sum(k)) < 1e-9
                for j in range(T):
                    force[b, i] += k[j] * (targets[b, j] - x[b, i]) / unit
        squares.append(float(force.square().mean()))
        total += force / math.sqrt(max(squares[-1], 1e-8))
    return total.square().mean((1, 2)), squares, -2 * total / (B * G * D * unit)


@pytest.mark.parametrize("temperatures", [(0.1,), (0.05, 0.3)])
def test_loss_force_and_gradient_against_loops(temperatures):
    x, y, n = points(3, 4, 5).requires_grad_(), points(3, 2, 5, seed=1), points(3, 3, 5, seed=2)
    wx, wy, wn = (points(3, k, seed=s).abs() for k, s in ((4, 3), (2, 4), (3, 5)))
    weights = dict(generated_weight=wx, positive_weight=wy, negative_weight=wn)
    loss, info = drift_loss(x, y, n, temperatures=temperatures, **weights)
    expected, squares, gradient = loop_loss(x.detach(), y, n, temperatures, wx, wy, wn)
    assert torch.allclose(loss, expected, rtol=1e-9)
    assert [info[f"force_rms_{r:g}"].item() ** 2 for r in temperatures] == pytest.approx(squares, rel=1e-9)
    loss.mean().backward()
    # The gradient is the force alone: nothing flows through goal, scale or affinities.
    assert torch.allclose(x.grad, gradient, rtol=1e-9)


def test_mean_is_one_for_one_temperature_and_within_t_and_t_squared():
    x, y = points(16, 8, 6, dtype=torch.float32), points(16, 2, 6, seed=1, dtype=torch.float32)
    assert drift_loss(x, y, temperatures=(0.1,))[0].mean().item() == pytest.approx(1, abs=1e-5)
    for temperatures in ((0.05, 0.5), (0.02, 0.1, 0.5)):
        count, mean = len(temperatures), drift_loss(x, y, temperatures=temperatures)[0].mean().item()
        assert count * 0.999 <= mean <= count**2 * 1.001
    mask = (points(16, 6, seed=2) > 0).float()
    assert drift_loss(x, y, mask=mask)[0].mean().item() == pytest.approx(1, abs=1e-5)    # denominators stay B*G*D


def test_floor_of_the_force():
    """Positives that weigh 1e-4 leave a mean square of some 1e-10: it is divided by the floor, 1e-8, instead."""
    x, y = points(4, 8, 6), points(4, 2, 6, seed=1)
    loss, info = drift_loss(x, y, positive_weight=torch.full((4, 2), 1e-4, dtype=torch.float64))
    square = info["force_rms_0.1"].item() ** 2
    assert 1e-11 < square < 1e-9 and loss.mean().item() == pytest.approx(square / 1e-8, rel=1e-6)


def test_mask_equals_zeroed_coordinates():
    x, y, n = points(4, 3, 6), points(4, 2, 6, seed=1), points(4, 2, 6, seed=2)
    mask = (points(4, 6, seed=3) > 0).double()
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    masked, info = drift_loss(a, y, n, mask=mask)
    zeroed, other = drift_loss(b * mask[:, None], y * mask[:, None], n * mask[:, None])
    masked.mean().backward()
    zeroed.mean().backward()
    assert torch.equal(masked, zeroed) and torch.equal(info["scale"], other["scale"])
    assert torch.equal(a.grad, b.grad) and (a.grad[mask[:, None].expand_as(a) == 0] == 0).all()
    assert not torch.allclose(masked, drift_loss(x, y, n)[0])


def test_precision_of_inputs():
    x, y = points(4, 8, 6, dtype=torch.float32), points(4, 1, 6, seed=1, dtype=torch.float32)
    reference = drift_loss(x, y)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(drift_loss(x, y)[0], reference)
    assert drift_loss(x.bfloat16(), y.bfloat16())[0].dtype == torch.float32
    assert drift_loss(x.double(), y.double())[0].dtype == torch.float64


@pytest.mark.parametrize("change", [dict(positives=torch.zeros(3, 2, 5)), dict(positives=torch.zeros(2, 2, 4)),
                                    dict(negatives=torch.zeros(1, 2, 5)), dict(mask=torch.ones(2, 4)),
                                    dict(generated=torch.zeros(2, 5)), dict(positives=torch.zeros(2, 0, 5)),
                                    dict(temperatures=()), dict(temperatures=(0.1, 0.0)),
                                    dict(positive_weight=torch.ones(2, 3))])
def test_wrong_arguments_are_named(change):
    good = dict(generated=torch.zeros(2, 4, 5), positives=torch.zeros(2, 2, 5))
    with pytest.raises(ValueError, match=r"\("):
        drift_loss(**good | change)


def test_drift_can_leave_home(tmp_path):
    """Copied alone into an empty folder, with nothing but torch, it trains a generator."""
    shutil.copy(Path(drift.__file__), tmp_path)
    snippet, = re.findall(r"```python\n(import torch\nfrom drift .*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(snippet.splitlines()) <= 13
    code = f"""
import sys, torch
torch.manual_seed(0)
{snippet}
assert not {{m.split('.')[0] for m in sys.modules}} & {{'policy', 'config', 'critic', 'gymnasium'}}
radius = generator(torch.randn(500, 2)).norm(dim=1)
assert (radius - 1).abs().mean() < 0.25, radius.mean()
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
