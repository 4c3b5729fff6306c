"""Our numbers against the paper's own code (tests/golden: inputs and outputs recorded in float32).

    pytest tests/test_golden.py --golden DIR        any folder of the same layout: other shapes, weights, aggregation

Errors are relative to the largest reference magnitude of an array, as the recording's own tolerances are.
"""
import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines.flow import FQL
from baselines.meanflow import MVPTopK
from buffer import FIELDS, ReplayBuffer
from config import Config
from critic import Critic, td_loss, td_target
from dfp import DFP
from drift import drift_loss
from policy import MLP, Actor, sample
from topk import top_k_actions

SKIPPED = ("plus_only", "use_neg_only")            # options of the recorded code that DFP does not use
# The recording's names of our settings. What a file does not record is Table 5's.
SETTINGS = dict(lr="lr", discount="discount", tau="target_rate", ema_tau="ema_rate", gen_per_label="num_generated",
                n_candidates="num_candidates", top_k="top_k", alpha_target="bc_weight", alpha_pos="topk_weight",
                flow_steps="flow_steps", alpha="distill_weight", ivc_lambda="ivc_weight", lognorm_mu="time_mean",
                lognorm_sigma="time_std")


@pytest.fixture(scope="module")
def golden(request):
    folder = Path(request.config.getoption("--golden"))

    def open_file(name):
        with np.load(folder / f"{name}.npz") as z:
            return {key: torch.from_numpy(z[key]) if z[key].ndim else z[key].item() for key in z.files}
    return open_file


def close(got, ref, tolerance, what=""):
    got, ref = (torch.as_tensor(x, dtype=torch.float64).detach() for x in (got, ref))
    assert got.shape == ref.shape, f"{what}: shape {tuple(got.shape)} != {tuple(ref.shape)}"
    largest, error = (x.abs().max().item() for x in (ref, got - ref))
    assert error <= (tolerance * largest or 1e-7), f"{what}: error {error:.3g} of {largest:.3g}, allowed {tolerance}"


def match(recorded, tolerance, **found):
    """Each value that we found against the array recorded under its name."""
    for name, value in found.items():
        close(value, recorded[name], tolerance, name)


def named(z, prefix):
    """{"dense0/kernel": ..., ...} below a prefix."""
    return {key[len(prefix) + 1:]: value for key, value in z.items() if key.startswith(prefix + "/")}


def all_pairs(net, arrays):
    """(our parameter, recorded array in our layout) for each array of a network."""
    for name, array in arrays.items():
        layer, part = name.split("/")
        i = int(layer.lstrip("densorm"))
        if isinstance(net, Critic):
            ours = dict(densekernel=net.weights, densebias=net.biases, normscale=net.gains, normbias=net.offsets)
            yield ours[layer.rstrip("0123456789") + part][i], array if part == "kernel" else array[:, None]
        else:
            linear = getattr(net, "mlp", net).linears[i]
            yield (linear.weight, array.T) if part == "kernel" else (linear.bias, array)


def fill(net, arrays):
    with torch.no_grad():
        for parameter, value in all_pairs(net, arrays):
            assert parameter.shape == value.shape
            parameter.copy_(value)
    return net


def sizes(arrays, ensemble):
    """(inputs, hidden sizes, outputs, members) from the recorded kernels."""
    kernels = [arrays[f"dense{i}/kernel"] for i in range(sum(k.endswith("kernel") for k in arrays))]
    dims = [k.shape[-2] for k in kernels] + [kernels[-1].shape[-1]]
    return dims[0], tuple(dims[1:-1]), dims[-1], kernels[0].shape[0] if ensemble else 1


def make_critic(arrays, chunk_dim):
    inputs, hidden, _, members = sizes(arrays, True)
    return fill(Critic(inputs - chunk_dim, chunk_dim, hidden, members), arrays)


