"""Drifting Field Policy: Algorithm 1, one update from one batch  (Alg. 1, Eqs. 1, 15, 16, 18).

Both stages run the same update. Offline, L = L_BC: the data's actions are the positives. Online, L = L_BC + lambda
L_topK: one more set of positives, the critic's favourites among what the slowly moving pi_old proposes. BC keeps the
policy where the critic knows something, top-K moves it uphill; both push the *same* generated samples. (Table 8's pure
offline setting has L_topK from the first step on, and a pi_old that averages from the initial weights.)

    paper                     here                          paper                     here
    f_theta(eps, s)           self.actor                    Q_phi                     self.critic
    pi_old                    self.actor_old                Q_phi-bar                 self.critic_target
    N, K, N', N_gen           num_candidates, top_k, best_of, num_generated           lambda     topk_weight

Axes: B states, N candidates, K positives, G generated, H chunk, A action, D = H*A the flat chunk, O observation.
"""
import copy
import functools

import torch
from torch import Tensor

from critic import Critic, move_towards, td_loss, td_target
from drift import drift_loss
from policy import Actor, sample
from topk import best_action, top_k_actions


def compiled(function):
    """torch.compile(function); where there is no working compiler the function itself, said once."""
    fast = torch.compile(function)

    def call(*args):
        nonlocal fast
        if fast is function:
            return function(*args)
        try:
            return fast(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:                 # torch raises many kinds; the function's own faults come up again below
            say_once(f"torch.compile does not work here ({type(error).__name__}); going on without it, as --no-compile would")
            fast = function
            return function(*args)
    return call


say_once = functools.cache(print)


def bf16_pays(device: torch.device) -> bool:
    """Whether this hardware is faster in bf16. A CPU that only emulates it takes six times as long as in fp32 (a Zen 3), and an
    Intel that has its vector instructions alone twice as long (a Xeon of the Sapphire Rapids kind without AMX)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    vectors = known.get("avx512_bf16") and not str(known.get("cpu_name")).startswith("Intel")
    return device.type == "cpu" and bool(vectors or known.get("amx_bf16"))


class DFP:
    """The algorithm with its four networks, optimiser and noise. `config` is a config.Config (or anything with its
    field names); `device` a torch.device. See update() for the batch."""

    def __init__(self, obs_dim: int, action_dim: int, config, device: torch.device | str = "cpu"):
        self.config, self.device = config, torch.device(device)
        self.chunk, self.action_dim = config.chunk, action_dim
        self.chunk_dim = D = config.chunk * action_dim
        hidden = (config.hidden,) * config.layers
        with torch.random.fork_rng(devices=[]):            # leaves the global generator alone; on the CPU, so
            torch.manual_seed(config.seed)                 # that every device starts from the same network
            self.actor = self.make_actor(obs_dim, D, hidden).to(self.device)
            self.critic = Critic(obs_dim, D, hidden, config.ensemble, config.q_aggregate).to(self.device)
        self.actor_old = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimizer = torch.optim.Adam([*self.actor.parameters(), *self.critic.parameters()], lr=config.lr, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        # Offline there is no L_topK (Sec. 5.1), but for the pure offline-RL setting of Table 8, which has it throughout.
        self.improving = config.topk_offline
        self.bf16 = config.precision == "auto" and bf16_pays(self.device)
        if config.compile:           # two functions and not one: the losses share no parameter, and a GPU takes them side by side
            self.critic_loss, self.actor_loss = compiled(self.critic_loss), compiled(self.actor_loss)

    def make_actor(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...]) -> torch.nn.Module:
        """f_theta. The baselines (baselines/) are this class with another map from noise to action and another actor loss."""
        return Actor(obs_dim, chunk_dim, hidden)

    def start_online(self) -> None:
        """Stage 2 begins: pi_old starts as a copy of pi_theta. Adam's moments are kept, as in the released code."""
        self.actor_old.load_state_dict(self.actor.state_dict())
        self.improving = True

    # ------------------------------------------------------------------------------------------ one step of Alg. 1
    def update(self, batch: dict[str, Tensor], noise: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Lines 3-7 of Algorithm 1. Returns detached 0-d tensors to log; nothing is read back from the device.

        batch: observations [B, O], actions [B, H, A], rewards [B] (discounted over the chunk), masks [B] (0 = the task
               terminated), next_observations [B, O] (after the chunk), valid [B, H] (0 = past the episode's end)
        noise: {"next": [B, N', D], "generated": [B, G, D], "candidates": [B, N, D]}; drawn here when absent. With it
               the update is a function of its arguments.
        """
        noise = noise or self.draw_noise(len(batch["rewards"]))
        critic_loss, critic_info = self.critic_loss(batch, noise["next"])         # both with the parameters before the step
        actor_loss, actor_info = self.actor_loss(batch, noise)
        self.descend(critic_loss + actor_loss)       # the two share no parameter: one backward pass serves both
        return {name: value.detach() for name, value in (critic_info | actor_info).items()}

    def descend(self, loss: Tensor) -> None:
        """One step of Adam on a loss [], and one of each average."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        # Averages first, optimiser second: like the released code, both averages read the parameters from *before* this
        # step. The lag of one step is harmless; it is kept so that whole updates compare number for number.
        move_towards(self.critic_target, self.critic, self.config.target_rate)
        if self.improving:
            move_towards(self.actor_old, self.actor, self.config.ema_rate)       # Alg. 1, line 7
        self.optimizer.step()

    def critic_loss(self, batch, noise) -> tuple[Tensor, dict[str, Tensor]]:
        """L_Q(phi), Eq. 1 over chunks: the next chunk a' is the policy's own best of N', valued by the target critic."""
        with torch.no_grad():
            next_obs = batch["next_observations"]
            next_action = self.choose(next_obs, noise)                                              # [B, D]
            next_q = self.critic_target.value(next_obs, next_action)                                # [B]
            target = td_target(batch["rewards"], batch["masks"], next_q, self.config.discount, self.chunk)
        q = self.critic(batch["observations"], batch["actions"].flatten(1))                         # [E, B]
        loss = td_loss(q, target, batch["valid"][:, -1])
        return loss, {"critic_loss": loss, "q": q.mean(), "target_q": target.mean()}

    def actor_loss(self, batch, noise) -> tuple[Tensor, dict[str, Tensor]]:
        """L_BC + lambda L_topK, Eqs. 16 and 18, on shared generated samples."""
        c, obs, data = self.config, batch["observations"], batch["actions"].flatten(1)[:, None]     # data [B, 1, D]
        generated = sample(self.actor, obs, noise["generated"])                                     # [B, G, D]

        # Eq. 18: the positive is the data's chunk.
        bc_loss, info = drift_loss(generated, data, temperatures=c.temperatures, mask=self.bc_mask(batch))
        loss = c.bc_weight * bc_loss.mean()
        info = {f"bc_{name}": value for name, value in info.items()}
        # What the loss value cannot show (it hardly changes, by construction): do samples differ, are they close (to whole
        # chunks, what is past an episode's end included)?
        with torch.no_grad():
            info |= {"bc_loss": bc_loss.mean(), "bc_error": (generated - data).abs().mean(),
                     "spread": (generated - generated.mean(1, keepdim=True)).square().mean(1).sqrt().mean()}

        if self.improving and c.topk_weight:
            positives = self.positives(obs, noise["candidates"])                                    # [B, K, D]
            topk_loss, topk_info = drift_loss(generated, positives, temperatures=c.temperatures)    # Eq. 16
            loss = loss + c.topk_weight * topk_loss.mean()
            info |= {f"topk_{name}": value for name, value in topk_info.items()} | {"topk_loss": topk_loss.mean()}
        return loss, info | {"actor_loss": loss}

    def bc_mask(self, batch) -> Tensor:
        """[B, D]: 0 on the steps of the data's chunk past an episode's end (they belong to the next one), else 1."""
        valid = batch["valid"] if self.config.mask_bc else torch.ones_like(batch["valid"])
        return valid.repeat_interleave(self.action_dim, dim=1)

    @torch.no_grad()
    def positives(self, obs: Tensor, noise: Tensor) -> Tensor:
        """P_K(s), Eq. 15: the K of N proposals of pi_old with the highest Q_phi. obs [B, O], noise [B, N, D] -> [B, K, D]."""
        with self.candidate_precision():
            candidates = sample(self.actor_old, obs, noise)                                         # [B, N, D]
            return top_k_actions(candidates, self.critic.value(obs, candidates), self.config.top_k)

    # ------------------------------------------------------------------------------------------ acting
    @torch.no_grad()
    def choose(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Best of N' samples of pi_theta by Q_phi: obs [B, O], noise [B, N', D] -> [B, D] (Alg. 1 line 1; a' of Eq. 1)."""
        if noise.shape[1] == 1:                                    # nothing to choose between: the critic is not asked
            return sample(self.actor, obs, noise)[:, 0]
        with self.candidate_precision():
            candidates = sample(self.actor, obs, noise)
            return best_action(candidates, self.critic.value(obs, candidates))

    def act(self, obs, generator=None, best_of: int | None = None, choose=None) -> Tensor:
        """obs [n, O] (array or tensor) -> chunks [n, H, A], float32 in [-1, 1], on the policy's device.

        generator: a CPU torch.Generator, or a list with one for each row, which makes a row's action independent of the
        other rows. best_of: None = the method's N', 1 = the raw policy. choose: what stands in for self.choose (its CUDA graph).
        """
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        shape = (best_of or self.config.best_of, self.chunk_dim)
        if isinstance(generator, (list, tuple)):
            noise = torch.stack([torch.randn(shape, generator=g) for g in generator])
        else:
            noise = torch.randn(len(obs), *shape, generator=generator)
        return (choose or self.choose)(obs, noise.to(self.device)).unflatten(1, (self.chunk, self.action_dim))

    # ------------------------------------------------------------------------------------------ plumbing
    def candidate_precision(self):
        """bf16 in the hidden layers of passes that carry no gradient, where bf16_pays (--precision fp32: off)."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        c = self.config
        noise = {"next": self.normal(batch_size, c.best_of), "generated": self.normal(batch_size, c.num_generated)}
        return noise | ({"candidates": self.normal(batch_size, c.num_candidates)} if self.improving else {})

    def normal(self, batch_size: int, count: int, dim: int | None = None) -> Tensor:
        """[B, count, D], or another last dimension, from N(0, I) and this algorithm's own generator."""
        return torch.randn(batch_size, count, dim or self.chunk_dim, generator=self.generator, device=self.device)

    def state_dict(self) -> dict:
        """Everything an interrupted run needs, as tensors and plain data."""
        return {name: getattr(self, name).state_dict() for name in
                ("actor", "actor_old", "critic", "critic_target", "optimizer")} | {
                    "improving": self.improving, "generator": {self.device.type: self.generator.get_state()}}

    def load_state_dict(self, state: dict) -> None:
        for name in ("actor", "actor_old", "critic", "critic_target", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.improving = state["improving"]
        if self.device.type in state["generator"]:                # a generator's state only fits the device it came from
            self.generator.set_state(state["generator"][self.device.type])


if __name__ == "__main__":            # draws this file's picture into figures/
    from tools import bandit
    bandit.draw()
