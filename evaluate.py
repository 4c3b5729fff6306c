"""Rolls out a saved policy: success rate over seeded episodes, and a film.

    python evaluate.py runs/lift/dfp/generated/quick/seed0 --episodes 50 [--best-of 1] [--film out.gif]
"""
import os
import sys
from pathlib import Path

if any(word.startswith("--film") for word in sys.argv):
    os.environ.setdefault("MUJOCO_GL", "egl")              # read by mujoco when envs imports it

import torch  # noqa: E402

import envs  # noqa: E402
import run  # noqa: E402
from config import UserError  # noqa: E402
from tools import command_line  # noqa: E402


def main() -> None:
    parser = command_line.OneLineParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", help="a run's folder")
    parser.add_argument("--episodes", type=int, default=50, help="episodes; always the same seeds, never training's")
    parser.add_argument("--best-of", type=int, default=0, help="samples to choose from; 0 = the method's N', 1 = the raw policy")
    parser.add_argument("--workers", type=int, default=0, help="simulator processes; 0 = one a core")
    parser.add_argument("--film", default="", help="write the first episode as GIF to this file")
    args = parser.parse_args()
    if args.episodes < 1 or args.best_of < 0 or args.workers < 0:
        raise UserError("--episodes must be positive, --best-of and --workers not negative")
    policy = run.load(args.run)
    table = Path(args.run) / "evaluate.csv"
    run.read_rows(table)                                   # is refused now, not after an hour, where it is no such table
    if args.film:
        film(policy, args.film, args.best_of or None)
    evaluator = envs.Evaluator(policy.config.task, policy.config.chunk, args.workers or os.cpu_count())
    try:
        result = evaluator(policy.act, args.episodes, args.best_of or None)
    finally:
        evaluator.close()
    best_of = args.best_of or policy.config.best_of
    print(f"{policy.config.task}, step {policy.step}: success {result['success']:.1%} over {args.episodes} episodes, "
          f"length {result['length']:.0f}, return {result['return']:.1f}, best of {best_of}")
    row = result | dict(step=policy.step, stage=policy.stage, best_of=best_of)
    run.append_row(table, {k: row[k] for k in run.COLUMNS[table.name]})                 # kept for tools/report.py


def film(policy, path: str, best_of: int | None) -> None:
    """One evaluation episode as an animated GIF."""
    from matplotlib import animation, pyplot
    name = policy.config.task
    rendering = dict(has_offscreen_renderer=True) if envs.task(name).suite == "robomimic" else dict(render_mode="rgb_array")
    try:
        env = envs.make(name, **rendering)
        obs, _ = env.reset(seed=envs.EVAL_SEED)
        frames, over, generator = [env.render()], False, torch.Generator().manual_seed(envs.EVAL_SEED)
    except Exception as error:
        raise UserError(f"no film: rendering does not work here ({type(error).__name__}); install EGL (libegl1 libegl-mesa0 "
                        "libgl1-mesa-dri) or OSMesa (libosmesa6) and set MUJOCO_GL=egl or osmesa") from None
    while not over:
        for action in policy.act(obs[None], generator, best_of)[0].numpy():
            obs, _, terminated, truncated, _ = env.step(action)
            frames.append(env.render())
            over = terminated or truncated
            if over:
                break
    figure = pyplot.figure(figsize=(2.56, 2.56))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    image = axes.imshow(frames[0])
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    animation.FuncAnimation(figure, lambda i: image.set_data(frames[i]), range(0, len(frames), 2)).save(
        path, writer=animation.PillowWriter(fps=15))
    print(f"{path}: {len(frames)} frames")


if __name__ == "__main__":
    command_line.main(main)
