"""The update as fast as this machine can: as written, in compiled halves, or as one CUDA graph, which is decided here.

    update = fast_update(algo, buffer)       update(starts) = algo.update(buffer.chunks(starts))
    act = fast_act(algo)                     act(obs, generator) = algo.act(obs, generator)
"""
from functools import partial

import torch

from tools.training.files import say_once


def set_precision(config) -> None:
    """Of passes that train: TF32 on CUDA, or fp32. (Of passes without a gradient: bf16_pays.)"""
    torch.set_float32_matmul_precision("high" if config.precision == "auto" else "highest")


def bf16_pays(device: torch.device) -> bool:
    """Whether bf16 is faster here. Emulated on a CPU it takes six times as long as fp32, on an Intel with its vector
    instructions but without AMX twice as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()
    vectors = known.get("avx512_bf16") and not str(known.get("cpu_name")).startswith("Intel")
    return device.type == "cpu" and bool(vectors or known.get("amx_bf16"))


def compiled(function):
    """torch.compile(function); where there is no working compiler the function itself, said once."""
    return unless_it_fails(torch.compile(function), function)


def unless_it_fails(fast, function):
    """fast, which torch has compiled or will, until that fails; from then on the function that it stands for."""
    def call(*args):
        nonlocal fast
        if fast is function:
            return function(*args)
        try:
            return fast(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:       # torch raises many kinds; the function's own faults come up again below
            say_once(f"torch.compile does not work here ({reason(error)}); going on without it, as --no-compile would")
            fast = function
            return function(*args)
    return call


def reason(error: Exception) -> str:
    """Why torch.compile failed: the last line that the compiler wrote, and what is to blame where that is known."""
    if "No working C++ compiler" in str(error):
        return "it needs a C++ compiler: apt install g++, or conda install gxx"
    lines = [line for line in str(error).partition("Set TORCHDYNAMO")[0].split("\n") if line.strip()]
    blame = "; the space in torch's path is to blame, " + torch.__path__[0] if " " in torch.__path__[0] else ""
    return f"{type(error).__name__} {lines[-1][:200] if lines else ''}{blame}"


class CompiledUpdate:
    """DFP.update with its two losses compiled: two functions, which a GPU takes side by side."""

    def __init__(self, algo):
        self.algorithms, self.config, self.device = [algo], algo.config, algo.device
        self.actor, self.critic, self.optimizer = algo.actor, algo.critic, algo.optimizer
        self.critic_loss, self.actor_loss = compiled(algo.critic_loss), compiled(algo.actor_loss)

    def update(self, batch: dict) -> dict:
        return self.algorithms[0].update(batch, losses=(self.critic_loss, self.actor_loss))


def fast_update(algo, buffer):
    """starts [B] -> info: algo.update on the chunks of the buffer that begin there."""
    if not algo.config.compile:
        return lambda starts: algo.update(buffer.chunks(starts))
    # With several threads of torch's own, as at the paper's size, halves would take 1.1 to 1.3 times as long.
    if algo.device.type == "cpu" and torch.get_num_threads() == 1:
        from tools.speed.halves import Halves
        step = unless_it_fails(Halves(algo).update, algo.update)

        def update(starts):
            batch = buffer.chunks(starts)
            return step(batch, algo.draw_noise(len(batch["rewards"])))
        return update
    return recorded(CompiledUpdate(algo), [buffer], buffer.chunks)


def recorded(step, buffers: list, batch):
    """starts -> step.update(batch(starts)), on CUDA as one graph. step: a CompiledUpdate, or several seeds in one."""
    if step.config.compile and step.device.type == "cuda":
        from tools.speed.graph import graphed
        return graphed(step, buffers, batch)
    return lambda starts: step.update(batch(starts))


def fast_act(algo):
    """algo.act for one observation at a time: (obs [1, O], generator) -> [1, H, A], on CUDA as one graph."""
    if not algo.config.compile or algo.device.type != "cuda":
        return algo.act
    from tools.speed.graph import Graph
    choose = Graph(partial(algo.choose, actor=algo.acting))

    def act(obs, generator=None):
        obs = torch.as_tensor(obs, dtype=torch.float32, device=algo.device)
        noise = algo.acting_noise(len(obs), generator, algo.config.best_of)
        return choose(obs, noise).unflatten(1, (algo.chunk, algo.action_dim))
    return act
