"""The official data sets: where they are, and how they come here in one piece.

    files, problem = fetch(task, folder, max_bytes, count, read)        [(path, record)], or why there are none

A file gets its final name when it has the announced length and `read` has read it.
"""
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
from tools.official import files

HUB = "https://huggingface.co/datasets/{}/resolve/main/"
SHARDS = {"cube-quadruple": 100}         # sets that come as several files, of 1M transitions each


def official(task: envs.Task) -> tuple[list[str], list[str], Path]:
    """(names of a task's official files, hosts to put before them, the folder that other projects keep them in)."""
    if task.suite == "robomimic":
        hosts = [HUB.format(owner) + "v1.5/" for owner in ("robomimic/robomimic_datasets", "amandlek/robomimic")]
        return [f"{task.name}/mh/low_dim_v15.hdf5"], hosts, Path("~/.robomimic")
    names, count = [f"{task.source}-play-v0.npz"], SHARDS.get(task.source)
    if count:
        names = [f"{task.source}-play-100m-v0/{task.source}-play-v0-{i:03d}.npz" for i in range(count)]
    hosts = ["https://rail.eecs.berkeley.edu/datasets/ogbench/", HUB.format("zhouzypaul/ogbench_datasets")]
    return names, hosts, Path("~/.ogbench/data")


class TooLarge(Exception):
    """More bytes than may be fetched unasked; their number is the first argument."""


def part_of(path: Path) -> tuple[Path | None, int]:
    """What an earlier try left of a file, and how many bytes. The whole length stands in the part's name: a host whose
    file has another length must not finish it."""
    partial = next(path.parent.glob(f"{path.name}.*.part"), None)
    return partial, partial.stat().st_size if partial else 0


def download(url: str, path: Path, max_bytes=float("inf"), timeout: float = 10, read=lambda path: None) -> None:
    """Fetches url to path, going on where an earlier try stopped. OSError where the host fails, sends nothing for
    `timeout` seconds or sends something that `read` cannot read; TooLarge beyond max_bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, have = part_of(path)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        response = error                     # nothing lies beyond what we have: it is no part of this host's file
    with response:
        if response.status != 416 and "text/html" in response.headers.get("Content-Type", ""):
            raise OSError("the host answered with a web page instead of the file")
        total = int(response.headers.get("Content-Length") or 0) or None
        if have:
            sent = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            goes_on = response.status == 206 and sent and int(sent[1]) == have
            if not goes_on or partial.name != f"{path.name}.{sent[2]}.part":
                partial.unlink()             # some hosts do not resume, or have a file of another length
                return download(url, path, max_bytes, timeout, read)
            total = int(sent[2])
        else:
            partial = path.with_name(f"{path.name}.{total}.part")
        if (total or 0) > max_bytes:
            raise TooLarge(total)
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=f"fetching {path.name}")
        with bar, open(partial, "ab") as file:
            while block := response.read(1 << 20):
                file.write(block)
                bar.update(len(block))
    size = partial.stat().st_size
    if size < (total or 0):
        raise OSError(f"the connection ended after {size} of {total} bytes")
    try:
        read(partial)
    except Exception as error:               # the libraries raise almost anything for a broken file
        partial.unlink()
        raise OSError(f"the host sent a broken file: {files.in_one_line(error)}") from None
    os.replace(partial, path)


def fetch(task: envs.Task, folder: Path, max_bytes: float, count: int, read) -> tuple[list[tuple[Path, Path]], str]:
    """The first `count` official files (0: all), from disk or from the first host that gives them -> ([(path, record)],
    "") or ([], why not). read(path, task) raises for what is broken. UserError beyond max_bytes in all."""
    names, hosts, elsewhere = official(task)
    here = folder / ("robomimic" if task.suite == "robomimic" else "ogbench")
    names, reasons = names[:count or None], []
    found = {name: path for name in names for path in (elsewhere.expanduser() / name, here / name) if path.exists()}
    missing = [name for name in names if name not in found]
    for name in missing:
        path = here / name
        while name not in found:
            if not hosts:
                return [], "; ".join(reasons)
            had = part_of(path)[1]
            try:
                download(hosts[0] + name, path, max_bytes / len(missing), read=lambda part: read(part, task))
                files.remember(path, files.record_of(path), url=hosts[0] + name)
                found[name] = path
            except TooLarge as error:
                gigabytes = error.args[0] * len(missing) / 1e9
                raise UserError(f"{hosts[0]} has {gigabytes:.1f} GB of official data for {task.name}; "
                                "give --data official to fetch that much, or --data generated") from None
            except (OSError, ValueError, http.client.HTTPException) as error:
                if getattr(error, "errno", None) == errno.ENOSPC:
                    raise UserError(f"the disk of {here} is full") from None
                if part_of(path)[1] <= had:        # else the connection broke, but the host does give: go on
                    code = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else ""
                    why = code or getattr(error, "reason", error)
                    reasons.append(f"{hosts.pop(0).split('/')[2]}: {why}")
    return [(found[name], files.record_of(here / name)) for name in names], ""
