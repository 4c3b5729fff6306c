"""The baselines: their equations against hand-computed numbers, and all eight methods behind one interface."""
import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from baselines.flow import BFN, FQL, euler, flow_loss
from baselines.meanflow import MVP, MeanFlowActor, MVPTopK, mean_flow_errors, total_derivative, two_times
from config import METHODS, build
from critic import Critic
from dfp import DFP
from test_dfp import A, B, OBS, equal, make, make_batch
from tools.checks import TOPK
from tools.speed.fast import CompiledUpdate
from tools.speed.halves import Halves
from tools.training.saving import stage1_knobs

D = 5 * A


def batch_for(algo, seed=0):
    return make_batch(seed, B, algo.chunk)


def doubles(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def gradients(algo, batch, noise):
    algo.optimizer.zero_grad(set_to_none=True)
    algo.actor_loss(batch, noise)[0].backward()
    return {name: p.grad for name, p in algo.actor.named_parameters()}


# -------------------------------------------------------------------------------------------------------------- flow
@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_euler_on_analytic_velocities(steps):
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    growth = euler(lambda x, time: x, x, steps)                     # dx/dt = x: (1 + 1/n)^n
    assert torch.allclose(growth, x * (1 + 1 / steps) ** steps)
    clock = euler(lambda x, time: time.expand_as(x), x, steps)      # dx/dt = t, read at the left end of each step
    assert torch.allclose(clock, x + (steps - 1) / (2 * steps))
    with pytest.raises(ValueError, match="at least one step"):
        euler(lambda x, time: x, x, 0)


def test_flow_loss_by_hand():
    action, noise, time = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[0.25]])
    loss = partial(flow_loss, lambda x, time: 2 * x + time, action, noise, time)
    # x = 0.75 noise + 0.25 action = (0.25, 1.5); v = (0.75, 3.25); action - noise = (1, -2); errors (-0.25, 5.25)
    assert loss().item() == (0.25**2 + 5.25**2) / 2
    assert loss(torch.tensor([[1.0, 0.0]])).item() == 0.25**2 / 2


