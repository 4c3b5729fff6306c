"""Chunk sampling against a plain loop over episodes."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from buffer import FIELDS, ReplayBuffer
from config import UserError
from tools.training.saving import fill_online, online_rows
from toy import make_dataset

GAMMA = 0.9


def add(buffer, obs=0.0, action=0.0, reward=0.0, terminated=False, truncated=False, next_obs=0.0) -> None:
    buffer.add(np.full(3, obs), np.full(2, action), reward, terminated, truncated, np.full(3, next_obs))


def rows_of(dataset) -> list[dict]:
    return [{name: column[i] for name, column in dataset.items()} for i in range(len(dataset["rewards"]))]


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
        last = rows[start + chunk - 1]
        assert torch.equal(batch["next_observations"][b], torch.as_tensor(last["next_observations"]))


EPISODES = st.tuples(st.integers(1, 9), st.booleans())           # length, terminated


@settings(max_examples=60, deadline=None)
@given(episodes=st.lists(EPISODES, min_size=1, max_size=8), online=st.lists(EPISODES, max_size=5),
       chunk=st.integers(1, 6), cut=st.integers(0, 8), seed=st.integers(0, 2**16))
def test_chunks_equal_a_loop_over_episodes(episodes, online, chunk, cut, seed):
    """Data with terminations and truncations, then online episodes, the last one still running."""
    rows = rows_of(dataset := make_dataset(*zip(*episodes), seed))
    added = rows_of(make_dataset(*zip(*online), seed + 1)) if online else []
    if len(rows) < chunk:
        with pytest.raises(UserError, match="fewer than one chunk"):
            ReplayBuffer(dataset, 0, chunk, GAMMA)
        return
    dataset["terminals"][-1] = 0                                 # as where a file forgot to say so: an end in any case
    buffer = ReplayBuffer(dataset, len(added), chunk, GAMMA)
    assert dataset["terminals"][-1] == 0                         # the caller's array is left alone
    for row in added[: max(1, len(added) - cut)]:
        terminated = bool(row["masks"] == 0)
        add(buffer, row["observations"], row["actions"], row["rewards"], terminated,
            row["terminals"] == 1 and not terminated, row["next_observations"])
        rows.append(row)
    assert buffer.size == len(rows)
    starts = list(range(len(rows) - chunk + 1))
    check_against_loop(buffer, rows, starts, chunk)
    drawn = {tuple(obs) for obs in buffer.chunks(buffer.starts(400, torch.Generator().manual_seed(seed)))["observations"].tolist()}
    known = {tuple(rows[start]["observations"].tolist()) for start in starts}
    assert drawn <= known
    if len(starts) <= 20:
        assert drawn == known                                    # every start is drawn, the last one too


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.tuples(*[st.booleans()] * 4), max_size=30), seed=st.integers(0, 2**16))
def test_online_rows_saved_in_pieces_are_the_same_buffer(steps, seed):
    """Episodes that end or are cut short by a lost simulator, and savings at any step."""
    dataset, rng, pieces = make_dataset([4], [True], seed), np.random.default_rng(seed), [torch.empty(0, 11)]
    buffer, other = (ReplayBuffer(dataset, len(steps), 3, GAMMA) for _ in range(2))
    stored = 0
    for terminated, truncated, lost, saving in steps:
        add(buffer, rng.normal(size=3), rng.normal(size=2), rng.normal(), terminated, truncated, rng.normal(size=3))
        if saving:
            pieces.append(online_rows(buffer, stored))
            stored = buffer.num_online
        if lost:                                                 # after it was saved, or before
            buffer.end_episode()
    pieces.append(online_rows(buffer, stored))
    fill_online(other, torch.cat(pieces).flatten(), buffer.cuts)
    assert other.size == buffer.size == 4 + len(steps) and other.cuts == buffer.cuts
    one, two = (b.transitions(torch.arange(b.size)) for b in (buffer, other))
    assert list(one) == list(FIELDS) and all(torch.equal(one[name], two[name]) for name in FIELDS)
    assert one["terminals"][4:].tolist() == [any(ends) for *ends, _ in steps]
    assert one["masks"][4:].tolist() == [not terminated for terminated, *_ in steps]         # a cut terminates nothing
    if steps:
        with pytest.raises(UserError, match="--online-steps"):
            fill_online(ReplayBuffer(dataset, len(steps) - 1, 3, GAMMA), torch.cat(pieces), [])
