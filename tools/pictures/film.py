"""Episodes of a policy as a GIF or MP4, with Q of the chunk being executed: python evaluate.py RUN --film out.gif"""
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
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
            "own": dict(render_mode="rgb_array")}[envs.find_task(task).suite]


class Camera(gymnasium.Wrapper):
    """An environment whose episode is filmed, and a policy's act() for it. A picture before every other step and after
    the last: frames [n][H, W, 3], steps [n], values [n] of Q for the chunk that is under way, success."""

    def __init__(self, env, policy):
        super().__init__(env)
        self.policy, self.frames, self.steps, self.values, self.success = policy, [], [], [], False
        self.count = 0

    def act(self, obs, noise, best_of=None) -> torch.Tensor:
        chunk = self.policy.act(obs, noise, best_of)                                                # [1, H, A]
        with torch.no_grad():
            self.q = self.policy.critic.value(torch.as_tensor(obs).to(chunk), chunk.flatten(1)).item()
        return chunk

    def step(self, action):
        if self.count % 2 == 0:
            self.shoot()
        answer = self.env.step(action)
        self.count += 1
        _, _, terminated, truncated, info = answer
        if terminated or truncated:
            self.shoot()
            self.success = bool(info["success"])
        return answer

    def shoot(self) -> None:
        self.frames.append(self.env.render())
        self.steps.append(self.count)
        self.values.append(self.q)


def drawn(frames, steps, values, success) -> list[Image.Image]:
    """A camera's frames with the step, Q and, on the last, how it ended."""
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


def film(policy, path: str, play, episodes: range, best_of: int | None = None) -> None:
    """Evaluation episodes of these numbers, to a file ending in .gif or .mp4. play: evaluate's, which plays one.
    UserError where rendering fails."""
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
        camera = Camera(env, policy)
        play(camera.act, camera, episode, best_of)
        pictures += drawn(camera.frames, camera.steps, camera.values, camera.success)
    env.close()
    if path.endswith(".gif"):            # few colours, without dither: a fifth of the size
        pictures = [picture.quantize(128, dither=Image.Dither.NONE) for picture in pictures]
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // FPS, loop=0)
    else:
        imageio.mimwrite(path, [np.asarray(picture) for picture in pictures], fps=FPS, macro_block_size=8)
    print(f"{path}: {len(episodes)} episodes, {len(pictures)} frames")
