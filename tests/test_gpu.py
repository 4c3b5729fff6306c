"""What only a CUDA device can show: graphs replay the update as it is written. Skipped without one."""
import copy

import numpy as np
import pytest
import torch

import run
from config import METHODS, build
from data import FIELDS, ReplayBuffer
from test_dfp import A, OBS
from tools import graph
from tools.rows import read_rows
from tools.seeds import Together

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
B = 8


def make(method, **knobs):
    small = dict(task="lift", method=method, preset="quick", hidden=16, layers=2, batch_size=B, compile=False, precision="fp32")
    return run.algorithm(build(small | knobs), OBS, A, "cuda")


@pytest.fixture
def without_compiler(monkeypatch):
    """Graphs of the plain code."""
    monkeypatch.setattr(graph, "wanted", lambda *_: True)


def transitions(n=50):
    rng = np.random.default_rng(0)
    width = {"observations": (OBS,), "next_observations": (OBS,), "actions": (A,)}
    dataset = {name: rng.uniform(-1, 1, (n, *width.get(name, ()))).astype("f4") for name in FIELDS}
    return dataset | dict(masks=rng.integers(0, 2, n).astype("f4"), terminals=(np.arange(n) % 7 == 6).astype("f4"))


def buffer_for(algo, device="cuda"):
    return ReplayBuffer(transitions(), 10, algo.chunk, 0.99, device, "cuda")


def begin_online(algorithms, buffers):
    for a in algorithms:
        a.start_online()
    for b in buffers:
        for _ in range(10):
            b.add(np.ones(OBS), np.ones(A), -1.0, False, False, np.ones(OBS))


def starts_for(seed, buffer):
    return buffer.starts(B, torch.Generator(buffer.device).manual_seed(seed))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.usefixtures("without_compiler")
def test_a_graph_replays_the_update(method):
    """Over both stages, with a copy half way (a resumed run): losses, weights, noise, and what would be saved."""
    plain, recorded = make(method), make(method)
    buffer = buffer_for(plain)
    update = graph.graphed(recorded, [buffer], buffer.chunks)
    for step in range(24):
        if step == 8:
            begin_online((plain, recorded), [buffer])
        if step == 16:
            state = copy.deepcopy(recorded.state_dict())
            recorded = make(method)
            recorded.load_state_dict(state)
            update = graph.graphed(recorded, [buffer], buffer.chunks)
        alone, info = plain.update(buffer.chunks(starts_for(step, buffer))), update(starts_for(step, buffer))
        assert alone.keys() == info.keys()
        for name in alone:
            assert torch.allclose(alone[name], info[name], rtol=1e-4, atol=1e-6), (step, name)
        assert update.plain == max(0, graph.PLAIN - 1 - step % 8) and (update.graph is not None) == (step % 8 >= graph.PLAIN)
    for network in ("actor", "actor_old", "critic", "critic_target"):
        for p, q in zip(getattr(plain, network).parameters(), getattr(recorded, network).parameters()):
            assert torch.allclose(p, q, atol=1e-5)
    assert torch.equal(plain.generator.get_state(), recorded.generator.get_state())
    for a, b in zip(plain.optimizer.state.values(), recorded.optimizer.state.values()):
        assert float(a["step"]) == float(b["step"]) == 24
    assert not any(group["capturable"] for group in recorded.optimizer.param_groups)


@pytest.mark.usefixtures("without_compiler")
def test_a_graph_of_several_seeds():
    plain, stacked = ([make("dfp", seed=k) for k in range(3)] for _ in range(2))
    together, buffers = Together(stacked), [buffer_for(a) for a in plain]
    update = graph.graphed(together, buffers, lambda starts: [b.chunks(at) for b, at in zip(buffers, starts)])
    for step in range(16):
        if step == 8:
            begin_online((*plain, *stacked), buffers)
        starts = [starts_for(10 * step + k, b) for k, b in enumerate(buffers)]
        for a, b, at, info in zip(plain, buffers, starts, update(starts)):
            for name, value in a.update(b.chunks(at)).items():
                assert torch.allclose(value, info[name], rtol=1e-3, atol=1e-5), (step, name)


@pytest.mark.parametrize("method, data", [("dfp", "cuda"), ("mvp", "cuda"), ("dfp", "cpu")])
def test_compiled_and_recorded_equals_plain(method, data, monkeypatch, capsys):
    """Also where the data are not on the GPU, and the graph begins with the batch."""
    plain, fast, replays, replay = make(method), make(method, compile=True), [], torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: replays.append(0) or replay(self))
    buffer = buffer_for(plain, data)
    update = graph.graphed(fast, [buffer], buffer.chunks)
    assert not isinstance(graph.graphed(plain, [buffer], buffer.chunks), graph.Graph)
    for step in range(16):
        if step == 8:
            begin_online((plain, fast), [buffer])
        starts = starts_for(step, buffer)
        alone, info = plain.update(buffer.chunks(starts)), update(starts)
        for name in alone:
            assert torch.allclose(alone[name], info[name], rtol=1e-3, atol=1e-5), (step, name)
    assert len(replays) == 2 * (8 - graph.PLAIN) and "going on without it" not in capsys.readouterr().out


def test_acting_from_a_graph_follows_the_weights(monkeypatch):
    algo = make("dfp")
    monkeypatch.setattr(graph, "wanted", lambda *_: True)
    act, buffer, draws = graph.acting(algo), buffer_for(algo), [torch.Generator().manual_seed(0) for _ in range(2)]
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
    moved = ReplayBuffer(transitions(), 10, 5, 0.99, "cpu", "cuda").sample(B, torch.Generator().manual_seed(0))
    assert not buffers[0].data["steps"].is_cuda and all(value.is_cuda for value in moved.values())


def test_both_stages_on_the_gpu(train):
    """With and without the graph, killed half way or not: the same numbers, up to rounding."""
    folders = [train("fast", device="cuda", compile=True), train("plain", device="cuda")]
    train("cut", device="cuda", compile=True, online_steps=20)
    folders.append(train("cut", device="cuda", compile=True, resume=True))
    first, *others = [read_rows(folder / "train.csv") for folder in folders]
    for other in others:
        other = {row["step"]: row for row in other}
        for row in first:
            for name in row.keys() - {"stage"}:
                assert row[name] == other[row["step"]][name] == "" or float(row[name]) == pytest.approx(float(other[row["step"]][name]), rel=1e-2, abs=1e-4)
