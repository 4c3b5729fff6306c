"""Where a run's data come from: a file of your own, the official sets, or stand-ins made in the simulator.
A fetched file gets its final name when it has the announced length and has been read."""
import errno
import http.client
import math
import os
import urllib.request
from pathlib import Path

from tqdm import tqdm

import envs
from config import SOURCES, UserError
from tools.checks import option_name
from tools.official import files

SHIPPED = Path(__file__).resolve().parents[2] / "standins"         # demonstrations of lift, can and square
SHIPPED_SIZE = 300                                                 # ... of each


def find(config, given, task: envs.Task, folder: Path, read) -> tuple[list[Path], dict]:
    """The files that --data means -> (paths, what config.json says of their origin). read(path, task) raises for what
    is broken. UserError where there are none, and for a knob given by hand that means nothing for them."""
    kind, why, paths = choose(config, task, folder, read)
    refuse_unread(config, given, kind, paths, task)
    origin = files.recorded(paths[0]).get("origin", {})            # the URL, or what generated it
    place = paths[0] if len(paths) == 1 else paths[0].parent
    return paths, dict(kind=kind, why=why, path=str(place), files=[*map(str, paths)], origin=origin)


def choose(config, task: envs.Task, folder: Path, read) -> tuple[str, str, list[Path]]:
    """(kind, why these, paths). kind: official, generated or own-<name>."""
    if config.data not in SOURCES:
        return files.own_kind(config.data), "given with --data", [Path(config.data)]
    if task.suite == "own":
        raise UserError(f"{task.name} is a task of your own: name the file of its data with --data")
    if config.data == "generated":
        return "generated", "asked for with --data generated", stand_ins(config, task, folder)
    count = math.ceil(config.data_size / 1_000_000)        # a file has 1M transitions: 3M need 3 files. 0: every file
    most_bytes = 2e9 if config.data == "auto" else math.inf
    paths, why_not = fetch(task, folder, max_bytes=most_bytes, count=count, read=read)
    if paths:
        return "official", "found or downloaded", paths
    if config.data == "official":
        raise UserError(f"the official data of {task.name} could not be obtained ({why_not}); "
                        "--data generated makes a stand-in")
    print(f"*** NO OFFICIAL DATA ({why_not}). Stand-ins from the simulator take their place; results are marked "
          "so. ***")
    return "generated", f"no official data: {why_not}", stand_ins(config, task, folder)


def stand_ins(config, task: envs.Task, folder: Path) -> list[Path]:
    """The shipped ones, or such as are made now."""
    size = config.data_size or (SHIPPED_SIZE if task.suite == "robomimic" else 1_000_000)
    if task.suite == "robomimic" and size == SHIPPED_SIZE:
        return [SHIPPED / f"{task.name}.hdf5"]
    from tools.standins.generate import generate           # late: a run that has its data needs no operators
    share = config.goal_share if task.suite == "ogbench" else 0.0
    return generate(task, size, folder / "generated", share, config.workers)


# ------------------------------------------------------------------------------------------ the official sets
def official(task: envs.Task) -> tuple[list[str], list[str], Path]:
    """(names of a task's official files, hosts to put before them, the folder that other projects keep them in)."""
    hub = "https://huggingface.co/datasets/{}/resolve/main/"
    if task.suite == "robomimic":
        hosts = [hub.format(owner) + "v1.5/" for owner in ("robomimic/robomimic_datasets", "amandlek/robomimic")]
        return [f"{task.name}/mh/low_dim_v15.hdf5"], hosts, Path("~/.robomimic")
    names = [f"{task.source}-play-v0.npz"]
    if task.source == "cube-quadruple":                    # 1M transitions a file
        names = [f"{task.source}-play-100m-v0/{task.source}-play-v0-{i:03d}.npz" for i in range(100)]
    hosts = ["https://rail.eecs.berkeley.edu/datasets/ogbench/", hub.format("zhouzypaul/ogbench_datasets")]
    return names, hosts, Path("~/.ogbench/data")


