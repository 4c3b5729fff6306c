"""Algorithm 1 as a whole: what depends on what, acting, stages, state."""
import copy

import pytest
import torch

import dfp
from config import build
from critic import Critic, move_towards
from dfp import DFP
from policy import Actor, gelu
from tools.ranking import compare
from topk import best_action, top_k_actions

OBS, A = 4, 2


def make(**knobs):
    return DFP(OBS, A, build(dict(task="lift", preset="quick", hidden=16, layers=2, batch_size=8, compile=False, precision="fp32") | knobs))


def make_batch(seed=0, B=8, H=5):
    g = torch.Generator().manual_seed(seed)
    n = lambda *s: torch.randn(*s, generator=g)                                # noqa: E731
    return dict(observations=n(B, OBS), actions=n(B, H, A).clamp(-1, 1), rewards=n(B), masks=torch.ones(B),
                next_observations=n(B, OBS), valid=torch.ones(B, H))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_update_is_a_function_of_batch_and_noise():
    one, two = make(), make()
    one.start_online()
    two.start_online()
    noise = one.draw_noise(8)
    two.draw_noise(8)
    torch.manual_seed(1)
    a = one.update(make_batch(), noise)
    torch.manual_seed(2)                                                       # the global generator plays no part
    b = two.update(make_batch(), noise)
    assert all(torch.equal(a[k], b[k]) for k in a) and same(one.actor, two.actor) and same(one.critic, two.critic)


def test_offline_has_no_topk_term_and_pi_old_rests():
    algo = make()
    old = copy.deepcopy(algo.actor_old)
    info = algo.update(make_batch())
    assert not any("topk" in name for name in info) and same(old, algo.actor_old)
    algo.start_online()
    assert same(algo.actor, algo.actor_old) and not same(old, algo.actor_old)
    info = algo.update(make_batch())
    assert "topk_loss" in info
    info = algo.update(make_batch())                   # one step of lag: after the second update pi_old has moved
    assert not same(algo.actor, algo.actor_old) and not same(old, algo.actor_old)


def test_table8_improves_from_the_first_step():
    algo = make(task="cube-single-task2", preset="offline-rl")
    batch = make_batch(H=1)
    assert "topk_loss" in algo.update(batch) and "topk_loss" in algo.update(batch)


def test_lambda_zero_leaves_pure_bc():
    """The control: with lambda = 0 the online actor step is the offline one, whatever the critic thinks."""
    online, offline = make(topk_weight=0.0), make()
    online.start_online()
    online.positives = None                                      # proposals are not even made
    noise = online.draw_noise(8)
    online.update(make_batch(), noise)
    offline.update(make_batch(), noise)
    assert same(online.actor, offline.actor)


def test_bc_mask_hides_the_next_episode():
    batch, other = make_batch(), make_batch()
    batch["valid"][:, 3:] = other["valid"][:, 3:] = 0
    other["actions"] = other["actions"].clone()
    other["actions"][:, 3:] = 0.77
    noise = make().draw_noise(8)
    results = {}
    for masked in (True, False):
        algos = make(mask_bc=masked), make(mask_bc=masked)
        for algo, b in zip(algos, (batch, other)):
            algo.update(b, noise)
        results[masked] = same(*(a.actor for a in algos)), same(*(a.critic for a in algos))
    assert results == {True: (True, True), False: (False, True)}               # the critic ignores such rows either way


def test_topk_moves_the_policy_to_what_the_critic_likes():
    """With a critic that likes large actions, L_topK moves the policy up; without it, it stays with the data."""
    final = {}
    for weight in (0.0, 2.0):
        algo = make(topk_weight=weight, ema_rate=0.05, lr=1e-2, num_candidates=16, top_k=2)
        algo.start_online()

        class Likes(Critic):
            def value(self, obs, chunk):
                return chunk.sum(-1)
        algo.critic.__class__ = Likes
        batch = make_batch() | {"actions": torch.zeros(8, 5, A)}
        for _ in range(150):
            algo.update(batch)
        final[weight] = algo.act(batch["observations"], torch.Generator().manual_seed(0), best_of=1).mean().item()
    assert final[2.0] > final[0.0] + 0.1 and abs(final[0.0]) < 0.1


