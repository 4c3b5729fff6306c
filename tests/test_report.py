"""The report's numbers: known values, and what must never be averaged together."""
import numpy as np
import pytest
from scipy import stats

from tools import report, tables


def row(seed, step, success, task="lift", data="generated", offline=8000, online=16000, knobs="", checksum="aa"):
    return dict(task=task, method="dfp", data=data, checksum=checksum, setting="quick", knobs=knobs, seed=seed, offline_steps=offline,
                online_steps=online, best_of=4, step=step, stage="online", success=success, episodes=50, length=1, seconds="1", **{"return": 0})


def test_interquartile_mean_and_its_resamples():
    scores = np.array([[0.0, 10, 20, 30], [40, 50, 90, 1000]])                  # eight scores: two go at each end
    assert tables.iqm(scores) == np.mean([20, 30, 40, 50]) == stats.trim_mean(scores.ravel(), 0.25)
    drawn = tables.resamples(scores, 2000)
    assert drawn.shape == (2000, 2, 4) and all(set(np.unique(drawn[..., t])) == set(scores[:, t]) for t in range(4))
    assert np.allclose(drawn.mean((0, 1))[:3], scores.mean(0)[:3], atol=1.5)    # each task for itself
    assert np.array_equal(drawn, tables.resamples(scores, 2000))


def test_interval_is_student_s():
    low, high = report.interval([40.0, 50, 60])
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 2, 50, 10 / 3**0.5)) and report.interval([50.0]) is None


def test_what_differs_is_never_averaged():
    rows = [row(s, 24000, success) for s, success in ((0, 0.9), (1, 1.0))]
    other = [row(0, 24000, 0.1, data="official"), row(0, 26000, 0.1, online=18000)]
    found = report.groups(rows + other)
    assert len(found) == 3
    ends = sorted(tuple(report.stages(key, seeds)[1]) for key, seeds in found.items())
    assert ends == [(10.0,), (10.0,), (90.0, 100.0)]
    assert len(report.groups(rows + [row(2, 24000, 0.1, checksum="bb")])) == 2              # another set of the same kind


def test_a_stage_that_was_cut_short_does_not_count():
    found = report.groups([row(0, 8000, 0.5), row(0, 20000, 0.9)])
    (key, seeds), = found.items()
    assert report.stages(key, seeds) == ([50.0], [])


def test_the_paper_s_numbers():
    assert tables.paper()[1, "dfp", "square"] == (25.8, 93.2, 2.0)              # offline from Figure 1, the rest from Table 1
