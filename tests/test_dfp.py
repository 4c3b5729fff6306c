"""Algorithm 1 as a whole: what depends on what, acting, stages, precision. (All methods alike: test_baselines.py.)"""
import copy
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

import run
from config import build
from dfp import DFP
from policy import gelu, sample
from test_drift import loop_loss, points
from tools.speed import fast, halves
from topk import best_action, top_k_actions

OBS, A, B = 4, 2, 8


def make(method="dfp", online=False, device="cpu", **knobs):
    small = dict(task="lift", preset="quick", hidden=16, layers=2, batch_size=B, compile=False, precision="fp32")
    algo = run.algorithm(build(small | dict(method=method) | knobs), OBS, A, device)
    if online:
        algo.start_online()
    return algo


def make_batch(seed=0, B=B, H=5):
    g = torch.Generator().manual_seed(seed)
    batch = dict(observations=(B, OBS), actions=(B, H, A), rewards=(B,), next_observations=(B, OBS))
    batch = {name: torch.randn(shape, generator=g) for name, shape in batch.items()}
    return batch | dict(actions=batch["actions"].clamp(-1, 1), masks=torch.ones(B), valid=torch.ones(B, H))


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_table8_improves_from_the_first_step():
    algo = make(task="cube-single-task2", preset="offline-rl")
    batch = make_batch(H=1)
    assert "topk_loss" in algo.update(batch) and "topk_loss" in algo.update(batch)


def test_act_best_of_and_generators():
    algo = make()
    obs = make_batch()["observations"]
    actions = algo.act(obs.numpy(), torch.Generator().manual_seed(3))
    # best of N': the chosen chunk scores at least as high as each raw sample of the same noise
    noise = torch.randn(8, 4, 5 * A, generator=torch.Generator().manual_seed(3))
    samples = algo.actor(obs[:, None].expand(-1, 4, -1), noise).clamp(-1, 1)
    chosen, best = algo.critic.value(obs, actions.flatten(1)), algo.critic.value(obs, samples).amax(1)
    assert torch.allclose(chosen, best, atol=1e-6)           # processors round batches of other sizes differently

    def generators(rows):
        return [torch.Generator().manual_seed(i) for i in rows]
    # one generator a row: a row's action does not depend on its neighbours
    assert torch.allclose(algo.act(obs, generators(range(8)))[5:6], algo.act(obs[5:6], generators([5])), atol=1e-6)


@pytest.mark.parametrize("method", ["dfp", "qc-fql", "mvp"])
def test_an_average_of_the_policy_acts_and_changes_no_training(method):
    algo, usual = make(method, acting_ema_rate=0.25), make(method)
    average, obs = copy.deepcopy(algo.actor), make_batch()["observations"]
    noise = torch.randn(B, 1, 5 * A, generator=torch.Generator().manual_seed(3))
    for _ in ("offline", "online"):
        for i in range(3):
            for mean, weight in zip(average.parameters(), algo.actor.parameters()):
                mean.data.lerp_(weight.data, 0.25)                                         # as before the step
            algo.update(make_batch(i))
            usual.update(make_batch(i))
        assert all(torch.allclose(p, q) for p, q in zip(algo.actor_average.parameters(), average.parameters()))
        acted = algo.act(obs, torch.Generator().manual_seed(3), best_of=1).flatten(1)
        assert torch.equal(acted, sample(algo.actor_average, obs, noise)[:, 0])
        assert torch.equal(algo.choose(obs, noise), sample(algo.actor, obs, noise)[:, 0])                 # a' of Eq. 1
        assert equal(algo.actor, usual.actor) and equal(algo.actor_old, usual.actor_old)
        algo.start_online()
        usual.start_online()