def test_act_best_of_and_generators():
    algo = make()
    obs = make_batch()["observations"]
    actions = algo.act(obs.numpy(), torch.Generator().manual_seed(3))
    assert actions.shape == (8, 5, A) and actions.dtype == torch.float32 and actions.abs().max() <= 1
    assert torch.equal(actions, algo.act(obs, torch.Generator().manual_seed(3)))
    # best of N': the chosen chunk scores at least as high as each raw sample of the same noise
    noise = torch.randn(8, 4, 5 * A, generator=torch.Generator().manual_seed(3))
    samples = algo.actor(obs[:, None].expand(-1, 4, -1), noise).clamp(-1, 1)
    assert torch.equal(algo.critic.value(obs, actions.flatten(1)), algo.critic.value(obs, samples).amax(1))
    # one generator a row: a row's action does not depend on its neighbours
    g = lambda: [torch.Generator().manual_seed(i) for i in range(8)]           # noqa: E731
    assert torch.allclose(algo.act(obs, g())[5:6], algo.act(obs[5:6], g()[5:6]), atol=1e-6)
    assert not torch.equal(algo.act(obs, g(), best_of=1), algo.act(obs, g()))


def test_acting_does_not_disturb_training():
    one, two = make(), make()
    for i in range(3):
        one.update(make_batch(i))
        two.update(make_batch(i))
        two.act(make_batch()["observations"], torch.Generator().manual_seed(0))
    assert same(one.actor, two.actor)


def test_seed_decides():
    runs = [make(seed=s) for s in (0, 0, 1)]
    for algo in runs:
        algo.update(make_batch())
    assert same(runs[0].actor, runs[1].actor) and not same(runs[0].actor, runs[2].actor)


def test_state_goes_on_exactly():
    one, two = make(), make(seed=9)
    one.start_online()
    for i in range(3):
        one.update(make_batch(i))
    two.load_state_dict(copy.deepcopy(one.state_dict()))
    for i in range(3):
        a, b = one.update(make_batch(i)), two.update(make_batch(i))
        assert all(torch.equal(a[k], b[k]) for k in a)
    assert same(one.actor, two.actor) and same(one.actor_old, two.actor_old) and same(one.critic_target, two.critic_target)


def test_top_k():
    candidates = torch.arange(12.0).reshape(2, 6, 1)
    scores = torch.tensor([[0.0, 5, 1, 4, 2, 3], [9.0, 1, 8, 2, 7, 3]])
    assert top_k_actions(candidates, scores, 3)[..., 0].tolist() == [[1, 3, 5], [6, 8, 10]]
    assert best_action(candidates, scores)[..., 0].tolist() == [1, 6]
    for k in (0, 7):
        with pytest.raises(ValueError, match="1 <= K <= N"):
            top_k_actions(candidates, scores, k)


def test_average_moves_by_its_rate():
    a, b = Actor(2, 3, (4,)), Actor(2, 3, (4,))
    before = [p.clone() for p in a.parameters()]
    move_towards(a, b, 0.25)
    for new, old, source in zip(a.parameters(), before, b.parameters()):
        assert torch.allclose(new, 0.75 * old + 0.25 * source)


def test_bf16_ranks_in_fp32_and_values_in_fp32(monkeypatch):
    """precision auto: hidden layers of candidate passes in bf16, outputs, scores and the TD value in fp32."""
    monkeypatch.setattr(dfp, "bf16_pays", lambda device: True)
    exact, fast = make(hidden=64), make(hidden=64, precision="auto")
    batch, noise = make_batch(), exact.draw_noise(8)
    with fast.candidate_precision():
        scores = fast.critic.value(batch["observations"], batch["actions"].flatten(1))
    assert scores.dtype == torch.float32
    true = exact.critic.value(batch["observations"], batch["actions"].flatten(1))
    assert 0 < (scores - true).abs().max() < 0.05
    chosen = fast.choose(batch["next_observations"], noise["next"])
    assert chosen.dtype == torch.float32


