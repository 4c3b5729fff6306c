"""The environment that the policy acts in while it learns: lines 1-2 of Algorithm 1, without a wait.

The simulator plays a whole chunk in a process of its own while updates run. The loop waits only where the policy must
choose the next one, so every number is as if the two took turns. An episode's seed and the actions that were played
lead a fresh simulator to the same state: this is how a run resumes, and how a lost simulator is replaced.
"""
import contextlib
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

import envs
from config import UserError
from tools.simulators.process import SimulatorLost, Simulators

MOST_LOST = 5          # simulators in one run; then something is wrong with the machine


class Collector(contextlib.AbstractContextManager):
    """run_seed: the run's, from which every episode gets its own. state: what state_dict() gave, to go on there."""

    def __init__(self, task: str | envs.Task, run_seed: int, state: dict | None = None):
        self.make, self.run_seed = partial(envs.make, envs.find_task(task)), run_seed
        self.simulator, self.lost = None, 0
        state = state or {"episode": 0, "now": None, "played": [], "left": []}
        self.episode, self.now = state["episode"], state["now"]          # the observation [O]; None: not here yet
        self.played, self.left = [*state["played"]], [*state["left"]]    # actions [A] of the episode, of the chunk

    def state_dict(self) -> dict:
        return {"episode": self.episode, "now": self.now, "played": [*self.played], "left": [*self.left]}

    # ------------------------------------------------------------------------------------------ what the loop calls
    @property
    def playing(self) -> bool:
        """Whether a chunk is being played, so that outcome() has something to wait for."""
        return bool(self.left)

    @property
    def obs(self) -> Tensor:
        """The present observation [O]."""
        if self.now is None:
            self.now = torch.from_numpy(self.receive()[0])
        return self.now

    def play(self, chunk: Tensor) -> None:
        """Sends a chunk [H, A] off."""
        self.left = [*chunk.cpu()]
        if self.simulator is not None:
            self.simulator.send(0, "play", chunk.cpu().numpy())

    def outcome(self) -> tuple | None:
        """What the chunk's next action led to: (obs, action, reward, terminated, truncated, next_obs). A chunk ends
        with its episode. None: the simulator was lost, another one did not come to the same state, and a new episode
        has begun. UserError when simulators keep failing."""
        answer = self.receive()
        if answer is None:
            return None
        _, reward, terminated, truncated, _ = answer
        obs, next_obs, action = self.now, torch.from_numpy(answer[0]), self.left.pop(0)
        self.now = next_obs
        self.played.append(action)
        if terminated or truncated:
            self.begin_episode()
        return obs, action, reward, terminated, truncated, next_obs

    # ----------------------------------------------------------------------------------------- the simulator behind it
    def begin_episode(self) -> None:
        self.episode += 1
        self.now, self.played, self.left = None, [], []
        if self.simulator is not None:
            self.simulator.send(0, "reset", self.seed)

    @property
    def seed(self) -> int:
        return envs.training_seed(self.run_seed, self.episode)

    def receive(self) -> tuple | None:
        """The simulator's next answer, or another's where it is lost. None where no other comes to the same state."""
        while True:
            try:
                if self.simulator is None and not self.bring_back():
                    tqdm.write("the simulator does not come back to where it was (another version, another CPU?): "
                               "a new episode begins")
                    self.begin_episode()
                    return None
                return self.simulator.receive(0)
            except SimulatorLost as error:                  # at whatever call, here and nowhere else
                self.close()
                self.lost += 1
                if self.lost > MOST_LOST:
                    raise UserError(f"the simulator failed {self.lost} times, the last with: {error}") from None
                tqdm.write(f"the simulator was lost ({error}) and is replaced ({self.lost} of at most {MOST_LOST})")

    def bring_back(self) -> bool:
        """A fresh simulator, led to the present state and sent what is left of the chunk -> whether it came there."""
        self.simulator = Simulators(self.make, 1)
        self.simulator.send(0, "reset", self.seed)
        if self.now is None:
            return True                                      # the reset's answer is what receive() waits for
        obs = self.simulator.receive(0)[0]
        for action in self.played:
            self.simulator.send(0, "step", action.numpy())
            obs, _, terminated, truncated, _ = self.simulator.receive(0)
            if terminated or truncated:
                return False
        if not torch.equal(torch.from_numpy(obs), self.now):
            return False
        if self.left:
            self.simulator.send(0, "play", torch.stack(self.left).numpy())
        return True

    def close(self) -> None:
        if self.simulator is not None:
            self.simulator.close()
            self.simulator = None

    def __exit__(self, *_):
        self.close()
