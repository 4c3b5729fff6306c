"""Data files: reading what others wrote, and what this project itself has made. What does not fit is a ValueError here,
which errors_in_one_line() makes a UserError, and not a surprise after a day of training. Nothing is unpickled.
"""
import contextlib
import hashlib
import json
import zipfile
from pathlib import Path

import h5py
import numpy as np

import envs
from config import UserError
from tools.simulators import robosuite_setup
from tools.training.files import in_one_line, say_once, write_json

INFO = ("qpos", "button_states")                             # what the rewards of OGBench's tasks follow from


def require(ok, message: str) -> None:
    if not ok:
        raise ValueError(message)


def checked(file, widths: dict, where: str = "") -> dict[str, np.ndarray]:
    """Arrays of an open npz file or HDF5 group, as float32. widths: {name: shape of a row, None: any length}.
    ValueError unless all have as many rows, finite numbers, actions in [-1, 1], flags of 0 or 1, and a last end."""
    found, rows = {}, None
    for key, width in widths.items():
        name = where + key
        require(key in file, f"it has no {name!r}{foreign(file)}")
        array = np.asarray(file[key])
        require(array.dtype.kind in "fiub" and array.ndim and array.size, f"{name} is no array of numbers, or empty")
        rows = rows or len(array)
        shape = (rows, *(array.shape[1:2] if width is None else width))
        require(array.shape == shape, f"{name} have shape {array.shape}, not {shape}{mislaid(array.shape, shape)}")
        largest = max(float(array.max()), -float(array.min()))                 # NaN if one of them is
        require(largest < 3e38, f"{name} contain NaN or infinite values")      # float32 goes no further
        require(key != "actions" or largest < 1.001, f"{name} reach {largest:.3g}, outside [-1, 1]")     # rounding may
        found[key] = array = array.astype(np.float32, copy=False)
        if key in ("dones", "terminals", "masks"):
            require(np.isin(array, (0, 1)).all(), f"{name} are not all 0 or 1")
        require(key != "terminals" or array[-1], "terminals[-1] is not 1: the last episode has no end")
    return found


def mislaid(shape: tuple, wanted: tuple) -> str:
    """How to turn an array of another layout, where it is plain which."""
    if shape == (*wanted, 1):
        return "; it is a column: store array[:, 0]"
    if len(shape) == len(wanted) == 2 and shape[0] == wanted[1] != shape[1]:
        return "; it lies transposed, as MATLAB and Fortran write it: store array.T"
    return ""


def foreign(file) -> str:
    """What to do with a file, or a group in it, that another project has laid out."""
    names = set(file)
    if "states" in names and "obs" not in names:
        return "; it is raw, as robosuite records: robomimic's dataset_states_to_obs.py adds the observations"
    if "timeouts" in names:
        return ("; it is laid out as D4RL has it: add masks = 1 - terminals, then terminals = terminals | timeouts, "
                "and next_observations")
    if any(name.startswith("episode_") for name in names):
        return ("; it is laid out as Minari has it: join its episodes, with masks = 1 - terminations, terminals = 1 at "
                "each one's last row, next_observations = observations[1:], observations = observations[:-1]")
    return "; it is laid out as robomimic has it, for lift, can and square" if "data" in names else ""


def check_recorded_in(task: envs.Task, attrs, path: Path) -> None:
    """UserError where a robomimic file says that it is of another task, so that nothing is wrong with the file; a
    warning for each setting of the robot that is another one here."""
    recorded = json.loads(attrs.get("env_args", "{}"))
    theirs, ours = dict(recorded.get("env_kwargs", {})), robosuite_setup.arguments(task.source)
    if recorded.get("env_name", task.source) != task.source:
        raise UserError(f"{path} was recorded in {recorded['env_name']}, and {task.name} is {task.source}: "
                        "it is another task's")
    if isinstance(theirs.get("robots"), str):
        theirs["robots"] = [theirs["robots"]]
    controller = theirs.get("controller_configs")
    if isinstance(controller, dict) and "body_parts" not in controller:                     # of robosuite before 1.5
        ours["controller_configs"] = ours["controller_configs"]["body_parts"]["right"]
    moving = {name: ours[name] for name in ("robots", "controller_configs", "control_freq")}   # what moves the arm
    for line in differences(theirs, moving):
        say_once(f"warning: {path} was recorded with other settings: {line}")


def differences(theirs, ours, name: str = "") -> list[str]:
    """A text for each setting that is another in the file than here."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return sum((differences(theirs[key], ours[key], f"{name}.{key}") for key in ours if key in theirs), [])
    return [f"{name[1:]} is {theirs} in the file, {ours} here"] if theirs != ours else []


def in_order(demos) -> list[str]:
    """The names of a robomimic file's demonstrations by their numbers: demo_10 comes after demo_9."""
    require(len(demos), "it holds no demonstration")
    for name in demos:
        require(name.removeprefix("demo_").isdecimal(), f"{name!r} is not named demo_<number>")
    return sorted(demos, key=lambda name: int(name.removeprefix("demo_")))


