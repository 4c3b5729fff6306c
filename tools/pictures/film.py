"""Episodes of a policy as a GIF or MP4, with Q of the chunk being executed: python evaluate.py RUN --film out.gif"""
import os
import subprocess
import sys
from pathlib import Path

import imageio.v2 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw
from tqdm import tqdm

import envs
from config import UserError

SIZE, PANEL = 256, 56       # pixels: the camera's picture, and the curve of Q below it
FPS, HOLD = 20, 15          # twice as fast as it happens; frames that an episode's last one stays


def choose_renderer() -> None:
    """Sets MUJOCO_GL, before mujoco is imported, to the first renderer that works here (macOS has cgl); what is set
    already is taken as it is. UserError where none works."""
    wanted = os.environ.get("MUJOCO_GL", "disable")
    names = [wanted] if wanted not in ("", "disable") else ["egl", "osmesa", "cgl"]
    for name in names:          # tried in another process: a renderer that fails may take its process along
        words = [sys.executable, "-c", "import mujoco; mujoco.GLContext(64, 64).make_current()"]
        if subprocess.run(words, env=os.environ | {"MUJOCO_GL": name}, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = name
            return
    raise UserError(f"no film: rendering does not work here (tried {', '.join(names)}); "
                    "install EGL (apt install libegl1 libegl-mesa0 libgl1-mesa-dri) or OSMesa (apt install libosmesa6)")


def rendering(task: str) -> dict:
    """What envs.make() must be told so that env.render() gives pictures."""
    return {"robomimic": dict(has_offscreen_renderer=True), "ogbench": dict(width=SIZE, height=SIZE),
            "own": dict(render_mode="rgb_array")}[envs.task(task).suite]


def record(policy, env, episode: int, best_of: int | None = None) -> dict:
    """Episode number `episode` of an evaluation, as it is there: its frames [n][H, W, 3], steps [n], Q [n], success."""
    obs, _ = env.reset(seed=envs.EVAL_SEED + episode)
    generator = torch.Generator().manual_seed(envs.EVAL_SEED + episode)
    shots, step, over = [], 0, False
    while not over:
        chunk = policy.act(obs[None], [generator], best_of)                                         # [1, H, A]
        with torch.no_grad():
            q = policy.critic.value(torch.as_tensor(obs[None]).to(chunk), chunk.flatten(1)).item()
        for action in chunk[0].cpu().numpy():
            if step % 2 == 0:
                shots.append((env.render(), step, q))
            obs, _, terminated, truncated, info = env.step(action)
            step, over = step + 1, terminated or truncated
            if over:
                break
    frames, steps, values = map(list, zip(*shots, (env.render(), step, q)))
    return dict(frames=frames, steps=steps, values=values, success=bool(info["success"]))


def drawn(frames, steps, values, success) -> list[Image.Image]:
    """The frames with the step, Q and, on the last, how it ended."""
    across = np.interp(steps, (0, steps[-1]), (0, SIZE))
    height = SIZE + np.interp(values, (min(values), max(values)), (PANEL - 6, 18))
    pictures = []
    for i, frame in enumerate(frames):
        picture = Image.new("RGB", (SIZE, SIZE + PANEL), "white")
        picture.paste(Image.fromarray(np.ascontiguousarray(frame)).resize((SIZE, SIZE)))
        pen = ImageDraw.Draw(picture)
        pen.text((6, SIZE + 2), f"step {steps[i]}    Q {values[i]:.1f}", "black")
        pen.line([*zip(across, height)][: i + 1], "#1f77b4", 2)
        pictures.append(picture)
    pen.text((SIZE - 66, SIZE + 2), "success" if success else "time is up", "#2ca02c" if success else "#d62728")
    return pictures + [pictures[-1]] * HOLD


def film(policy, path: str, episodes: range, best_of: int | None = None) -> None:
    """Evaluation episodes of these numbers, to a file ending in .gif or .mp4. UserError where rendering fails."""
    task = policy.config.task
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    try:
        env = envs.make(task, **rendering(task))
        env.reset(seed=0)
        env.render()
    except Exception as error:                               # renderers raise many kinds
        raise UserError(f"no film: {task} cannot be rendered here ({type(error).__name__} {error})") from None
    pictures = []
    for episode in tqdm(episodes, desc=f"filming {task}"):
        pictures += drawn(**record(policy, env, episode, best_of))
    env.close()
    if path.endswith(".gif"):            # few colours, without dither: a fifth of the size
        pictures = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0)
    else:
        imageio.mimwrite(path, [np.asarray(picture) for picture in pictures], fps=FPS, macro_block_size=8)
    print(f"{path}: {len(episodes)} episodes, {len(pictures)} frames")
