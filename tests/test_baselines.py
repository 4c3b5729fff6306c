"""The baselines: their equations against hand-computed numbers, and all eight methods behind one interface."""
import copy
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from baselines.flow import BFN, FQL, euler, flow_loss
from baselines.meanflow import MVP, MeanFlowActor, mean_flow, total_derivative, two_times
from config import METHODS, TOPK, build
from critic import Critic
from dfp import DFP
from run import algorithm
from test_dfp import A, OBS, equal, make_batch
from tools.speed.fast import CompiledUpdate

B, D = 8, 5 * A


def make(method, online=False, device="cpu", **knobs):
    small = dict(task="lift", preset="quick", hidden=16, layers=2, batch_size=B, compile=False, precision="fp32")
    algo = algorithm(build(small | dict(method=method) | knobs), OBS, A, device)
    if online:
        algo.start_online()
    return algo


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


def test_flow_recovers_a_known_field():
    """Data in one point c: the field is (c - x) / (1 - t), and Euler lands on c exactly, in any number of steps."""
    c, noise = torch.tensor([0.3, -0.4]), torch.randn(6, 2)

    def field(x, time):
        return (c - x) / (1 - time)
    assert flow_loss(field, c.expand(6, 2), noise, 0.9 * torch.rand(6, 1)) < 1e-10
    for steps in (1, 3, 10):
        assert torch.allclose(euler(field, noise, steps), c.expand(6, 2), atol=1e-5)


def test_student_gradient_by_hand():
    """With Q = sum of the chunk, the gradient on the student's last bias is known: 2 alpha (mu - teacher) / (B D) pulls
    even outside the bounds, -1 / B climbs Q inside them only. The teacher learns from the data alone, the critic not
    at all."""
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

    found = gradients(algo, batch, noise)
    assert torch.allclose(last.bias.grad, expected, atol=1e-6)
    assert all(p.grad is None for p in algo.critic.parameters())

    algo.optimizer.zero_grad(set_to_none=True)
    BFN.actor_loss(algo, batch, noise)[0].backward()
    alone = {name: p.grad for name, p in algo.actor.named_parameters() if p.grad is not None}
    assert {name.split(".")[0] for name in alone} == {"mlp"}
    assert all(torch.equal(found[name], alone[name]) for name in alone)