def test_student_gradient_by_hand():
    """With Q = sum of the chunk, the gradient on the student's last bias is known: 2 alpha (mu - teacher) / (B D) pulls
    even outside the bounds, -1 / B climbs Q inside them only. (Teacher and critic: test_golden.py.)"""
    algo = make("qc-fql", distill_weight=3.0)
    last = algo.actor.student.mlp.linears[-1]
    with torch.no_grad():
        last.bias[:3] = torch.tensor([4.0, -4.0, 1.05])             # some samples of the student leave the bounds

    class Likes(Critic):
        def forward(self, obs, chunk):
            return chunk.sum(-1) + 0 * super().forward(obs, chunk)
    algo.critic.__class__ = Likes
    batch, noise = batch_for(algo), algo.draw_noise(B)
    batch["valid"][:, 3:] = 0
    student = algo.actor(batch["observations"], noise["student"]).detach()
    teacher = algo.actor.integrate(batch["observations"], noise["student"]).detach().clamp(-1, 1)
    inside = student.abs() < 1
    assert inside.any(0)[2] and not inside.all(0)[2] and not inside[:, 0].any()
    expected = (2 * 3.0 * (student - teacher) / (B * D) - inside / B).sum(0)

    gradients(algo, batch, noise)
    assert torch.allclose(last.bias.grad, expected, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_normal_and_the_flows_times_uniform(method):
    for name, drawn in make(method, online=True).draw_noise(20_000).items():
        draws = np.sort(drawn.flatten().numpy())[:: max(1, drawn.numel() // 100_000)]
        expected = (stats.uniform if name == "time" else stats.norm).cdf(draws)
        assert np.abs(expected - np.linspace(0, 1, len(draws))).max() < 0.02, name      # Kolmogorov's distance


@pytest.mark.parametrize("method, passes", [("qc-bfn", ["mlp"] * 10 + ["critic"]), ("qc-fql", ["student"])])
def test_flow_acts_with_its_steps_and_fql_with_one(method, passes):
    algo, asked = make(method), []
    for name, part in (*algo.actor.named_children(), ("critic", algo.critic)):
        part.register_forward_hook(lambda *_, name=name: asked.append(name))
    algo.act(make_batch()["observations"])
    assert asked == passes


# --------------------------------------------------------------------------------------------------------- mean flow
@pytest.mark.parametrize("compiled", [False, True])
def test_derivative_against_finite_differences(compiled, request):
    """Compiled from outside, as the losses are, the tangents must survive."""
    if compiled:
        request.getfixturevalue("compiler")
    torch.manual_seed(0)
    actor = MeanFlowActor(OBS, D, (32, 32)).double()
    u, z, v = partial(actor.mean_velocity, doubles(B, OBS)), doubles(B, D), doubles(B, D)
    r, t = two_times(doubles(B, 2), -0.4, 1.0)
    jvp = torch.compile(total_derivative) if compiled else total_derivative
    derivative, e = jvp(u, z, r, t, v), 1e-5
    differences = (u(z + e * v, r, t + e) - u(z - e * v, r, t - e)) / (2 * e)
    assert derivative.dtype == torch.float64 and not derivative.requires_grad
    assert (derivative - differences).abs().max() < 1e-8 * differences.abs().max()
    with torch.no_grad():                                           # also where nothing needs a gradient
        assert torch.equal(jvp(u, z, r, t, v), derivative)


def test_mean_flow_identity():
    """dz/dt = 2z has mean velocity u = z (1 - exp(-2(t - r))) / (t - r): the identity holds, so L_MF is 0, and IVC,
    which asks u(z_r, r, r) = 2 z_r for the straight path's v, is the rest that is known by hand."""
    torch.manual_seed(0)
    z, (r, t) = doubles(B, D), two_times(doubles(B, 2), -0.4, 1.0)

    def u(z, r, t, wrong=0.0):
        return z * torch.where(t > r, -torch.expm1(-2 * (t - r)) / (t - r), 2.0) + wrong
    v = 2 * z                                              # a straight path that passes z at time t with this velocity:
    action, noise = z - t * v, z + (1 - t) * v
    mf, ivc = mean_flow_errors(u, action, noise, r, t)
    assert mf.max() < 1e-20
    assert torch.allclose(ivc, (2 * (action + r * v) - v).square())
    assert mean_flow_errors(partial(u, wrong=0.1), action, noise, r, t)[0].min() > 1e-3                # and no other u


def test_two_times():
    normal = torch.tensor([[0.4, 1.4], [3.0, -2.0], [100.0, -100.0]])
    r, t = two_times(normal, -0.4, 1.0)                              # sigmoids of 0 and 1, of -2.4 and 2.6, the bounds
    assert torch.allclose(r[:, 0], torch.tensor([0.5, 0.0831727, 1e-6]))
    assert torch.allclose(t[:, 0], torch.tensor([0.7310586, 0.9308616, 1 - 1e-6]))


def test_weights_and_times_of_mean_flow_are_the_knobs():
    usual = make("mvp-topk", online=True)
    algo = make("mvp-topk", online=True, ivc_weight=0.3, bc_weight=0.7, topk_weight=1.3, time_mean=0.5, time_std=2.0)
    batch, noise = batch_for(algo), algo.draw_noise(B)
    moved = noise | {name: (0.5 + 2 * noise[name] + 0.4) for name in ("times", "topk_times")}     # usual: -0.4 and 1
    loss, info = algo.actor_loss(batch, noise)
    _, expected = usual.actor_loss(batch, moved)
    mf, ivc = expected["mf_loss"], expected["ivc_loss"]
    best = usual.positives(batch["observations"], noise["candidates"])
    mf_k, ivc_k = (error.mean() for error in usual.errors(batch, best, moved["topk_path"], moved["topk_times"]))
    assert torch.allclose(loss, 0.7 * (mf + 0.3 * ivc) + 1.3 * (mf_k + 0.3 * ivc_k), rtol=1e-5)


@pytest.mark.parametrize("method, control", [("dfp", "dfp-no-topk"), ("mvp-topk", "mvp")])
def test_topk_variant_differs_by_its_term_alone(method, control):
    """Online alone. (The term's own value: test_golden.py.)"""
    plain, online, silent = make(control), make(method, online=True), make(method, online=True, topk_weight=0.0)
    batch, noise = batch_for(plain), online.draw_noise(B)
    loss, (other, info) = plain.actor_loss(batch, noise)[0], online.actor_loss(batch, noise)
    assert torch.equal(other, loss + 0.5 * info["topk_loss"])
    silent.positives = None                                         # with weight 0 proposals are not even made
    for same in (make(method), silent):
        assert torch.equal(same.actor_loss(batch, noise)[0], loss)


# ---------------------------------------------------------------------------------------------- one interface for all
@pytest.mark.parametrize("method", METHODS)
def test_update_act_and_state(method):
    algo, other = make(method), make(method, seed=9)
    obs = batch_for(algo)["observations"]

    def act(**how):
        return algo.act(obs, torch.Generator().manual_seed(3), **how)
    for improving in (False, method in TOPK):                                      # offline; online
        assert algo.improving == improving                                         # pi_old belongs to L_topK
        pi_old = copy.deepcopy(algo.actor_old)
        for i in range(3):
            before = copy.deepcopy(algo.actor), copy.deepcopy(algo.critic)
            info = algo.update(batch_for(algo, i))
            assert all(v.dim() == 0 and v.isfinite() and not v.requires_grad for v in info.values())
            assert {"critic_loss", "actor_loss"} <= set(info)
            assert ("topk_loss" in info) == (improving and algo.config.topk_weight > 0)
            for network, old in zip((algo.actor, algo.critic), before):            # every parameter learns
                assert not any(torch.equal(p, q) for p, q in zip(network.parameters(), old.parameters()))
        assert equal(algo.actor_old, pi_old) != improving
        chunk = act()
        assert chunk.shape == (B, algo.chunk, A) and chunk.dtype == torch.float32 and chunk.abs().max() <= 1
        assert torch.equal(chunk, act()) and torch.equal(chunk, act(best_of=1)) == (algo.config.best_of == 1)
        # A saved state, read into another object, goes on exactly, also where that one acts in between.
        other.load_state_dict(copy.deepcopy(algo.state_dict()))
        for i in range(3):
            assert algo.update(batch_for(algo, i)) == other.update(batch_for(algo, i))
            other.act(obs, torch.Generator().manual_seed(i))
        for name in ("actor", "actor_old", "critic", "critic_target"):
            assert equal(getattr(algo, name), getattr(other, name)), name
        algo.start_online()
        assert equal(algo.actor_old, algo.actor) == (method in TOPK)


@pytest.mark.parametrize("method", METHODS)
def test_update_is_a_function_of_batch_and_noise(method):
    """Neither the algorithm's own generator nor torch's global one plays a part. Another critic makes another actor
    step where Q shapes the actor, and only there."""
    for online in (False, True):
        one, two, other = (make(method, online) for _ in range(3))
        for p in other.critic.parameters():
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
        noise, infos = one.draw_noise(B), []
        for algo in (one, two, other):
            torch.manual_seed(len(infos))
            infos.append(algo.update(batch_for(algo), noise))
        assert infos[0] == infos[1] and equal(one.actor, two.actor) and equal(one.critic, two.critic)
        listens = ("fql", "qc-fql", "dfp", "mvp-topk") if online else ("fql", "qc-fql")
        assert equal(one.actor, other.actor) == (method not in listens)


@pytest.mark.parametrize("method, kind, samples", [
    ("bfn", BFN, 4), ("qc-bfn", BFN, 32), ("fql", FQL, 1), ("qc-fql", FQL, 1), ("mvp", MVP, 16),
    ("mvp-topk", MVPTopK, 16), ("dfp", DFP, 4), ("dfp-no-topk", DFP, 4)])
def test_bootstrap_by_hand(method, kind, samples):
    """a' of Eq. 1: the best by Q_phi of as many samples as the method acts with, valued by the target critic."""
    algo = make(method)
    for network in (algo.actor, algo.critic):                       # the initial ones are nearly flat
        for p in network.parameters():
            p.data.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch, noise = batch_for(algo), algo.draw_noise(B)
    next_q = []
    with torch.no_grad():
        for obs, noises in zip(batch["next_observations"], noise["next"]):
            tried = [algo.actor(obs, eps).clamp(-1, 1) for eps in noises]
            best = max(tried, key=lambda action: algo.critic(obs, action).mean().item())
            next_q.append(algo.critic_target(obs, best).mean())
        target = batch["rewards"] + 0.99**algo.chunk * batch["masks"] * torch.stack(next_q)
    assert type(algo) is kind and len(tried) == samples == algo.config.best_of
    assert torch.allclose(algo.critic_loss(batch, noise)[1]["target_q"], target.mean(), rtol=1e-5)


@pytest.mark.parametrize("method", ["qc-bfn", "qc-fql", "mvp", "dfp"])
@pytest.mark.parametrize("masked", [True, False])
def test_next_episode_is_not_imitated(method, masked):
    """Chunk steps past an episode's end are no regression target (the baselines' networks still see them in x_t, as
    released), and the critic leaves such chunks out in any case."""
    algo = make(method, mask_bc=masked)
    batch, noise = batch_for(algo), algo.draw_noise(B)
    batch["valid"][:, 3:] = 0
    assert algo.critic_loss(batch, noise)[0] == 0
    gradient = gradients(algo, batch, noise)
    last = gradient["mlp.linears.2.bias"].unflatten(0, (5, A))
    assert (last[:3] != 0).all() and ((last[3:] == 0) == masked).all()
    if method == "dfp":
        batch["actions"][:, 3:] = 0.77
        other = gradients(algo, batch, noise)
        assert all(torch.equal(gradient[name], other[name]) for name in gradient) == masked


def test_siblings_share_stage_1_and_families_do_not():
    knobs = {method: stage1_knobs(build(dict(task="lift", method=method))) for method in METHODS}
    pairs = [(a, b) for a in METHODS for b in METHODS if a < b and knobs[a] == knobs[b]]
    assert pairs == [("mvp", "mvp-topk"), ("dfp", "dfp-no-topk")]
    # And what the knobs promise is true: test_topk_variant_differs_by_its_term_alone, test_scripts.py.
    # Equal knobs in another family are another stage 1.
    assert stage1_knobs(build(dict(method="qc-fql", best_of=16))) != stage1_knobs(build(dict(method="mvp")))


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("method", ["dfp", *(pytest.param(m, marks=pytest.mark.slow)
                                             for m in ("qc-bfn", "qc-fql", "mvp-topk"))])
@pytest.mark.parametrize("fast", [CompiledUpdate, Halves])
def test_compiled_update_equals_the_plain_one(method, fast, capsys):
    """From ten states along a plain run, an update of each: losses, forces and gradients. Then twenty in a row."""
    plain, algo = make(method, online=True, hidden=64), make(method, hidden=64)
    compiled = fast(algo)

    def apart(a, b):
        return float((a - b).norm() / a.norm())

    def update_both(seed, at_most):
        noise = [algo.draw_noise(64)] if fast is Halves else []
        one, two = plain.update(make_batch(seed, 64)), compiled.update(make_batch(seed, 64), *noise)
        assert one.keys() == two.keys()
        assert all(apart(one[name], two[name]) < at_most for name in one), seed
    for step in range(101):
        if step % 10:
            plain.update(make_batch(step, 64))
            continue
        algo.load_state_dict(copy.deepcopy(plain.state_dict()))      # its generator too: both draw the same noise
        update_both(step, 1e-4)
        for network in ("actor", "critic"):
            pairs = zip(getattr(plain, network).parameters(), getattr(algo, network).parameters())
            assert all(apart(p.grad, q.grad) < 1e-4 for p, q in pairs), (step, network)
    for step in range(101, 120):
        update_both(step, 1e-2)
    assert not equal(plain.actor, algo.actor)                       # it was another path
    assert "going on without it" not in capsys.readouterr().out