def test_top_k():
    candidates = torch.arange(12.0).reshape(2, 6, 1)
    scores = torch.tensor([[0.0, 5, 1, 4, 2, 3], [9.0, 1, 8, 2, 7, 3]])
    assert top_k_actions(candidates, scores, 3)[..., 0].tolist() == [[1, 3, 5], [6, 8, 10]]
    assert best_action(candidates, scores)[..., 0].tolist() == [1, 6]
    for k in (0, 7):
        with pytest.raises(ValueError, match="1 <= K <= N"):
            top_k_actions(candidates, scores, k)


def test_act_refuses_what_is_no_observation():
    algo = make()
    for obs in (torch.zeros(OBS), torch.zeros(2, OBS + 1), torch.full((1, OBS), torch.nan)):
        with pytest.raises(ValueError, match=r"obs must be finite numbers \[n, 4\]"):
            algo.act(obs)


def test_losses_of_other_settings_against_loops():
    """Two temperatures, neither 0.1; min; another gamma; weights and counts that all differ; chunks past an end."""
    algo = make(online=True, temperatures=(0.07, 0.3), q_aggregate="min", discount=0.9, bc_weight=0.7, topk_weight=1.3,
                num_generated=3, num_candidates=6, top_k=2, best_of=4)
    counts = {name: drawn.shape[1] for name, drawn in algo.draw_noise(B).items()}
    assert counts == dict(next=4, generated=3, candidates=6)
    batch = {name: value.double() for name, value in make_batch().items()}
    batch["masks"][:3], batch["valid"][:4, 2:] = 0, 0
    noise = {name: points(B, count, 5 * A, seed=7 + i) for i, (name, count) in enumerate(counts.items())}
    for seed, net in enumerate((algo.actor, algo.actor_old, algo.critic, algo.critic_target)):
        for i, p in enumerate(net.double().parameters()):
            p.data += points(*p.shape, seed=100 * seed + i, scale=0.2)

    def best(net, obs, drawn, k):
        actions = [net(obs, eps).clamp(-1, 1).detach() for eps in drawn]
        return sorted(actions, key=lambda a: -algo.critic(obs, a).min())[:k]
    critic_loss = 0
    for b in range(B):
        obs, following, action = batch["observations"][b], batch["next_observations"][b], batch["actions"][b].flatten()
        a, = best(algo.actor, following, noise["next"][b], 1)
        target = batch["rewards"][b] + 0.9**5 * batch["masks"][b] * algo.critic_target(following, a).min()
        critic_loss += batch["valid"][b, 4] * (algo.critic(obs, action) - target).square().sum() / (2 * B)
    assert torch.allclose(algo.critic_loss(batch, noise)[0], critic_loss)

    x = sample(algo.actor, batch["observations"], noise["generated"]).detach()
    data, ones = batch["actions"].flatten(1)[:, None], torch.ones(B, 9, dtype=torch.float64)
    kept = torch.stack([torch.stack(best(algo.actor_old, batch["observations"][b], noise["candidates"][b], 2))
                        for b in range(B)])
    mask = batch["valid"].repeat_interleave(A, 1)[:, None]

    def loops(x, y):
        loss, *_ = loop_loss(x, y, x[:, :0], (0.07, 0.3), ones[:, :3], ones[:, : y.shape[1]], ones[:, :0])
        return loss.mean().item()
    bc_loss, topk_loss = loops(x * mask, data * mask), loops(x, kept)
    loss, info = algo.actor_loss(batch, noise)
    assert [info[name].item() for name in ("bc_loss", "topk_loss")] == pytest.approx([bc_loss, topk_loss], rel=1e-8)
    assert loss.item() == pytest.approx(0.7 * bc_loss + 1.3 * topk_loss, rel=1e-8)