def test_bf16_picks_what_fp32_picks_where_q_is_near_minus_100():
    """On a critic that was trained; the last layer in bf16 would know such values to 0.5 only."""
    algo, g = make(hidden=256), torch.Generator().manual_seed(0)
    direction = torch.randn(OBS + algo.chunk_dim, generator=g) / 2
    with torch.no_grad():
        algo.critic.offsets[-1].fill_(1.0)                                      # not in the bias, which is added afterwards
        algo.critic.weights[-1].sub_(100 / 256)
    for _ in range(200):
        x = torch.randn(256, OBS + algo.chunk_dim, generator=g)
        x[:, OBS:].clamp_(-1, 1)
        loss = (algo.critic(x[:, :OBS], x[:, OBS:]) + 100 - torch.tanh(x @ direction)).square().mean()
        algo.optimizer.zero_grad()
        loss.backward()
        algo.optimizer.step()
    algo.critic_target.load_state_dict(algo.critic.state_dict())
    found = compare(algo, torch.randn(500, OBS, generator=g), g)
    assert loss < 0.1 and abs(found["q"] + 100) < 1 and found["spread"] < 1
    assert found["overlap"] >= 0.95 and found["value"] < 1e-3 and 0 <= found["lost"] < 0.01, found


@pytest.mark.parametrize("has, pays", [({"avx2": True}, False), ({"avx512_f": True, "avx512_bf16": False}, False),
                                       ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False),
                                       ({"avx512_bf16": True, "cpu_name": "AMD EPYC 9R14"}, True),
                                       ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, False),
                                       ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, True)])
def test_bf16_only_where_the_hardware_is_fast_in_it(has, pays, monkeypatch):
    """Emulated, it costs six times the fp32 pass: a laptop must not get it by default."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert make(precision="auto").bf16 == pays and not make(precision="fp32").bf16


def test_without_a_compiler_the_plain_path_goes_on(monkeypatch, capsys):
    """... and says so once, for both losses; what the compiler is not to blame for goes through."""
    def failing(error):
        def call(*_):
            raise error
        monkeypatch.setattr(torch, "compile", lambda function: call)
    dfp.say_once.cache_clear()
    failing(RuntimeError("no C++ compiler"))
    plain, fast = make(), make(compile=True)
    a, b = (algo.update(make_batch()) for algo in (plain, fast))
    assert a == b and fast.update(make_batch()) == plain.update(make_batch())
    assert capsys.readouterr().out.count("going on without it") == 1
    failing(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        dfp.compiled(lambda x: x + 1)(1)


def test_gelu_has_one_value_in_two_forms():
    x = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    form = torch.compile(gelu, backend="eager")                     # written for the compiler; its code generation is not asked
    assert not torch.equal(form(x), gelu(x)) and (form(x) - gelu(x)).abs().max() < 1e-12
    assert torch.equal(gelu(x), torch.nn.functional.gelu(x, approximate="tanh"))


@pytest.mark.usefixtures("compiler")
def test_compiled_update_equals_the_plain_one():
    """From ten states along a plain run, an update of each: losses, forces and gradients. Then twenty in a row."""
    plain, fast = make(hidden=64), make(hidden=64, compile=True)
    plain.start_online()
    apart = lambda a, b: float((a - b).norm() / a.norm())                      # noqa: E731
    gradients = lambda algo: [p.grad for p in (*algo.actor.parameters(), *algo.critic.parameters())]          # noqa: E731

    def both(i, at_most):
        batch, noise = make_batch(i, 64), plain.draw_noise(64)
        a, b = plain.update(batch, noise), fast.update(batch, noise)
        for name in a:
            assert apart(a[name], b[name]) < at_most, (i, name)
    for i in range(100):
        if i % 10 == 0:
            fast.load_state_dict(copy.deepcopy(plain.state_dict()))
            both(i, 1e-4)
            assert all(apart(a, b) < 1e-4 for a, b in zip(gradients(plain), gradients(fast))), i
        else:
            plain.update(make_batch(i, 64))
    fast.load_state_dict(copy.deepcopy(plain.state_dict()))
    for i in range(20):
        both(100 + i, 1e-2)
    assert not same(plain.actor, fast.actor)                                   # it was another path