def test_students_q_is_the_ensembles_mean_whatever_aggregates():
    algo = make("qc-fql", q_aggregate="min")
    batch, noise = batch_for(algo), algo.draw_noise(B)
    with torch.no_grad():
        student = algo.actor(batch["observations"], noise["student"]).clamp(-1, 1)
        q = algo.critic(batch["observations"], student)                                             # [E, B]
        assert algo.actor_loss(batch, noise)[1]["q_loss"] == pytest.approx(-q.mean().item(), abs=1e-6)
    assert q.amin(0).mean() < q.mean() - 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_noise_is_normal_and_the_flows_times_uniform(method):
    for name, drawn in make(method, online=True).draw_noise(20_000).items():
        draws = np.sort(drawn.flatten().numpy())[:: max(1, drawn.numel() // 100_000)]
        expected = (stats.uniform if name == "time" else stats.norm).cdf(draws)
        assert np.abs(expected - np.linspace(0, 1, len(draws))).max() < 0.02, name      # Kolmogorov's distance


def test_flow_acts_with_its_steps_and_fql_with_one():
    bfn, fql = make("qc-bfn"), make("qc-fql")
    asked = []
    for algo in (bfn, fql):
        algo.actor.mlp.register_forward_hook(lambda *_: asked.append("flow"))
        algo.critic.register_forward_hook(lambda *_: asked.append("critic"))
    fql.actor.student.register_forward_hook(lambda *_: asked.append("student"))
    obs = make_batch()["observations"]
    bfn.act(obs)
    assert asked == ["flow"] * 10 + ["critic"]
    asked.clear()
    fql.act(obs)
    assert asked == ["student"]


# --------------------------------------------------------------------------------------------------------- mean flow
@pytest.mark.parametrize("compiled", [False, True])
def test_derivative_against_finite_differences(compiled, request):
    """Compiled from outside, as the losses are, the tangents must survive."""
    if compiled:
        request.getfixturevalue("compiler")
    torch.manual_seed(0)
    actor = MeanFlowActor(OBS, D, (32, 32)).double()
    u, z, v = partial(actor.velocity, doubles(B, OBS)), doubles(B, D), doubles(B, D)
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
    mf, ivc = mean_flow(u, action, noise, r, t)
    assert mf.max() < 1e-20
    assert torch.allclose(ivc, (2 * (action + r * v) - v).square())
    assert mean_flow(partial(u, wrong=0.1), action, noise, r, t)[0].min() > 1e-3                # and no other u


def test_two_times():
    normal = torch.tensor([[0.4, 1.4], [3.0, -2.0], [100.0, -100.0]])
    r, t = two_times(normal, -0.4, 1.0)                              # sigmoids of 0 and 1, of -2.4 and 2.6, the bounds
    assert torch.allclose(r[:, 0], torch.tensor([0.5, 0.0831727, 1e-6]))
    assert torch.allclose(t[:, 0], torch.tensor([0.7310586, 0.9308616, 1 - 1e-6]))


def test_topk_variant_differs_by_its_term_alone():
    """(The term's own value: test_golden.py.)"""
    for online in (False, True):
        plain, variant = make("mvp", online), make("mvp-topk", online)
        batch, noise = batch_for(plain), variant.draw_noise(B)
        loss, (other, info) = plain.actor_loss(batch, noise)[0], variant.actor_loss(batch, noise)
        assert torch.equal(other, loss + 0.5 * info["topk_loss"] if online else loss)
    # pi_old moves in the variant alone, and weight 0 makes the variant the plain method.
    noise, silent = variant.draw_noise(B), make("mvp-topk", online=True, topk_weight=0.0)
    silent.positives = None                                         # proposals are not even made
    old = copy.deepcopy(plain.actor_old)
    for _ in range(2):
        plain.update(batch, noise)
        silent.update(batch, noise)
    assert equal(plain.actor, silent.actor) and equal(plain.actor_old, old) and not equal(silent.actor_old, old)


def test_weights_are_read():
    losses = {}
    for bc_weight, ivc_weight in ((1.0, 0.0), (1.0, 1.0), (1.0, 2.0), (3.0, 1.0)):
        algo = make("mvp", bc_weight=bc_weight, ivc_weight=ivc_weight)
        losses[bc_weight, ivc_weight], info = algo.actor_loss(batch_for(algo), algo.draw_noise(B))
    assert losses[1, 0] == info["mf_loss"] and losses[3, 1] == 3 * losses[1, 1]
    assert torch.allclose(losses[1, 2] - losses[1, 1], info["ivc_loss"])


# ---------------------------------------------------------------------------------------------- one interface for all
@pytest.mark.parametrize("method", METHODS)
def test_update_act_and_state(method):
    algo, other = make(method), make(method, seed=9)
    obs = batch_for(algo)["observations"]

    def act(**how):
        return algo.act(obs, torch.Generator().manual_seed(3), **how)

    def value(chunk):
        return algo.critic.value(obs, chunk.flatten(1)).mean()
    for stage in ("offline", "online"):
        assert algo.improving == (stage == "online" and method in TOPK)            # pi_old belongs to L_topK
        for i in range(3):
            before = copy.deepcopy(algo.actor), copy.deepcopy(algo.critic)
            info = algo.update(batch_for(algo, i))
            assert all(v.dim() == 0 and v.isfinite() and not v.requires_grad for v in info.values())
            assert {"critic_loss", "actor_loss"} <= set(info)
            for network, old in zip((algo.actor, algo.critic), before):            # every parameter learns
                assert not any(torch.equal(p, q) for p, q in zip(network.parameters(), old.parameters()))
        chunk = act()
        assert chunk.shape == (B, algo.chunk, A) and chunk.dtype == torch.float32 and chunk.abs().max() <= 1
        assert torch.equal(chunk, act()) and act(best_of=1).shape == chunk.shape
        if algo.config.best_of > 1:                             # the chosen chunk is no worse than the raw policy's
            assert not torch.equal(chunk, act(best_of=1)) and value(chunk) > value(act(best_of=1))
        # A saved state, read into another object, goes on exactly.
        other.load_state_dict(copy.deepcopy(algo.state_dict()))
        for i in range(3):
            one, two = algo.update(batch_for(algo, i)), other.update(batch_for(algo, i))
            assert one == two
        for name in ("actor", "actor_old", "critic", "critic_target"):
            assert equal(getattr(algo, name), getattr(other, name)), name
        algo.start_online()


@pytest.mark.parametrize("method", METHODS)
def test_update_is_a_function_of_batch_and_noise(method):
    """In both stages; neither the algorithm's own generator nor torch's global one plays a part."""
    for online in (False, True):
        one, two = make(method, online), make(method, online)
        noise = one.draw_noise(B)
        torch.manual_seed(1)
        info = one.update(batch_for(one), noise)
        torch.manual_seed(2)
        assert info == two.update(batch_for(two), noise)
        assert equal(one.actor, two.actor) and equal(one.critic, two.critic)


@pytest.mark.parametrize("method", METHODS)
def test_whose_actor_listens_to_the_critic(method):
    """Online, another critic makes another actor step where Q shapes the actor, and only there."""
    one, two = make(method, online=True), make(method, online=True)
    for p in two.critic.parameters():
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    noise = one.draw_noise(B)
    one.update(batch_for(one), noise)
    two.update(batch_for(two), noise)
    assert equal(one.actor, two.actor) == (method in ("bfn", "qc-bfn", "mvp", "dfp-no-topk"))


@pytest.mark.parametrize("method, samples", [("bfn", 4), ("qc-bfn", 32), ("fql", 1), ("qc-fql", 1), ("mvp", 16),
                                             ("mvp-topk", 16), ("dfp", 4), ("dfp-no-topk", 4)])
def test_bootstrap_by_hand(method, samples):
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
    assert len(tried) == samples == algo.config.best_of
    assert torch.allclose(algo.critic_loss(batch, noise)[1]["target_q"], target.mean(), rtol=1e-5)


@pytest.mark.parametrize("method", ["qc-bfn", "qc-fql", "mvp", "dfp"])
@pytest.mark.parametrize("masked", [True, False])
def test_next_episode_is_not_imitated(method, masked):
    """Chunk steps past an episode's end are no regression target (the baselines' networks still see them in x_t, as
    released)."""
    algo = make(method, mask_bc=masked)
    batch = batch_for(algo)
    batch["valid"][:, 3:] = 0
    gradient = gradients(algo, batch, algo.draw_noise(B))["mlp.linears.2.bias"].unflatten(0, (5, A))
    assert (gradient[:3] != 0).all() and ((gradient[3:] == 0) == masked).all()


def test_siblings_share_stage_1_and_families_do_not():
    knobs = {method: build(dict(task="lift", method=method)).stage1_knobs() for method in METHODS}
    pairs = [(a, b) for a in METHODS for b in METHODS if a < b and knobs[a] == knobs[b]]
    assert pairs == [("mvp", "mvp-topk"), ("dfp", "dfp-no-topk")]
    for a, b in pairs:                                              # and what the knobs promise is true
        one, two = make(a), make(b)
        for i in range(3):
            one.update(batch_for(one, i))
            two.update(batch_for(two, i))
        assert equal(one.actor, two.actor) and equal(one.critic, two.critic)
        make(b).load_state_dict(one.state_dict())
    # Equal knobs in another family are another stage 1.
    assert build(dict(method="qc-fql", best_of=16)).stage1_knobs() != build(dict(method="mvp")).stage1_knobs()


def test_classes():
    expected = {"bfn": BFN, "qc-bfn": BFN, "fql": FQL, "qc-fql": FQL, "mvp": MVP, "dfp": DFP, "dfp-no-topk": DFP}
    assert all(type(make(method)) is kind for method, kind in expected.items())


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("method", ["dfp", *(pytest.param(m, marks=pytest.mark.slow)
                                             for m in ("qc-bfn", "qc-fql", "mvp-topk"))])
def test_compiled_update_equals_the_plain_one(method, capsys):
    """From ten states along a plain run, an update of each: losses, forces and gradients. Then twenty in a row."""
    plain, algo = make(method, online=True, hidden=64), make(method, hidden=64)
    compiled = CompiledUpdate(algo)

    def apart(a, b):
        return float((a - b).norm() / a.norm())

    def update_both(seed, at_most):
        one, two = plain.update(make_batch(seed, 64)), compiled.update(make_batch(seed, 64))
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