# ------------------------------------------------------------------------------------------------------------- bf16
def test_bf16_is_for_hidden_layers_alone():
    """Outputs and scores of passes without a gradient are in fp32; what trains is the same bit for bit. Q near -100,
    where bf16 knows only every half, keeps its digits."""
    exact, rounded = make(hidden=64), make(hidden=64)
    rounded.bf16 = True
    batch, noise = make_batch(), exact.draw_noise(8)
    obs, chunk = batch["observations"], batch["actions"].flatten(1)
    with rounded.candidate_precision():
        scores = rounded.critic.value(obs, chunk)
    assert scores.dtype == rounded.choose(obs, noise["next"]).dtype == torch.float32
    assert 0 < (scores - exact.critic.value(obs, chunk)).abs().max() < 0.05
    assert rounded.actor_loss(batch, noise)[0] == exact.actor_loss(batch, noise)[0]
    with torch.no_grad():
        rounded.critic.offsets[-1].fill_(1)                      # not in the bias, which is added afterwards
        rounded.critic.weights[-1].sub_(100 / 64)
    with rounded.candidate_precision():
        scores = rounded.critic.value(obs, chunk)
    assert (scores + 100).abs().max() < 20 and (4 * scores % 1).any()


@pytest.mark.parametrize("has, pays", [({"avx2": True}, False), ({"avx512_f": True, "avx512_bf16": False}, False),
                                       ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False),
                                       ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, True),
                                       ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
                                       ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True)])
def test_bf16_only_where_the_hardware_is_fast_in_it(has, pays, monkeypatch):
    """Emulated, it costs six times the fp32 pass: a laptop must not get it by default."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert make(precision="auto").bf16 == pays and not make(precision="fp32").bf16


# ------------------------------------------------------------------------------------------------------ the compiler
def test_without_a_compiler_the_plain_path_goes_on(monkeypatch, capsys):
    """... and says so once, for both losses; what the compiler is not to blame for goes through."""
    def failing(error):
        def call(*_):
            raise error
        monkeypatch.setattr(torch, "compile", lambda function, **how: call)
    fast.say_once.cache_clear()
    failing(RuntimeError("No working C++ compiler found in torch._inductor.config.cpp.cxx: (None, 'g++')"))
    batches = SimpleNamespace(chunks=make_batch)                 # a buffer whose starts are a seed
    plain, compiling = (fast.fast_update(make(compile=wanted), batches) for wanted in (False, True))
    assert plain(0) == compiling(0) and plain(1) == compiling(1)
    said = capsys.readouterr().out
    assert said.count("going on without it") == 1 and "apt install g++" in said
    failing(RuntimeError("C++ compile error\n\nOutput:\ncannot find -lc10\ncollect2: error: ld returned 1\n\n\n"
                         "Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n"))
    monkeypatch.setattr(torch, "__path__", ["/home/me/my code/.venv/torch"])
    assert fast.compiled(lambda x: x + 1)(1) == 2
    assert "(RuntimeError collect2: error: ld returned 1; the space in torch's path is to blame, /home/me/my code" in (
        capsys.readouterr().out)
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        fast.compiled(lambda x: x + 1)(1)


@pytest.mark.usefixtures("compiler")
def test_halves_side_by_side_equal_one_after_the_other(monkeypatch):
    """Bit for bit, over both stages."""
    monkeypatch.setattr(halves, "cores", lambda: 2)

    def trained(alone):
        monkeypatch.setattr(halves, "ALONE", alone)
        algo, infos = make(hidden=32, batch_size=64), []
        step = halves.Halves(algo)
        assert step.two
        for i in range(24):
            if i == 10:
                algo.start_online()
            infos.append(step.update(make_batch(i, 64), algo.draw_noise(64)))
        return infos, algo.state_dict(), step.alone
    (beside, state, alone), (after, same, _) = trained(3), trained(100)
    assert not alone and all(one.keys() == two.keys() for one, two in zip(beside, after))
    assert all(torch.equal(one[name], two[name]) for one, two in zip(beside, after) for name in one)
    assert all(torch.equal(state[part][name], same[part][name]) for part in halves.NETWORKS for name in state[part])


@pytest.mark.parametrize("half", ["critic", "actor"])
def test_what_fails_in_either_half_comes_up(half, monkeypatch):
    """... and nothing has moved."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    algo, before = make(online=True), make(online=True)
    monkeypatch.setattr(algo, f"{half}_loss", mock.Mock(side_effect=ValueError("out of joint")))
    step = halves.Halves(algo)
    step.two = True
    with pytest.raises(ValueError, match="out of joint"):
        step.update(make_batch(), algo.draw_noise(B))
    assert all(equal(getattr(algo, part), getattr(before, part)) for part in halves.NETWORKS)


