"""Chunk sampling against a plain loop over episodes."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from config import UserError
from data import FIELDS, ReplayBuffer

GAMMA = 0.9


def make_dataset(lengths, terminated, seed, obs_dim=3, action_dim=2):
    """Episodes one after the other; every number is unique, so that a wrong row cannot go unseen."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    ends = np.cumsum(lengths) - 1
    terminals, masks = np.zeros(n, np.float32), np.ones(n, np.float32)
    terminals[ends] = 1
    masks[ends[np.array(terminated)]] = 0
    return dict(observations=rng.normal(size=(n, obs_dim)).astype(np.float32), actions=rng.normal(size=(n, action_dim)).astype(np.float32),
                rewards=rng.normal(size=n).astype(np.float32), masks=masks, terminals=terminals,
                next_observations=rng.normal(size=(n, obs_dim)).astype(np.float32))


def check_against_loop(buffer, rows, starts, chunk):
    batch = buffer.chunks(torch.tensor(starts))
    for b, start in enumerate(starts):
        value, mask, over = 0.0, 1.0, False
        for k in range(chunk):
            row = rows[start + k]
            assert batch["valid"][b, k] == (0 if over else 1)
            assert torch.equal(batch["actions"][b, k], torch.as_tensor(row["actions"]))
            value += GAMMA**k * float(row["rewards"])
            mask = min(mask, float(row["masks"]))
            over = over or row["terminals"] == 1
        assert batch["rewards"][b].item() == pytest.approx(value, abs=1e-4)
        assert batch["masks"][b] == mask
        assert torch.equal(batch["observations"][b], torch.as_tensor(rows[start]["observations"]))
        assert torch.equal(batch["next_observations"][b], torch.as_tensor(rows[start + chunk - 1]["next_observations"]))


@settings(max_examples=60, deadline=None)
@given(episodes=st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8),
       online=st.lists(st.tuples(st.integers(1, 9), st.booleans()), max_size=5), chunk=st.integers(1, 6),
       cut=st.integers(0, 8), seed=st.integers(0, 2**16))
def test_chunks_equal_a_loop_over_episodes(episodes, online, chunk, cut, seed):
    """Data with terminations and truncations, then online episodes, the last one still running."""
    dataset = make_dataset(*zip(*episodes), seed)
    extra = make_dataset(*zip(*online), seed + 1) if online else None
    total = sum(n for n, _ in episodes) + (sum(n for n, _ in online) if online else 0)
    if sum(n for n, _ in episodes) < chunk:
        with pytest.raises(UserError, match="fewer than one chunk"):
            ReplayBuffer(dataset, 0, chunk, GAMMA)
        return
    buffer = ReplayBuffer(dataset, total, chunk, GAMMA)
    rows = [{k: v[i] for k, v in dataset.items()} for i in range(len(dataset["rewards"]))]
    if online:
        added = [{k: v[i] for k, v in extra.items()} for i in range(len(extra["rewards"]))]
        added = added[: max(1, len(added) - cut)]
        for row in added:
            ended = row["terminals"] == 1
            buffer.add(row["observations"], row["actions"], row["rewards"], bool(row["masks"] == 0),
                       bool(ended and row["masks"] == 1), row["next_observations"])
        rows += added
    assert buffer.size == len(rows)
    starts = list(range(len(rows) - chunk + 1))
    check_against_loop(buffer, rows, starts, chunk)
    drawn = buffer.sample(400, torch.Generator().manual_seed(seed))["observations"]
    known = {tuple(rows[s]["observations"].tolist()) for s in starts}
    assert {tuple(o.tolist()) for o in drawn} <= known
    if len(starts) <= 20:
        assert len({tuple(o.tolist()) for o in drawn}) == len(known)           # every start is drawn, the last one too


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()), max_size=30), seed=st.integers(0, 2**16))
def test_online_rows_saved_in_pieces_are_the_same_buffer(steps, seed):
    """Episodes that end, are cut short by a lost simulator, and savings at any step: what is read back samples the same."""
    dataset, rng, pieces, stored = make_dataset([4], [True], seed), np.random.default_rng(seed), [torch.empty(0, 11)], 0
    buffer, other = (ReplayBuffer(dataset, len(steps), 3, GAMMA) for _ in range(2))
    for terminated, truncated, lost, saving in steps:
        buffer.add(rng.normal(size=3), rng.normal(size=2), rng.normal(), terminated, truncated, rng.normal(size=3))
        if lost:                                                               # after it was saved, or before
            buffer.end_episode()
        if saving:
            pieces.append(buffer.online_rows(stored))
            stored = buffer.size - buffer.offline_size
    pieces.append(buffer.online_rows(stored))
    other.load_online(torch.cat(pieces).flatten(), buffer.cuts)
    assert other.size == buffer.size == 4 + len(steps)
    starts = torch.arange(buffer.size - 2)
    one, two = buffer.chunks(starts), other.chunks(starts)
    assert all(torch.equal(one[name], two[name]) for name in one)
    ended = [i for i, (terminated, truncated, lost, _) in enumerate(steps) if terminated or truncated or lost]
    assert other.transitions(torch.arange(4, other.size))["terminals"].nonzero().flatten().tolist() == ended