def demonstrations(path: Path, task: envs.Task, sizes: dict):
    """Each demonstration of a robomimic file, in order: arrays by name, as actions [T, A], rewards and dones [T],
    obs/<key> and, where it was recorded, next_obs/<key>. sizes: {key: width of this part of an observation}."""
    widths = {"actions": (task.action_dim,), "rewards": (), "dones": ()}
    widths |= {f"obs/{key}": (n,) for key, n in sizes.items()}
    next_widths = {f"next_obs/{key}": (n,) for key, n in sizes.items()}
    require(h5py.is_hdf5(path), "it is no HDF5 file, as robomimic's are")
    with h5py.File(path, "r") as file:
        require("data" in file, "it has no group 'data'" + foreign(file))
        check_recorded_in(task, file["data"].attrs, path)
        for name in in_order(file["data"]):
            has_next = "next_obs" in file["data"][name]
            demo = checked(file["data"][name], widths | (next_widths if has_next else {}), name + "/")
            require(np.isin(demo["rewards"], (0, 1)).all(), f"{name}/rewards are not all 0 or 1")
            yield demo


def checked_file(path: Path, widths: dict) -> dict[str, np.ndarray]:
    require(zipfile.is_zipfile(path) or h5py.is_hdf5(path), "it is neither a whole npz file nor HDF5")
    with h5py.File(path, "r") if h5py.is_hdf5(path) else np.load(path, allow_pickle=False) as file:
        return checked(file, widths)


def read_play(path: Path, task: envs.Task, *more: str) -> dict[str, np.ndarray]:
    """OGBench's npz -> observations [T, O], actions [T, A], terminals [T], 1 at a trajectory's last row, whose action
    leads nowhere; INFO as far as the task has it, and `more`."""
    info = INFO if task.source.startswith(("scene", "puzzle")) else INFO[:1]
    widths = dict(observations=(task.obs_dim,), actions=(task.action_dim,), terminals=())
    rows = checked_file(path, widths | dict.fromkeys((*info, *more)))
    require(not rows["terminals"].all(), "it holds no transition")
    return rows


def lengths(dataset: dict) -> np.ndarray:
    """How many steps each episode has."""
    lasts = dataset["lasts"].numpy() if "lasts" in dataset else np.flatnonzero(dataset["terminals"])
    return np.diff(lasts, prepend=-1)


def spaced(values, count: int):
    """So many of these values, from the first to the last; all where there are no more."""
    return values[np.linspace(0, len(values) - 1, min(count, len(values))).astype(int)]


def count(terminals: np.ndarray, reached: np.ndarray) -> dict:
    """What a run records of its data; reached: whether the goal is, row by row."""
    starts = np.flatnonzero(np.r_[1, terminals[:-1]])
    return dict(transitions=len(terminals), episodes=len(starts),
                successes=int(np.logical_or.reduceat(reached, starts).sum()),
                longest=int(np.diff(starts, append=len(terminals)).max()))


# ----------------------------------------------------------------------------------------------- whose a file is
def own_kind(path) -> str:
    """What a run's folder calls data from a file of one's own. (A name that is no text has a ? where it is none.)"""
    return f"own-{Path(path).stem.encode(errors='replace').decode()}"


def record_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remember(path: Path, **origin) -> None:
    """Writes down, beside a file that this project has fetched or generated, where it came from and its checksum."""
    write_json(record_path(path), dict(path=str(path.absolute()), sha256=sha256(path), origin=origin))


def recorded(path: Path) -> dict:
    """What remember() wrote; nothing for any other file, a copy included: that may be somebody's only one."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        record = json.loads(record_path(path).read_text())
        if record["path"] == str(path.absolute()):
            return record
    return {}


@contextlib.contextmanager
def errors_in_one_line(path: Path, task: envs.Task):
    """Whatever is wrong with a file becomes a UserError. What it advises loses nobody's only copy."""
    try:
        yield
    except (UserError, ImportError, MemoryError):          # the last two are not the file's fault
        raise
    except BlockingIOError:
        raise UserError(f"{path} is open in another program: close it there") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user") from None
    except Exception as error:           # for a broken file the libraries raise OSError, KeyError, BadZipFile, ...
        advice = "; delete it to fetch or generate it again" if recorded(path) else ""
        raise UserError(f"{path} is no usable data of {task.name}: {in_one_line(error)}{advice}") from None


def checksum(path: Path, task: envs.Task) -> str:
    """Of a file's bytes. UserError where a file of ours is no longer what it was."""
    with errors_in_one_line(path, task):
        found = sha256(path)
        require(found == recorded(path).get("sha256", found), "it has changed since it was fetched or generated")
    return found