@pytest.mark.parametrize("own", ["a third network", "candidates"])
def test_a_loss_that_cannot_be_halved_is_taken_as_written(own, monkeypatch, capsys):
    """A method of your own may train more than two networks, or read the candidates' noise itself."""
    fast.say_once.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    monkeypatch.setattr(halves, "cores", lambda: 2)
    third, algos = torch.nn.Parameter(torch.ones(2)), [make(online=True, compile=compile) for compile in (True, False)]

    class Own(DFP):
        def actor_loss(self, batch, noise):
            loss, info = super().actor_loss(batch, noise)
            more = third if own == "a third network" else sample(self.actor, batch["observations"], noise["candidates"])
            return loss + more.square().sum(), info
    for algo in algos:
        algo.__class__ = Own
        algo.optimizer.add_param_group({"params": [third]})
        third.data.fill_(1)
        for seed in range(3):
            fast.fast_update(algo, SimpleNamespace(chunks=make_batch))(seed)
    assert all(equal(getattr(algos[0], part), getattr(algos[1], part)) for part in halves.NETWORKS)
    assert "not that of the losses as written" in capsys.readouterr().out and (third != 1).all() == (own != "candidates")


def test_a_method_that_changes_goes_on_as_written(monkeypatch, capsys):
    """Compiled code would keep the weight that it met first."""
    fast.say_once.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)

    class Fading(DFP):
        weight = 1.0

        def update(self, *args, **kwargs):
            self.weight /= 2
            return super().update(*args, **kwargs)

        def actor_loss(self, batch, noise):
            loss, info = super().actor_loss(batch, noise)
            return self.weight * loss, info | {"weight": torch.tensor(self.weight)}

    algos = [make(online=True, compile=compile) for compile in (True, False)]
    for algo in algos:
        algo.__class__ = Fading
        update = fast.fast_update(algo, SimpleNamespace(chunks=make_batch))
        assert [update(seed)["weight"] for seed in range(3)] == [0.5, 0.25, 0.125]
    assert all(equal(getattr(algos[0], part), getattr(algos[1], part)) for part in halves.NETWORKS)
    assert "Fading.weight changes from update to update" in capsys.readouterr().out


def test_near_ties_in_bf16_are_no_fault_of_the_halves(monkeypatch):
    """Compiled, the K best may be others where candidates are nearly as good. The gradients on the same K are compared."""
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    algo = make(online=True)
    step, K = halves.Halves(algo), algo.config.top_k
    step.positives = lambda obs, noise: sample(algo.actor_old, obs, noise)[:, -K:]              # any K
    batch, noise = make_batch(), algo.draw_noise(B)
    assert not torch.equal(step.positives(batch["observations"], noise["candidates"]),
                           algo.positives(batch["observations"], noise["candidates"]))
    step.update(batch, noise)                                                                   # no ValueError


def test_halves_without_topk_choose_nothing(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    algo = make(online=True, method="dfp-no-topk")
    step, before = halves.Halves(algo), make(online=True, method="dfp-no-topk")
    step.positives = mock.Mock(side_effect=AssertionError("candidates were ranked"))
    batch, noise = make_batch(), algo.draw_noise(B)
    step.update(batch, noise)
    before.update(batch, noise)
    assert "candidates" in noise and torch.allclose(algo.actor.mlp.linears[0].weight, before.actor.mlp.linears[0].weight)


def test_gelu_has_one_value_in_two_forms():
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    form = torch.compile(gelu, backend="eager")                  # written for the compiler; it generates no code here
    assert not torch.equal(form(x), gelu(x)) and (form(x) - gelu(x)).abs().max() < 1e-12
    assert torch.equal(gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))
