"""What only a CUDA device can show: graphs replay the update as it is written. Skipped without one."""
import copy
import functools

import numpy as np
import pytest
import torch

import test_dfp
from buffer import FIELDS, ReplayBuffer
from config import METHODS
from test_dfp import A, B, OBS
from tools.speed import fast
from tools.speed.graph import PLAIN, graphed
from tools.speed.seeds import Together
from tools.training.files import read_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
make = functools.partial(test_dfp.make, device="cuda")


@pytest.fixture
def without_compiler(monkeypatch):
    """Graphs of the plain code."""
    monkeypatch.setattr(fast, "compiled", lambda function: function)


def transitions(n=50):
    rng = np.random.default_rng(0)
    width = {"observations": (OBS,), "next_observations": (OBS,), "actions": (A,)}
    dataset = {name: rng.uniform(-1, 1, (n, *width.get(name, ()))).astype("f4") for name in FIELDS}
    return dataset | dict(masks=rng.integers(0, 2, n).astype("f4"), terminals=(np.arange(n) % 7 == 6).astype("f4"))


def buffer_for(algo, device="cuda"):
    return ReplayBuffer(transitions(), 10, algo.chunk, 0.99, device, "cuda")


def begin_online(algorithms, buffers):
    for algo in algorithms:
        algo.start_online()
    for buffer in buffers:
        for _ in range(10):
            buffer.add(np.ones(OBS), np.ones(A), -1.0, False, False, np.ones(OBS))


def starts_for(seed, buffer):
    return buffer.starts(B, torch.Generator(buffer.device).manual_seed(seed))


def assert_close(info, other, step, rtol, atol):
    assert info.keys() == other.keys()
    for name in info:
        assert torch.allclose(info[name], other[name], rtol=rtol, atol=atol), (step, name)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("without_compiler")
def test_a_graph_replays_the_update(method):
    """Over both stages, with a copy half way (a resumed run): losses, weights, noise, and what would be saved."""
    plain, recorded = make(method), make(method)
    buffer = buffer_for(plain)
    update = graphed(fast.CompiledUpdate(recorded), [buffer], buffer.chunks)
    for step in range(24):
        if step == 8:
            begin_online((plain, recorded), [buffer])
        if step == 16:
            state = copy.deepcopy(recorded.state_dict())
            recorded = make(method)
            recorded.load_state_dict(state)
            update = graphed(fast.CompiledUpdate(recorded), [buffer], buffer.chunks)
        starts = starts_for(step, buffer)
        assert_close(plain.update(buffer.chunks(starts)), update(starts), step, rtol=1e-4, atol=1e-6)
        assert update.plain == max(0, PLAIN - 1 - step % 8) and (update.graph is not None) == (step % 8 >= PLAIN)
    for network in ("actor", "actor_old", "critic", "critic_target"):
        for p, q in zip(getattr(plain, network).parameters(), getattr(recorded, network).parameters()):
            assert torch.allclose(p, q, atol=1e-5)
    assert torch.equal(plain.generator.get_state(), recorded.generator.get_state())
    for a, b in zip(plain.optimizer.state.values(), recorded.optimizer.state.values()):
        assert float(a["step"]) == float(b["step"]) == 24
    assert not any(group["capturable"] for group in recorded.optimizer.param_groups)


def test_a_graph_of_several_seeds():
    plain, stacked = ([make("dfp", seed=k) for k in range(3)] for _ in range(2))
    buffers = [buffer_for(algo) for algo in plain]
    update = graphed(Together(stacked), buffers, lambda starts: [b.chunks(s) for b, s in zip(buffers, starts)])
    for step in range(16):
        if step == 8:
            begin_online((*plain, *stacked), buffers)
        starts = [starts_for(10 * step + k, b) for k, b in enumerate(buffers)]
        for algo, buffer, own_starts, info in zip(plain, buffers, starts, update(starts)):
            assert_close(algo.update(buffer.chunks(own_starts)), info, step, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method, data", [("dfp", "cuda"), ("mvp", "cuda"), ("dfp", "cpu")])
def test_compiled_and_recorded_equals_plain(method, data, monkeypatch, capsys):
    """Also where the data are not on the GPU, and the graph begins with the batch."""
    plain, algo, replays, replay = make(method), make(method, compile=True), [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: replays.append(0) or replay(self))
    buffer = buffer_for(plain, data)
    updates = [fast.fast_update(one, buffer) for one in (plain, algo)]
    for step in range(16):
        if step == 8:
            begin_online((plain, algo), [buffer])
        starts = starts_for(step, buffer)
        assert_close(*(update(starts) for update in updates), step, rtol=1e-3, atol=1e-5)
    assert len(replays) == 2 * (8 - PLAIN) and "going on without it" not in capsys.readouterr().out


def test_acting_from_a_graph_follows_the_weights():
    algo = make("dfp", compile=True)
    act, buffer, draws = fast.fast_act(algo), buffer_for(algo), [torch.Generator().manual_seed(0) for _ in range(2)]
    assert act != algo.act
    for step in range(6):
        algo.update(buffer.chunks(starts_for(step, buffer)))
        obs = np.full((1, OBS), step / 6, np.float32)
        assert torch.allclose(act(obs, draws[0]), algo.act(obs, draws[1]), atol=1e-5)


def test_batches_from_the_gpu_equal_those_from_memory():
    buffers = [ReplayBuffer(transitions(), 10, 5, 0.99, device) for device in ("cpu", "cuda")]
    begin_online((), buffers)
    starts = torch.arange(56)
    here, there = buffers[0].chunks(starts), buffers[1].chunks(starts.cuda())
    for name in here:
        assert torch.allclose(here[name], there[name].cpu(), atol=1e-6)
    moved = ReplayBuffer(transitions(), 10, 5, 0.99, "cpu", "cuda")
    batch = moved.chunks(moved.starts(B, torch.Generator().manual_seed(0)))
    assert not moved.observations.is_cuda and all(value.is_cuda for value in batch.values())


def test_both_stages_on_the_gpu(train):
    """With and without the graph, killed half way or not: the same numbers, up to rounding."""
    folders = [train("fast", device="cuda", compile=True), train("plain", device="cuda")]
    train("cut", device="cuda", compile=True, online_steps=20)
    folders.append(train("cut", device="cuda", compile=True, resume=True))
    tables = [{row["step"]: row for row in read_rows(folder / "train.csv")} for folder in folders]
    for table in tables[1:]:
        for step, row in tables[0].items():
            for name in row.keys() - {"stage"}:
                one, two = row[name], table[step][name]
                assert one == two == "" or float(one) == pytest.approx(float(two), rel=1e-2, abs=1e-4), (step, name)