def make_dfp(z, prefix="", algorithm=DFP, actor="actor"):
    """A DFP, or a baseline, with the recorded networks and settings; `actor` is the recorded name of actor.mlp."""
    actor, critic, recorded = named(z, prefix + actor), named(z, prefix + "critic"), named(z, "cfg")
    _, hidden, D, _ = sizes(actor, False)
    inputs, critic_hidden, _, members = sizes(critic, True)
    chunk = next(z[key].shape[1] for key in z if key.endswith("batch/actions"))
    known = {ours: recorded[theirs] for theirs, ours in SETTINGS.items() if theirs in recorded}
    config = Config(**known, chunk=chunk, hidden=1, layers=1, q_aggregate="min" if recorded.get("q_agg_min") else "mean",
                    mask_bc=False, temperatures=recorded.get("temps", torch.empty(0)).tolist())
    algo = algorithm(inputs - D, D // chunk, config)
    # Networks of any hidden widths take the place of the config's, whose are all equal.
    algo.actor = fill(algo.make_actor(inputs - D, D, hidden), actor)
    algo.critic = fill(Critic(inputs - D, D, critic_hidden, members, config.q_aggregate), critic)
    algo.actor_old, algo.critic_target = (copy.deepcopy(net).requires_grad_(False) for net in (algo.actor, algo.critic))
    algo.optimizer = torch.optim.Adam([*algo.actor.parameters(), *algo.critic.parameters()], config.lr)
    for net, name in ((algo.critic_target, "target_critic"), (algo.actor_old, "actor_ema")):
        if f"{prefix}{name}/dense0/kernel" in z:
            fill(net, named(z, prefix + name))
    return algo


def chunk_batch(z):
    batch = named(z, "batch")
    return {"observations": batch["observations"], "actions": batch["actions"], "valid": batch["valid"]} | (
        {"rewards": batch["rewards"][:, -1], "masks": batch["masks"][:, -1],
         "next_observations": batch["next_observations"][:, -1]} if "rewards" in batch else {})


def noise_of(z):
    """What is recorded of the noise of an update, as [B, n, D]: rows of [B] states, or of [B * n] samples."""
    states, names = len(z["batch/observations"]), dict(next="next", generated="gen", candidates="select")
    rows = {ours: z.get(f"noise_{theirs}") for ours, theirs in names.items()}
    return {name: x.reshape(states, -1, x.shape[-1]) for name, x in rows.items() if x is not None}


def gradients_match(net, arrays, tolerance):
    for parameter, value in all_pairs(net, arrays):
        close(parameter.grad, value, tolerance, "gradient")


def backward_matches(loss, net, arrays, tolerance):
    loss.backward()
    gradients_match(net, arrays, tolerance)


def squared_forces(info, temperatures, prefix=""):
    """[R]: what the recording calls temp_loss."""
    return torch.stack([info[f"{prefix}force_rms_{r:g}"] for r in temperatures]).square()


# ------------------------------------------------------------------------------------------------------------ field
def test_drift_field(golden):
    z = golden("drift_field")
    cases = {key.split("/")[0]: named(z, key.split("/")[0]) for key in z}
    cases = {case: c for case, c in cases.items() if not any(c.get(option) for option in SKIPPED)}
    assert len(cases) >= 10
    for case, c in cases.items():
        tolerance, for_gradient = (2e-4, 3e-4) if case.startswith("float_") else (2e-5, 1e-4)
        x = c["gen"].clone().requires_grad_()
        temperatures = tuple(round(r, 6) for r in c["R_list"].tolist())
        loss, info = drift_loss(x, c["fixed_pos"], c.get("fixed_neg"), temperatures=temperatures,
                                positive_weight=c.get("weight_pos"), generated_weight=c.get("weight_gen"),
                                negative_weight=c.get("weight_neg"))
        loss.mean().backward()
        match(c, tolerance, loss=loss, loss_mean=loss.mean(), scale=info["scale"],
              temp_loss=squared_forces(info, temperatures))
        match(c, for_gradient, grad_gen=x.grad)


# --------------------------------------------------------------------------------------------------------- networks
def test_networks(golden):
    z = golden("networks")
    D = z["act"].shape[1]
    critic, big = (make_critic(named(z, name), D) for name in ("critic", "critic_big"))
    inputs, hidden, outputs, _ = sizes(named(z, "actor"), False)
    actor = fill(Actor(inputs - outputs, outputs, hidden), named(z, "actor"))
    match(z, 1e-5, critic_out=critic(z["obs"], z["act"]), critic_out_nd=critic(z["obs_nd"], z["act_nd"]),
          critic_big_out=big(z["obs"], z["act"]), actor_out=actor(z["obs"], z["noise"]))
    for name in ("time1", "time2"):                # the MLP with time columns, as the baselines use it
        arrays = named(z, f"actor_{name}")
        mlp = fill(MLP(*sizes(arrays, False)[:3]), arrays)
        close(mlp(torch.cat([z["obs"], z["noise"], z[name]], -1)), z[f"actor_{name}_out"], 1e-5)


@pytest.mark.parametrize("kind", ["critic", "actor"])
def test_initial_values(golden, kind):
    """Xavier-uniform for each member, zero biases: bounds and spread per layer as recorded."""
    z = {key.removeprefix(f"{kind}_"): value for key, value in named(golden("networks"), "init").items()}
    fan_in, fan_out = z["fan_in"].tolist(), z["fan_out"].tolist()
    if kind == "critic":
        critic = Critic(3, fan_in[0] - 3, tuple(fan_in[1:]), ensemble=20)
        weights, biases = critic.weights, critic.biases
        assert all((gain == 1).all() and (offset == 0).all() for gain, offset in zip(critic.gains, critic.offsets))
    else:
        mlps = [MLP(fan_in[0], tuple(fan_in[1:]), fan_out[-1]).linears for _ in range(20)]
        weights = [torch.stack([linear.weight.T for linear in layer]) for layer in zip(*mlps)]
        biases = [linear.bias for linears in mlps for linear in linears]
    for a, b, weight, recorded in zip(fan_in, fan_out, weights, z["kernel_absmax"], strict=True):
        bound = (6 / (a + b)) ** 0.5
        assert weight.shape == (20, a, b) and len(weight.flatten(1).unique(dim=0)) == 20
        assert 0.9 * bound < weight.abs().max() <= bound and recorded <= bound * (1 + 1e-6)
        assert abs(weight.std() - bound / 3**0.5) < 0.1 * bound
    assert not any(bias.any() for bias in biases) and not z["bias_absmax"].any()


# ------------------------------------------------------------------------------------------------------------ critic
def test_td_loss(golden):
    z = golden("critic_td")
    batch, algo = chunk_batch(z), make_dfp(z)
    obs, noise = batch["next_observations"], z["noise_next"]
    candidates = sample(algo.actor, obs, noise)
    next_q = algo.critic_target.value(obs, z["next_actions"])
    target = td_target(batch["rewards"], batch["masks"], next_q, z["cfg/discount"], z["cfg/horizon"])
    match(z, 1e-5, cand_actions=candidates, cand_q=algo.critic.value(obs, candidates),
          next_actions=algo.choose(obs, noise), next_q=next_q, target_q=target)
    q = algo.critic(batch["observations"], batch["actions"].flatten(1))
    match(z, 2e-5, critic_loss=td_loss(q, target, batch["valid"][:, -1]))
    loss, _ = algo.critic_loss(batch, noise_of(z))
    match(z, 2e-5, critic_loss=loss)
    backward_matches(loss, algo.critic, named(z, "grad/critic"), 1e-4)


# ------------------------------------------------------------------------------------------------------------- actor
def test_actor_offline(golden):
    z = golden("actor_offline")
    z |= {f"critic/{k}": v for k, v in named(golden("critic_td"), "critic").items()}           # unused, but must exist
    algo = make_dfp(z)
    algo.config.bc_weight = z["cfg/alpha"]
    loss, info = algo.actor_loss(chunk_batch(z), noise_of(z))
    match(z, 2e-4, actor_loss=loss, drift_scale=info["bc_scale"],
          drift_temp_loss=squared_forces(info, algo.config.temperatures, "bc_"))
    backward_matches(loss, algo.actor, named(z, "grad/actor"), 3e-4)


def test_actor_online(golden):
    z = golden("actor_online")
    algo = make_dfp(z)
    algo.improving = True
    obs = z["batch/observations"]
    scores = algo.critic.value(obs, z["cand_actions"])
    match(z, 1e-5, cand_q=scores)
    kept = scores.topk(z["cfg/top_k"], dim=1).indices
    assert [set(row) for row in kept.tolist()] == [set(row) for row in z["top_idx"].tolist()]
    # Ascending in the recording, best first here: the drift does not care about the order.
    match(z, 1e-6, pos=top_k_actions(z["cand_actions"], scores, z["cfg/top_k"]).flip(1))

    loss, info = algo.actor_loss(chunk_batch(z), noise_of(z))
    match(z, 2e-4, actor_loss=loss, weighted_loss_pos=algo.config.topk_weight * info["topk_loss"],
          weighted_loss_target=algo.config.bc_weight * info["bc_loss"],
          drift_pos_scale=info["topk_scale"], drift_target_scale=info["bc_scale"])
    backward_matches(loss, algo.actor, named(z, "grad/actor"), 3e-4)


# ----------------------------------------------------------------------------------------------------- whole updates
def update(algo, z):
    info = algo.update(chunk_batch(z), noise_of(z))
    topk, bc = (squared_forces(info, algo.config.temperatures, term) for term in ("topk_", "bc_"))
    match(z, 2e-4, critic_loss=info["critic_loss"], actor_loss=info["actor_loss"],
          drift_pos_temp_loss=topk, drift_target_temp_loss=bc)


def match_after(z, tolerance, **networks):
    for name, net in networks.items():
        for parameter, value in all_pairs(net, named(z, f"after/{name}")):
            assert (parameter - value).abs().max() <= tolerance, name


@pytest.mark.parametrize("file", ["full_step", "full_step_amplified"])
def test_full_step(golden, file):
    z = golden(file)
    algo = make_dfp(z, "before/")
    algo.improving = True
    update(algo, z)
    match_after(z, 5e-7, target_critic=algo.critic_target, actor_ema=algo.actor_old)
    for net, name in ((algo.critic, "critic"), (algo.actor, "actor")):
        gradients_match(net, named(z, f"grad/{name}"), 3e-4)
        rows = zip(*(all_pairs(net, named(z, f"{when}/{name}")) for when in ("after", "grad")))
        for (parameter, after), (_, gradient) in rows:
            clear = gradient.abs() > 1e-5    # Adam's first step is lr * sign: undefined where the gradient is rounding
            assert ((parameter - after)[clear].abs() <= 0.005 * z["cfg/lr"]).all(), name


def test_three_steps(golden):
    z = golden("three_steps")
    algo = make_dfp(z, "before/")
    algo.improving = True
    for step in range(z["cfg/n_steps"]):
        update(algo, named(z, f"step{step}"))
    match_after(z, 1e-6, target_critic=algo.critic_target, actor_ema=algo.actor_old)
    match_after(z, 1e-5, critic=algo.critic, actor=algo.actor)


# ----------------------------------------------------------------------------------------------------- chunk sampling
@pytest.mark.parametrize("group", ["h", "h1", "hlong", "replay"])
def test_chunk_sampling(golden, group):
    z = golden("sequence_sampling")
    g = named(z, group)
    h = named(z, "h") if group == "replay" else g                          # replay: the set's own chunk length
    dataset = {name: value.numpy() for name, value in named(z, "data").items() if name != "episode_end_idx"}
    buffer = ReplayBuffer(dataset, g.get("capacity", 0), h["horizon"], h["discount"])
    buffer.terminals[buffer.offline_size - 1] = float(dataset["terminals"][-1])      # as recorded
    for obs, action, reward, mask, terminal, next_obs in zip(*(g.get(f"extra_{name}", ()) for name in FIELDS)):
        buffer.add(obs, action, reward.item(), mask.item() == 0, terminal.item() == 1 and mask.item() == 1, next_obs)
    assert buffer.size - buffer.chunk + 1 == g["idx_upper_exclusive"]
    recorded = g | {"rewards": g["rewards"][:, -1], "masks": g["masks"][:, -1],
                    "next_observations": g["next_observations_last"]}
    for name, value in buffer.chunks(g["idxs"].long()).items():
        close(value, recorded[name], 1e-5, name)


# ------------------------------------------------------------------------------------------------------------ baselines
def test_flow(golden):
    """FQL, and BFN within it: flow loss, Euler's teacher, the student's two terms, both gradients, best of N."""
    z = named(golden("flow_meanflow"), "acfql")
    algo = make_dfp(z, algorithm=FQL, actor="bc_flow")
    fill(algo.actor.student, named(z, "onestep"))
    algo.config.mask_bc = True                                          # recorded with the mask
    noise = {"path": z["x0"], "time": z["t"], "student": z["noise_onestep"]}
    obs, eps = z["batch/observations"], z["noise_onestep"]
    match(z, 1e-5, flow_actions=algo.actor.integrate(obs, eps).clamp(-1, 1),
          onestep_actions_unclipped=algo.actor(obs, eps))

    algo.critic.aggregate = "min"                                       # -Q is the ensemble's mean all the same
    loss, info = algo.actor_loss(chunk_batch(z), noise)
    algo.critic.aggregate = algo.config.q_aggregate
    loss = loss + (z["cfg/q_alpha"] - 1) * info["q_loss"]               # FQL's own weight of Q is 1
    match(z, 2e-5, bc_flow_loss=info["flow_loss"], distill_loss=info["distill_loss"],
          q_loss=z["cfg/q_alpha"] * info["q_loss"], actor_loss=loss)
    backward_matches(loss, algo.actor, named(z, "grad/bc_flow"), 1e-4)
    gradients_match(algo.actor.student, named(z, "grad/onestep"), 1e-4)
    assert all(p.grad is None for p in algo.critic.parameters())        # Q is climbed, not bent

    algo.actor.forward = algo.actor.integrate                           # BFN: the flow itself acts
    close(algo.choose(z["bon/observations"], z["bon/noise"]), z["bon/actions"], 1e-5, "best of N")


@pytest.fixture
def mvp(golden):
    """(recorded arrays, MVP with top-K as recorded, its noise offline, its noise online)."""
    z = named(golden("flow_meanflow"), "meanflow")
    n, k = z["cfg/n_candidates"], z["cfg/top_k"]
    offline, online = (torch.stack([z[f"{stage}/z_t"], z[f"{stage}/z_r"]], -1) for stage in ("offline", "online"))
    # Online rows are, for each state, K positives, worst first (ours: best first), and then the data's chunk.
    eps, times = (rows.unflatten(0, (-1, k + 1)) for rows in (z["online/eps"], online))
    return (z, make_dfp(z, algorithm=MVPTopK),
            {"path": z["offline/eps"][:, None], "times": offline[:, None]},
            {"path": eps[:, k:], "topk_path": eps[:, :k].flip(1), "times": times[:, k:],
             "topk_times": times[:, :k].flip(1), "candidates": z["online/noise_select"].unflatten(0, (-1, n))})


@pytest.mark.parametrize("compiled", [False, True])                   # compiled: half a minute
def test_meanflow_offline(mvp, compiled, request):
    """The JVP survives the compiler, without a graph break: the same losses and gradients."""
    if compiled:
        request.getfixturevalue("compiler")
    z, algo, noise, _ = mvp
    algo.config.mask_bc, algo.config.bc_weight = True, z["cfg/alpha"]                         # recorded with the mask
    actor_loss = torch.compile(algo.actor_loss, fullgraph=True) if compiled else algo.actor_loss
    loss, info = actor_loss(chunk_batch(z), noise)
    match(named(z, "offline"), 2e-5, mf_loss=info["mf_loss"], ivc_loss=info["ivc_loss"], actor_loss=loss)
    backward_matches(loss, algo.actor, named(z, "offline/grad/actor"), 1e-4)
    close(algo.choose(z["batch/observations"], z["onestep/noise"][:, None]), z["onestep/actions"], 1e-5, "one step")


def test_meanflow_online(mvp):
    z, algo, _, noise = mvp
    algo.improving = True
    recorded, obs, k = named(z, "online"), z["batch/observations"], z["cfg/top_k"]
    scores = algo.critic.value(obs, sample(algo.actor_old, obs, noise["candidates"]))
    match(recorded, 1e-5, cand_q=scores, top_actions=algo.positives(obs, noise["candidates"]).flip(1))
    assert scores.topk(k, dim=1).indices.flip(1).tolist() == recorded["top_idx"].tolist()

    loss, info = algo.actor_loss(chunk_batch(z), noise)
    topk_loss = algo.config.topk_weight * info["topk_loss"]
    match(recorded, 2e-5, actor_loss=loss, weighted_loss_pos=topk_loss, weighted_loss_target=loss - topk_loss)
    backward_matches(loss, algo.actor, named(z, "online/grad/actor"), 1e-4)
    positives = recorded["top_actions"].flip(1)
    mf, ivc = algo.errors({"observations": obs}, positives, noise["topk_path"], noise["topk_times"])
    match(recorded, 2e-5, mf_loss=(k * mf.mean() + info["mf_loss"]) / (k + 1),      # means over positives and data
          ivc_loss=(k * ivc.mean() + info["ivc_loss"]) / (k + 1))
