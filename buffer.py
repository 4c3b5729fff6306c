"""The replay buffer D, and how a chunk is cut from it  (Alg. 1, lines 2-3).

A transition has six fields: observations [O], actions [A], rewards, masks (0 = the task terminated here), terminals
(1 = the episode ends here, for whatever reason), next_observations [O]. Termination and the mere end of an episode are
two different arrays: the critic stops bootstrapping at the first, chunks must not run across the second.

Axes: B states, H chunk, O observation, A action.
"""
import torch
from torch import Tensor

from config import UserError
from critic import chunk_return

STEP_FIELDS = ("observations", "actions", "rewards", "masks", "terminals")       # of every step of a chunk
FIELDS = (*STEP_FIELDS, "next_observations")


class ReplayBuffer:
    """The data's n transitions, numbered from 0, then up to `online_capacity` online ones in the order they happened.
    Nothing is overwritten. (The released code keeps a ring of max(2M, n + 1), which eats into large data sets.) A set
    in many files has a subclass, ShardBuffer in tools/official/shards.py.

    dataset: an array [n, ...] for each of FIELDS. The arrays lie on `device`, batches go to `batch_device`.
    UserError for a dataset shorter than one chunk.
    """

    def __init__(self, dataset: dict, online_capacity: int, chunk: int, discount: float, device="cpu",
                 batch_device=None):
        self.chunk, self.discount, self.device = chunk, discount, torch.device(device)
        self.batch_device = torch.device(batch_device or device)
        self.offline_size = self.size = len(dataset["observations"])
        if self.size < chunk:
            raise UserError(f"the data hold {self.size} transitions, fewer than one chunk of {chunk}")
        self.cuts = []           # online transitions that end_episode() marked, by number; for checkpoints

        def with_room(values):
            return room_behind(values, online_capacity, self.device)
        self.observations = with_room(dataset["observations"])                 # [|D| + online, O]
        self.actions = with_room(dataset["actions"])                           # [|D| + online, A]
        self.rewards = with_room(dataset["rewards"])                           # [|D| + online]
        self.masks = with_room(dataset["masks"])                               # [|D| + online]
        self.terminals = with_room(dataset["terminals"])                       # [|D| + online]
        self.next_observations = with_room(dataset["next_observations"])       # [|D| + online, O]
        self.terminals[self.offline_size - 1] = 1        # what comes next online is another episode in any case

    # ------------------------------------------------------------------------------------------ line 3: a mini-batch
    # In two steps, chunks(starts(B)). On a GPU the second is part of a recorded graph. The first is not, as the range
    # that it draws from grows with every step.
    def starts(self, batch_size: int, generator: torch.Generator | None = None) -> Tensor:
        """Rows where chunks begin, uniform over everything stored: [B]."""
        return torch.randint(self.size - self.chunk + 1, (batch_size,), generator=generator, device=self.device)

    def chunks(self, starts: Tensor) -> dict[str, Tensor]:
        """H consecutive rows from each start [B]:

        observations [B, O]          before the chunk's first step
        actions [B, H, A]
        rewards [B]                  their discounted sum over the chunk
        masks [B]                    0 if the task terminated in the chunk
        next_observations [B, O]     after its last step
        valid [B, H]                 1 while no episode ended at an *earlier* step: terminals 0 0 1 0 0 give 1 1 1 0 0

        A chunk that runs past an episode's end has valid[:, -1] = 0. The critic ignores it, and L_BC masks the steps
        that are not valid, unless --no-mask-bc. So no step of the next episode is a target. (OGBench's play goes on
        after a goal is reached: a mask may be 0 in mid-episode. It ends the bootstrap, and the chunk's later rewards
        still count, as released.)
        """
        index = starts[:, None] + torch.arange(self.chunk, device=starts.device)                    # [B, H]
        rows = self.transitions(index, STEP_FIELDS)                                                 # each [B, H, ...]
        last = self.transitions(index[:, -1], ("next_observations",))                               # [B, O]
        ended = rows["terminals"].cummax(dim=1).values             # 1 from an episode's last step on, [B, H]
        batch = {
            "observations": rows["observations"][:, 0],
            "actions": rows["actions"],
            "rewards": chunk_return(rows["rewards"], self.discount),
            "masks": rows["masks"].amin(dim=1),                    # 0 if one of them is
            "next_observations": last["next_observations"],
            "valid": torch.cat([torch.ones_like(ended[:, :1]), 1 - ended[:, :-1]], dim=1),          # one step later
        }
        return {name: moved(part, self.batch_device) for name, part in batch.items()}

    def transitions(self, index: Tensor, names=FIELDS) -> dict[str, Tensor]:
        """These fields of the rows with these numbers: index [...] -> [..., O], [..., A] or [...]."""
        return {name: getattr(self, name)[index] for name in names}

    # ------------------------------------------------------------------------------------- line 2: what is seen online
    @property
    def num_online(self) -> int:
        return self.size - self.offline_size

    def online(self, name: str) -> Tensor:
        """The part of a field's array that online transitions fill: a view [capacity, ...]. (ShardBuffer has arrays of
        its own for them.)"""
        return getattr(self, name)[self.offline_size:]

    def add(self, obs, action, reward: float, terminated: bool, truncated: bool, next_obs) -> None:
        """Appends one online transition: obs and next_obs [O], action [A]. IndexError when the capacity is used up."""
        row = dict(observations=obs, actions=action, rewards=reward, masks=1.0 - terminated,
                   terminals=float(terminated or truncated), next_observations=next_obs)
        for name, value in row.items():
            value = torch.as_tensor(value, dtype=torch.float32)
            self.online(name)[self.num_online] = moved(value, self.device)                # the first free row
        self.size += 1

    def end_episode(self) -> None:
        """Makes the newest online transition its episode's last. For an episode whose simulator was lost."""
        if self.num_online:
            self.cuts.append(self.num_online - 1)
            self.online("terminals")[self.cuts[-1]] = 1


def room_behind(values, room: int, device) -> Tensor:
    """The values [n, ...] as float32 on the device, with zeros for `room` more rows behind them."""
    values = torch.as_tensor(values, dtype=torch.float32)
    array = torch.zeros(len(values) + room, *values.shape[1:], device=device)
    array[: len(values)] = values
    return array


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On the device; to a GPU without waiting for what it is busy with."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
