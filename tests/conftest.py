"""Options and paths shared by all tests."""
import contextlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("MUJOCO_GL", "disable")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)                                         # tests run side by side (pytest.ini: -n), a core each


def pytest_addoption(parser):
    parser.addoption("--golden", default=str(ROOT / "tests" / "golden"), help="folder of golden .npz files")
    parser.addoption("--slow", action="store_true", help="run the long tests too")


def pytest_runtest_setup(item):
    if "slow" in item.keywords and not item.config.getoption("--slow"):
        pytest.skip("needs --slow")


@pytest.fixture(scope="session")
def generated(tmp_path_factory):
    """Small generated sets, made once for all files: {task: path}."""
    import envs
    from tools.standins.generate import generate
    folder = tmp_path_factory.mktemp("data") / "generated"
    return {"lift": generate(envs.find_task("lift"), 3, folder, workers=2)[0],
            "cube-single-task2": generate(envs.find_task("cube-single-task2"), 1400, folder, 0.3, workers=2)[0]}


@pytest.fixture(scope="session")
def compiler():
    """What needs torch.compile is left out where no C++ compiler is at hand."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(3))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")


@pytest.fixture
def train(tmp_path):
    """train(out, ...): both stages of the toy task -> the run's folder."""
    import envs
    import toy
    import train_online
    from config import TASKS
    toy.write_data(tmp_path / "toy.npz")
    envs.register("toy", toy.Toy, toy.TASK.horizon)
    knobs = dict(task="toy", data=str(tmp_path / "toy.npz"), preset="quick", compile=False, precision="fp32", hidden=16, layers=2, batch_size=8,
                 offline_steps=12, online_steps=40, warmup=10, eval_every=20, eval_episodes=3, log_every=4, workers=1)
    yield lambda out, **more: train_online.train(**knobs | dict(out=str(tmp_path / out)) | more)
    del envs.TABLE["toy"]
    TASKS.remove("toy")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of eight megabytes, and a function that fills it but for so many bytes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")

    def fill(free=0):
        with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        os.truncate(disk / "filler", max(0, (disk / "filler").stat().st_size - free))
    yield disk, fill
    subprocess.run(["umount", "-l", str(disk)], check=True)
