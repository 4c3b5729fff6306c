"""The official data sets: where they are, and how they come here in one piece.

    files, problem = fetch(task, folder, max_bytes, count, complaint)      [(path, record)], or why there are none

A file gets its final name when it has the announced length, begins as its format does and `complaint` has read it without one.
"""
import contextlib
import errno
import http.client
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

import envs
from config import UserError
from tools import files

HUB = "https://huggingface.co/datasets/{}/resolve/main/"
MAGIC = {".hdf5": b"\x89HDF", ".npz": b"PK"}
SHARDS = {"cube-quadruple": 100}         # sets that come as several files, of 1M transitions each


def official(task: envs.Task) -> tuple[list[str], list[str], Path]:
    """The official files of a task: names below the hosts' addresses, the hosts, and the folder other projects keep them in."""
    if task.suite == "robomimic":
        return [f"{task.name}/mh/low_dim_v15.hdf5"], [
            HUB.format(repo) + "v1.5/" for repo in ("robomimic/robomimic_datasets", "amandlek/robomimic")], Path("~/.robomimic")
    names = [f"{task.source}-play-v0.npz"]
    if task.source in SHARDS:
        names = [f"{task.source}-play-100m-v0/{task.source}-play-v0-{i:03d}.npz" for i in range(SHARDS[task.source])]
    return names, ["https://rail.eecs.berkeley.edu/datasets/ogbench/", HUB.format("zhouzypaul/ogbench_datasets")], Path("~/.ogbench/data")


class TooLarge(Exception):
    """More bytes than may be fetched unasked; their number is the first argument."""


def part_of(path: Path) -> tuple[Path | None, int]:
    """What an earlier try left of a file, and how many bytes. The whole length stands in the part's name: a host whose file
    has another length must not finish it."""
    partial = next(path.parent.glob(f"{path.name}.*.part"), None)
    return partial, partial.stat().st_size if partial else 0


def download(url: str, path: Path, max_bytes: float = float("inf"), timeout: float = 10, complaint=lambda path: "") -> None:
    """Fetches url to path, going on where an earlier try stopped. OSError where the host fails, sends nothing for `timeout` s
    or sends something else; TooLarge beyond max_bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, have = part_of(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with contextlib.ExitStack() as stack:
        try:
            response = stack.enter_context(urllib.request.urlopen(request, timeout=timeout))
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:       # nothing lies beyond what we have: no part of this host's file
                partial.unlink()
                return download(url, path, max_bytes, timeout, complaint)
            raise
        if "text/html" in response.headers.get("Content-Type", ""):
            raise OSError("the host answered with a web page instead of the file")
        total = int(response.headers.get("Content-Length") or 0) or None
        if have and response.status == 206:
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            if not sent or int(sent[1]) != have or partial.name != f"{path.name}.{sent[2]}.part":
                partial.unlink()                 # of another file, or not what was asked for: from the start
                return download(url, path, max_bytes, timeout, complaint)
            total = int(sent[2])
        else:                                    # the beginning, whether or not we have it: some hosts do not resume
            if partial:
                partial.unlink()
            have, partial = 0, path.with_name(f"{path.name}.{total}.part")
        if (total or 0) > max_bytes:
            raise TooLarge(total)
        file = stack.enter_context(open(partial, "ab" if have else "wb"))
        bar = stack.enter_context(tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=f"fetching {path.name}"))
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    size = partial.stat().st_size
    if size < (total or 0):
        raise OSError(f"the connection ended after {size} of {total} bytes")
    with open(partial, "rb") as file:
        wrong = "" if file.read(8).startswith(MAGIC[path.suffix]) else f"it does not begin like a {path.suffix} file"
    wrong = wrong or complaint(partial)
    if wrong:
        partial.unlink()
        raise OSError(f"the host sent a broken file: {wrong}")
    os.replace(partial, path)


def fetch(task: envs.Task, folder: Path, max_bytes: float, count: int = 0, complaint=lambda path: "") -> tuple[list, str]:
    """The first `count` official files (0: all), from disk or from the first host that gives them -> ([(path, record)], "") or
    ([], why not). UserError where more than max_bytes would have to be fetched."""
    names, hosts, elsewhere = official(task)
    here = folder / ("robomimic" if task.suite == "robomimic" else "ogbench")
    names, reasons = names[:count or None], []
    found = {name: path for name in names for path in (elsewhere.expanduser() / name, here / name) if path.exists()}
    missing = [name for name in names if name not in found]
    for name in missing:
        while name not in found:
            if not hosts:
                return [], "; ".join(reasons)
            before = part_of(here / name)[1]
            try:
                download(hosts[0] + name, here / name, max_bytes / len(missing), complaint=complaint)
                found[name] = here / name
                files.remember(found[name], files.record_of(found[name]), url=hosts[0] + name)
            except TooLarge as error:
                raise UserError(f"{hosts[0]} has {error.args[0] * len(missing) / 1e9:.1f} GB of official data for {task.name}; "
                                "give --data official to fetch that much, or --data generated") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise UserError(f"the disk of {here} is full") from None
                if part_of(here / name)[1] > before:               # the connection broke, but the host does give: go on
                    continue
                why = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else getattr(error, "reason", error)
                reasons.append(f"{hosts.pop(0).split('/')[2]}: {why}")
    return [(found[name], files.record_of(here / name)) for name in names], ""
