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

import torch
from torch import Tensor

from critic import Critic, move_towards, td_loss, td_target
from drift import drift_loss
from policy import Actor, sample
from topk import best_action, top_k_actions


class DFP:
    """The algorithm with its networks, optimiser and noise. See update() for the batch.

    config: a config.Config, or anything with its field names. bf16: whether the hidden layers run in bf16 in passes
    that propose and rank actions, which pays on some hardware.
    """

    def __init__(self, obs_dim: int, action_dim: int, config, device: torch.device | str = "cpu", bf16: bool = False):
        self.config, self.device = config, torch.device(device)
        self.chunk, self.obs_dim, self.action_dim = config.chunk, obs_dim, action_dim
        self.chunk_dim = D = config.chunk * action_dim
        hidden = (config.hidden,) * config.layers
        # Made on the CPU, so that every device starts from the same network; the global generator is left alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.actor = self.make_actor(obs_dim, D, hidden).to(self.device)
            self.critic = Critic(obs_dim, D, hidden, config.ensemble, config.q_aggregate).to(self.device)
        self.actor_old = copy.deepcopy(self.actor).requires_grad_(False)
        self.critic_target = copy.deepcopy(self.critic).requires_grad_(False)
        self.parts = ["actor", "actor_old", "critic", "critic_target", "optimizer"]                 # of its state
        self.averaged = config.acting_ema_rate < 1                                                  # see acting()
        if self.averaged:
            self.actor_average = copy.deepcopy(self.actor).requires_grad_(False)
            self.parts.append("actor_average")
        weights = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(weights, lr=config.lr, fused=True)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.bf16 = bf16
        # Offline there is no L_topK (Sec. 5.1). Only the pure offline-RL setting of Table 8 has it throughout.
        self.improving = config.topk_offline

    def make_actor(self, obs_dim: int, chunk_dim: int, hidden: tuple[int, ...]) -> torch.nn.Module:
        """f_theta. The baselines are this class with another map from noise to action and another actor loss."""
        return Actor(obs_dim, chunk_dim, hidden)

    def start_online(self) -> None:
        """Stage 2 begins: pi_old starts as a copy of pi_theta. Adam's moments are kept, as in the released code."""
        self.actor_old.load_state_dict(self.actor.state_dict())
        self.improving = True

    # ------------------------------------------------------------------------------------------ one step of Alg. 1
    def update(self, batch: dict[str, Tensor], noise: dict[str, Tensor] | None = None, losses=None) -> dict:
        """Lines 4-7 of Algorithm 1, on the mini-batch of line 3. Returns detached 0-d tensors to log.

        batch: observations [B, O], actions [B, H, A], rewards [B] (discounted over the chunk), masks [B] (0 = the task
               terminated), next_observations [B, O] (after the chunk), valid [B, H] (0 = past the episode's end)
        noise: {"next": [B, N', D] for a', "generated": [B, G, D], "candidates": [B, N, D]}; drawn here when absent.
               With it nothing in an update is random.
        losses: compiled forms of (self.critic_loss, self.actor_loss), where tools/speed has them.
        """
        phi_loss_of, theta_loss_of = losses or (self.critic_loss, self.actor_loss)
        noise = noise or self.draw_noise(len(batch["rewards"]))
        # Line 6. The critic's Bellman error. No parameter has moved yet, so it may as well come before line 5.
        phi_loss, critic_info = phi_loss_of(batch, noise)
        # Lines 4-5. Samples of pi_theta, the critic's favourites among the proposals of pi_old, and the loss of theta.
        theta_loss, actor_info = theta_loss_of(batch, noise)
        # Line 7, and the gradient step. Each loss has a gradient for its own network alone, so their sum serves both.
        self.gradient_step(phi_loss + theta_loss)
        return {name: value.detach() for name, value in (critic_info | actor_info).items()}

    def gradient_step(self, loss: Tensor) -> None:
        """One step of Adam on a loss []. The averages move first."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()

        # Averages first, optimiser second: like the released code, averages read the parameters from *before* this
        # step. The lag of one step is harmless. It is kept so that whole updates compare number for number.
        move_towards(self.critic_target, self.critic, self.config.target_rate)
        if self.improving:
            move_towards(self.actor_old, self.actor, self.config.ema_rate)       # line 7
        if self.averaged:
            move_towards(self.actor_average, self.actor, self.config.acting_ema_rate)
        self.optimizer.step()                                                    # lines 5 and 6: theta and phi move

    def critic_loss(self, batch, noise) -> tuple[Tensor, dict[str, Tensor]]:
        """L_Q(phi), Eq. 1 over chunks. The next chunk, a', is the best of N' by the online critic, valued by the target
        critic."""
        with torch.no_grad():
            next_obs = batch["next_observations"]
            next_action = self.choose(next_obs, noise["next"])                                      # [B, D]
            next_q = self.critic_target.value(next_obs, next_action)                                # [B]
            target = td_target(batch["rewards"], batch["masks"], next_q, self.config.discount, self.chunk)
        q = self.critic(batch["observations"], batch["actions"].flatten(1))                         # [E, B]
        loss = td_loss(q, target, batch["valid"][:, -1])
        return loss, {"critic_loss": loss, "q": q.mean(), "target_q": target.mean()}

    def actor_loss(self, batch, noise) -> tuple[Tensor, dict[str, Tensor]]:
        """L_BC + lambda L_topK, Eqs. 18 and 16, on shared generated samples."""
        c, obs = self.config, batch["observations"]                                                 # [B, O]
        data = batch["actions"].flatten(1)[:, None]                                                 # [B, 1, D]
        # Line 4, first half: N_gen samples of pi_theta. Both losses push these.
        generated = sample(self.actor, obs, noise["generated"])                                     # [B, G, D]

        # The first term of line 5's loss, L_BC (Eq. 18): the positive is the data's chunk.
        bc_loss, bc_info = drift_loss(generated, data, temperatures=c.temperatures, mask=self.bc_mask(batch))
        loss = c.bc_weight * bc_loss.mean()
        info = {f"bc_{name}": value for name, value in bc_info.items()} | {"bc_loss": bc_loss.mean()}
        info |= self.diagnostics(generated, data)

        if self.improving and c.topk_weight:
            # Line 4, second half: the positives are the K best of N candidates of pi_old.
            best = self.positives(obs, noise["candidates"])                                         # [B, K, D]
            # The second term, L_topK (Eq. 16). No mask: the candidates are whole chunks of pi_old.
            topk_loss, topk_info = drift_loss(generated, best, temperatures=c.temperatures)
            loss = loss + c.topk_weight * topk_loss.mean()
            info |= {f"topk_{name}": value for name, value in topk_info.items()} | {"topk_loss": topk_loss.mean()}
        return loss, info | {"actor_loss": loss}

    @torch.no_grad()
    def diagnostics(self, generated: Tensor, data: Tensor) -> dict[str, Tensor]:
        """Are samples close to the data, and do they differ? The loss cannot tell, as V is normalised.
        bc_error must fall in stage 1, and a spread near 0 is a collapse. Chunks are compared whole, also past an
        episode's end."""
        return {"bc_error": (generated - data).abs().mean(),
                "spread": (generated - generated.mean(1, keepdim=True)).square().mean(1).sqrt().mean()}

    def bc_mask(self, batch) -> Tensor:
        """[B, D]: 0 on the steps of the data's chunk that belong to the next episode, else 1."""
        valid = batch["valid"] if self.config.mask_bc else torch.ones_like(batch["valid"])
        return valid.repeat_interleave(self.action_dim, dim=1)

    @torch.no_grad()
    def positives(self, obs: Tensor, noise: Tensor) -> Tensor:
        """P_K(s), Eq. 15: the K of N proposals of pi_old with the highest Q_phi.

        obs [B, O], noise [B, N, D] -> [B, K, D]"""
        with self.candidate_precision():
            candidates = sample(self.actor_old, obs, noise)                                         # [B, N, D]
            return top_k_actions(candidates, self.critic.value(obs, candidates), self.config.top_k)

    # ------------------------------------------------------------------------------------------ acting
    @property
    def acting(self) -> torch.nn.Module:
        """pi_theta, as in Algorithm 1, or an average of it over many updates, which no loss reads. V is normalised, so
        the gradient of a drift loss does not fade near the target. Then theta wanders at a constant learning rate, and
        its average acts better (docs/results.md)."""
        return self.actor_average if self.averaged else self.actor

    @torch.no_grad()
    def choose(self, obs: Tensor, noise: Tensor, actor: torch.nn.Module | None = None) -> Tensor:
        """Line 1, and a' of Eq. 1: the best by Q_phi of N' samples of pi_theta, or of another actor.

        obs [B, O], noise [B, N', D] -> [B, D]"""
        actor = actor or self.actor
        if noise.shape[1] == 1:                                    # nothing to choose between: the critic is not asked
            return sample(actor, obs, noise)[:, 0]
        with self.candidate_precision():
            candidates = sample(actor, obs, noise)
            return best_action(candidates, self.critic.value(obs, candidates))

    def act(self, obs, generator=None, best_of: int | None = None) -> Tensor:
        """Line 1. obs [n, O] (array or tensor) -> chunks [n, H, A], float32 in [-1, 1], on the policy's device.

        generator: a CPU torch.Generator, or a list of them, one for each row: then a row's action does not depend on
        the other rows. best_of: None = the method's N', 1 = the raw policy. ValueError for any other obs.
        """
        obs = torch.as_tensor(obs, dtype=torch.float32)
        if obs.ndim != 2 or obs.shape[1] != self.obs_dim or not obs.isfinite().all():
            raise ValueError(f"obs must be finite numbers [n, {self.obs_dim}], not {list(obs.shape)}: {obs}")
        obs = obs.to(self.device)
        noise = self.acting_noise(len(obs), generator, best_of or self.config.best_of)
        return self.choose(obs, noise, self.acting).unflatten(1, (self.chunk, self.action_dim))

    def acting_noise(self, n: int, generator, best_of: int) -> Tensor:
        """Noise for act(): [n, N', D]. Drawn on the CPU, so that every device plays the same episodes."""
        if isinstance(generator, (list, tuple)):
            noise = torch.stack([torch.randn(best_of, self.chunk_dim, generator=g) for g in generator])
        else:
            noise = torch.randn(n, best_of, self.chunk_dim, generator=generator)
        return noise.to(self.device)

    # ------------------------------------------------------------------------------------------ plumbing
    def candidate_precision(self):
        """Where bf16 is on: the hidden layers of passes that propose and rank run in it. Its rounding moves candidates
        a little, and decides between those that are nearly as good. Passes with a gradient and the target critic do
        without it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def draw_noise(self, batch_size: int) -> dict[str, Tensor]:
        """What update() takes as its noise."""
        c = self.config
        noise = {"next": self.normal(batch_size, c.best_of), "generated": self.normal(batch_size, c.num_generated)}
        if self.improving:
            noise["candidates"] = self.normal(batch_size, c.num_candidates)
        return noise

    def normal(self, batch_size: int, count: int, dim: int | None = None) -> Tensor:
        """[B, count, D], or another last dimension, from N(0, I) and this algorithm's own generator."""
        return torch.randn(batch_size, count, dim or self.chunk_dim, generator=self.generator, device=self.device)

    def state_dict(self) -> dict:
        """Everything an interrupted run needs, as tensors and plain data."""
        state = {name: getattr(self, name).state_dict() for name in self.parts}
        return state | {"improving": self.improving, "generator": {self.device.type: self.generator.get_state()}}

    def load_state_dict(self, state: dict) -> None:
        for name in self.parts:
            getattr(self, name).load_state_dict(state[name])
        self.improving = state["improving"]
        if self.device.type in state["generator"]:         # a generator's state only fits the device it came from
            self.generator.set_state(state["generator"][self.device.type])
