"""--data: your own file, the official files, or stand-ins, which are shipped or generated. data.load asks find().

Each file has a record, a small JSON with its origin, size and checksum. It is written once the file has been read and
found good, and tells later that the file has changed.
"""
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import envs
from config import SOURCES, UserError
from tools.checks import option_name
from tools.official import fetch
from tools.official.files import RECORD, checked_record, errors_in_one_line, record_path

SHIPPED = Path(__file__).resolve().parents[1] / "standins"             # of lift, can and square, and how many they are:
SHIPPED_SIZE = 300


@dataclass
class Found:
    kind: str              # official, generated or own-<name of the file>
    why: str               # this kind
    paths: list[Path]      # several lie in one folder
    records: list[dict]    # of these files

    def about(self) -> dict:
        """What config.json says of them."""
        place = self.paths[0] if len(self.paths) == 1 else self.paths[0].parent
        origin = {name: value for name, value in self.records[0].items() if name not in RECORD}
        return dict(kind=self.kind, why=self.why, path=str(place), files=[*map(str, self.paths)], origin=origin)


def find(config, given: set[str], task: envs.Task, folder: Path, reader) -> Found:
    """reader(path, task) raises for what is broken; given: the knobs that were given by hand. UserError where there are
    no such data, or where they do not read such a knob."""
    if config.data not in SOURCES:
        path = Path(config.data)
        kind, why, found = own_kind(path), "given with --data", [(path, record_path(folder / "own" / path.name))]
    elif task.suite == "own":
        raise UserError(f"{task.name} is a task of your own: name the file of its data with --data")
    else:
        kind, why, found = find_official(config, task, folder, reader)
        if not found and config.data == "official":
            raise UserError(f"the official data of {task.name} could not be obtained ({why}); "
                            "--data generated makes a stand-in")
        if not found:
            if config.data == "auto":
                print(f"*** NO OFFICIAL DATA ({why}). Stand-ins from the simulator take their place; results are "
                      "marked so. ***")
            kind, found = "generated", stand_ins(config, task, folder)
    refuse_unread(config, given, kind, found, task)
    records = []
    for path, record in found:
        with errors_in_one_line(path, task):
            records.append(checked_record(path, record, partial(reader, task=task)))
    return Found(kind, why, [path for path, _ in found], records)


def own_kind(path) -> str:
    """What a run's folder calls data from a file of one's own. (A name that is no text has a ? where it is none.)"""
    return f"own-{Path(path).stem.encode(errors='replace').decode()}"


def find_official(config, task: envs.Task, folder: Path, reader) -> tuple[str, str, list]:
    """Those on disk, or from a host; none where only stand-ins are asked for."""
    if config.data == "generated":
        return "generated", "asked for with --data generated", []
    count = math.ceil(config.data_size / 1_000_000)        # official files hold 1M transitions each; 0 = all
    most_bytes = 2e9 if config.data == "auto" else float("inf")                # more is fetched only where asked for
    found, why = fetch.fetch(task, folder, most_bytes, count, reader)
    return "official", why, found


def stand_ins(config, task: envs.Task, folder: Path) -> list[tuple[Path, Path]]:
    """The shipped ones, or such as are made now."""
    size = config.data_size or (SHIPPED_SIZE if task.suite == "robomimic" else 1_000_000)
    if task.suite == "robomimic" and size == SHIPPED_SIZE:
        path = SHIPPED / f"{task.name}.hdf5"
        return [(path, record_path(folder / "standins" / path.name))]
    from tools.standins.generate import generate           # late: a run that has its data needs no operators
    share = config.goal_share if task.suite == "ogbench" else 0.0
    return [(path, record_path(path)) for path in generate(task, size, folder / "generated", share, config.workers)]


def refuse_unread(config, given: set[str], kind: str, found: list, task: envs.Task) -> None:
    unread = {"mix_size"} if len(found) == 1 else set()
    if kind != "generated" or task.suite == "robomimic":
        unread.add("goal_share")
    if kind.startswith("own-") or kind == "official" and len(fetch.official(task)[0]) == 1:
        unread.add("data_size")
    for name in sorted(given & unread):
        if getattr(config, name):
            raise UserError(f"{option_name(name)} means nothing for {kind} data of {task.name}: leave it out")
