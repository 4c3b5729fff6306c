"""A whole update as one CUDA graph. Networks of 4 x 512 are so small that launching their kernels one by one takes
several times as long as running them. A graph of all is launched once, with the critic's kernels beside the actor's.

The first updates run as they are written, which also compiles them. Then one is captured, and replayed from there on
with the starts copied into the captured tensor, and captured anew when the update changes, as stage 2 begins. The
starts are drawn outside, as every step adds a row to draw from. What an update returns, the next one overwrites.
"""
import torch
from torch.utils import _pytree as pytree

PLAIN = 3           # calls before recording: torch must have compiled, chosen its matrix products, made Adam's moments


def attributes(algo) -> dict:
    """What the compiled code of an update has taken over from Python: numbers by value, all else by identity. Where
    one is another at the next call, that code would go on with the old one."""
    return {name: value if isinstance(value, (int, float)) else id(value) for name, value in vars(algo).items()}


class Graph:
    """function(*inputs) as a graph, recorded anew whenever kind() changes. Inputs: tensors, or lists and dicts of
    them, contiguous and of the same shapes at every call."""

    def __init__(self, function, kind=None, generators=(), optimizer=None):
        self.function, self.kind, self.generators = function, kind or (lambda: "the only one"), generators
        self.groups = optimizer.param_groups if optimizer else []
        self.stream, self.recorded, self.plain, self.graph = torch.cuda.Stream(), None, 0, None

    def __call__(self, *inputs):
        if self.recorded != self.kind():
            self.recorded, self.plain, self.graph = self.kind(), PLAIN, None
        if self.plain:
            self.plain -= 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                outputs = self.function(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return outputs
        if self.graph is None:
            self.record(inputs)
        torch._foreach_copy_(pytree.tree_leaves(self.inputs), pytree.tree_leaves(inputs))
        self.graph.replay()
        return self.outputs

    def record(self, inputs) -> None:
        self.inputs, self.graph = pytree.tree_map(torch.clone, inputs), torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        for group in self.groups:
            group["capturable"] = True                           # Adam only checks the flag: its fused form always is
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.outputs = self.function(*self.inputs)
        for group in self.groups:
            group["capturable"] = False


def graphed(step, buffers: list, batch):
    """starts -> step.update(batch(starts)) as a graph. step: a CompiledUpdate of fast.py or a Together of seeds.py."""
    def update(starts):
        return step.update(batch(starts))

    def kind():                                                  # what an update's code asks
        return attributes(step.algorithms[0]), buffers[0].num_online > 0
    here = all(b.device.type == "cuda" for b in buffers)
    graph = Graph(update if here else step.update, kind, [a.generator for a in step.algorithms], step.optimizer)
    side_by_side(step, graph.stream)
    if here:
        return graph
    # In one piece, as its copies in the graph are: a loss compiled for other strides would be compiled while
    # recording.
    return lambda starts: graph(pytree.tree_map(torch.Tensor.contiguous, batch(starts)))


def side_by_side(step, stream) -> None:
    """The critic's loss, and with it its gradient, on a stream of its own, which the actor's joins at its end."""
    critic_loss, actor_loss, aside = step.critic_loss, step.actor_loss, torch.cuda.Stream()
    # Where a gradient is stored is decided by the first use of its parameter, and the critic's loss uses the actor
    # too: then the critic's backward pass would wait for the actor's. So they are used here, once for all, and kept.
    for network, its_stream in ((step.actor, stream), (step.critic, aside)):
        with torch.cuda.stream(its_stream):
            network.kept = [torch.autograd.graph.get_gradient_edge(p).node for p in network.parameters()]

    def forked(*args):
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            return critic_loss(*args)

    def joined(*args):
        result = actor_loss(*args)
        torch.cuda.current_stream().wait_stream(aside)
        return result
    step.critic_loss, step.actor_loss = forked, joined