def left_over(path: Path) -> int:
    """How many bytes of a file earlier tries have left."""
    return sum(part.stat().st_size for part in path.parent.glob(f"{path.name}.*.part"))


def download(url: str, path: Path, timeout: float = 10, announced=lambda size: None, read=lambda path: None) -> None:
    """Fetches url to path, going on where an earlier try stopped. OSError where the host fails, is silent for `timeout`
    seconds, or sends what `read` cannot read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(url, timeout=timeout) as whole:
        if "text/html" in whole.headers.get("Content-Type", ""):
            raise OSError("the host answered with a web page instead of the file")
        size = int(whole.headers.get("Content-Length") or 0)                   # 0: not told
        announced(size)
        # The length stands in the part's name: what one host began, another one with another file must not finish.
        part = path.with_name(f"{path.name}.{size}.part")
        for other in set(path.parent.glob(f"{path.name}.*.part")) - {part}:
            other.unlink()
        have, response = left_over(path), whole
        if 0 < have < size:
            request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"})
            response = urllib.request.urlopen(request, timeout=timeout)
        if response.status != 206 or response.headers.get("Content-Range") != f"bytes {have}-{size - 1}/{size}":
            have, response = 0, whole                      # nothing to go on from, or not with this host
        bar = tqdm(total=size or None, initial=have, unit="B", unit_scale=True, desc=f"fetching {path.name}")
        with bar, response, open(part, "ab") as file:
            file.truncate(have)
            while block := response.read(1 << 20):
                bar.update(file.write(block))
    if left_over(path) < size:
        raise OSError(f"the connection ended after {left_over(path)} of {size} bytes")
    try:
        read(part)
    except Exception as error:               # the libraries raise almost anything for a broken file
        part.unlink()
        raise OSError(f"the host sent a broken file: {files.in_one_line(error)}") from None
    os.replace(part, path)


def fetch(task: envs.Task, folder: Path, max_bytes: float, count: int, read) -> tuple[list[Path], str]:
    """The first `count` official files (0: all), from disk or from the first host that gives them -> (paths, "") or
    ([], why not). read(path, task) raises for what is broken. UserError beyond max_bytes in all."""
    names, hosts, elsewhere = official(task)
    names, here, reasons = names[:count or None], folder / task.suite, []
    found = {name: path for name in names for path in (elsewhere.expanduser() / name, here / name) if path.exists()}
    missing = [name for name in names if name not in found]

    def announced(size):
        if size * len(missing) > max_bytes:
            raise UserError(f"{hosts[0]} has {size * len(missing) / 1e9:.1f} GB of official data for {task.name}; "
                            "give --data official to fetch that much, or --data generated")
    for name in missing:
        found[name] = path = here / name
        while not path.exists():
            if not hosts:
                return [], "; ".join(reasons)
            had, url = left_over(path), hosts[0] + name
            try:
                download(url, path, announced=announced, read=lambda part: read(part, task))
                files.remember(path, url=url)
            except (OSError, ValueError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise UserError(f"the disk of {here} is full") from None
                if left_over(path) <= had:        # else the connection broke, but the host does give: go on
                    reasons.append(f"{hosts.pop(0).split('/')[2]}: {error}")
    return [found[name] for name in names], ""


# ------------------------------------------------------------------------------------------ knobs
def refuse_unread(config, given: set[str], kind: str, paths: list[Path], task: envs.Task) -> None:
    """UserError for a knob that was given by hand and means nothing for these data."""
    unread = {"mix_size"} if len(paths) == 1 else set()
    if kind != "generated" or task.suite == "robomimic":
        unread.add("goal_share")
    if kind.startswith("own-") or (kind == "official" and len(official(task)[0]) == 1):
        unread.add("data_size")
    for name in sorted(given & unread):
        if getattr(config, name):
            raise UserError(f"{option_name(name)} means nothing for {kind} data of {task.name}: leave it out")