def test_nothing_of_another_episode_enters_a_loss():
    """Changing all other episodes changes neither the masked positives nor any term with weight."""
    lengths, terminated = [7, 4, 6], [True, False, True]
    a = make_dataset(lengths, terminated, 0)
    b = {k: v.copy() for k, v in make_dataset(lengths, terminated, 1).items()}
    for name in a:
        b[name][7:11] = a[name][7:11]                                          # only the middle episode is shared
    one, two = (ReplayBuffer(d, 0, 5, GAMMA).chunks(torch.arange(7, 11)) for d in (a, b))
    valid = one["valid"]
    assert torch.equal(valid, two["valid"]) and valid[:, -1].sum() == 0        # four steps: no chunk of five fits
    assert torch.equal(one["actions"] * valid[..., None], two["actions"] * valid[..., None])
    assert not torch.equal(one["actions"], two["actions"])


def test_data_end_is_a_seam_and_a_cut_episode_too():
    dataset = make_dataset([6], [False], 0)
    dataset["terminals"][-1] = 0                                               # even where a file forgot to say so
    buffer = ReplayBuffer(dataset, 10, 3, GAMMA)
    assert dataset["terminals"][-1] == 0                                       # the caller's array is left alone
    for i in range(4):
        buffer.add(np.ones(3), np.ones(2), 0.0, False, False, np.ones(3))
    assert buffer.chunks(torch.tensor([4, 5, 6]))["valid"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 1]]
    buffer.end_episode()
    buffer.add(np.ones(3), np.ones(2), 0.0, False, False, np.ones(3))
    assert buffer.chunks(torch.tensor([8]))["valid"].tolist() == [[1, 1, 0]]
    assert buffer.chunks(torch.tensor([8]))["masks"].tolist() == [1]           # cut, not terminated


def test_truncation_and_termination_stay_apart():
    buffer = ReplayBuffer(make_dataset([3], [True], 0), 4, 1, GAMMA)
    for terminated, truncated in ((True, False), (False, True), (False, False)):
        buffer.add(np.zeros(3), np.zeros(2), 0.0, terminated, truncated, np.zeros(3))
    found = buffer.transitions(torch.arange(3, 6))
    assert found["masks"].tolist() == [0, 1, 1] and found["terminals"].tolist() == [1, 1, 0]


def test_online_part_survives_saving():
    dataset = make_dataset([5, 5], [True, True], 0)
    buffer, other = (ReplayBuffer(dataset, 5, 2, GAMMA) for _ in range(2))
    for i in range(3):
        buffer.add(np.full(3, i), np.full(2, i), i, False, i == 1, np.full(3, i + 1))
    first = buffer.online_rows(0)                                              # [3, 2 * 3 + 2 + 3], as saved after two and one more
    assert torch.equal(first[2:], buffer.online_rows(2)) and first[1].tolist() == [1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    buffer.end_episode()                                                       # a simulator was lost after the third
    other.load_online(first, buffer.cuts)
    assert other.size == 13 and other.cuts == [2]
    one, two = (b.transitions(torch.arange(13)) for b in (buffer, other))
    assert all(np.array_equal(one[name][:10], dataset[name]) for name in FIELDS)
    assert list(one) == list(FIELDS) and all(torch.equal(one[name], two[name]) for name in FIELDS)
    with pytest.raises(UserError, match="--online-steps"):
        ReplayBuffer(dataset, 2, 2, GAMMA).load_online(first, [])
