"""A run's policy alone, into a folder of its own: what acts, and a config.json without paths.

    python -m tools.export runs/lift/dfp/generated/quick/seed0 policies/lift

run.load() and evaluate.py take the folder like a run.
"""
import dataclasses
from pathlib import Path

import run
from config import SOURCES, UserError
from tools.training import command_line
from tools.training.files import read_config, save_state, write_json


def export(folder: str | Path, to: str | Path) -> None:
    """UserError where there is no run, and where the second folder holds one."""
    folder, to = Path(folder).expanduser(), Path(to).expanduser()
    (config, record), state = read_config(folder), run.newest(folder)
    if (to / "config.json").exists() and not run.is_exported(to):
        raise UserError(f"{to} holds a run already")
    kind = record["data"]["kind"]
    config = dataclasses.replace(config, data=kind if kind in SOURCES else "auto", data_dir="", out="runs",
                                 resume=False)
    counts = {name: record["data"].get(name) for name in ("kind", "sha256", "transitions", "episodes")}
    to.mkdir(parents=True, exist_ok=True)
    networks = {name: state["algorithm"][name] for name in run.acting(config)}
    save_state(to / "policy.pt", dict(algorithm=networks, step=state["step"], stage=state.get("stage", "offline")))
    record = dict(config=config.plain(), data=counts, versions=record.get("versions"), git=record.get("git"))
    write_json(to / "config.json", record)
    (to / "policy.pt.previous").unlink(missing_ok=True)          # another policy, which the new config.json may not fit


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run's folder")
    parser.add_argument("to", type=Path, help="the policy's folder")
    args = parser.parse_args()
    export(args.run, args.to)
    print(f"{args.to}: python evaluate.py {args.to}")


if __name__ == "__main__":
    command_line.main(main)
