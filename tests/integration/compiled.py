"""Denoisers with compiled blocks beside the same ones without, in a process that has no import hook.

`compiled.py BACKEND < CASES` reads {case: config of a denoiser, or [that, "segments"]} as JSON and prints {case: what
was found}: the largest difference of outputs and gradients relative to the size of the largest number, and an error if
there was one. The first training step and the first validation may compile, each one piece of code per kind of block;
nothing may be compiled after them, and no graph may break.
"""

import copy
import json
import sys

import torch
import torch._dynamo

from diffusion_lm.config import build, config_class, from_tree
from diffusion_lm.layers.stack import Stack
from diffusion_lm.noisy import Noisy
from diffusion_lm.training.blocks import prepare_blocks
from diffusion_lm.training.config import TrainingConfig

WIDTH, LENGTH = 32, 24


def noisy(rows, length, given, segments):
    """Hidden states and what else a denoiser sees, always the same; with `segments` three documents in a row."""
    random = torch.Generator().manual_seed(rows * length)
    hidden = torch.randn(rows, length, WIDTH, generator=random)
    prompt = torch.rand(rows, length, generator=random) < 0.3 if given else None
    ends = torch.randint(0, length, (rows, 2, 1), generator=random)
    segment = 1 + (torch.arange(length) >= ends).sum(1) if segments else None
    return hidden, Noisy(hidden, torch.rand(rows, 1, generator=random), prompt, segment=segment)


def trained(net, rows, length, segments):
    """Output, and gradients of the input and of all parameters."""
    net.train()
    hidden, seen = noisy(rows, length, given=True, segments=segments)
    hidden.requires_grad_()
    out = net(hidden, seen)
    out.square().sum().backward()
    found = [out.detach(), hidden.grad, *(p.grad for p in net.parameters() if p.grad is not None)]
    net.zero_grad()
    return found


def evaluated(net, rows, length, segments):
    """Output without gradients, nothing given."""
    net.eval()
    with torch.inference_mode():
        return [net(*noisy(rows, length, given=False, segments=segments))]


def far(a, b):
    """Largest difference, relative."""
    assert len(a) == len(b)
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-3)) for x, y in zip(a, b))


def compared(tree, backend, segments=False):
    """The largest difference between the compiled denoiser and the other one."""
    torch.manual_seed(0)
    config = from_tree(config_class("denoisers", tree["name"]), {k: v for k, v in tree.items() if k != "name"})
    plain = build(config, WIDTH)
    for parameter in plain.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    net = copy.deepcopy(plain)
    prepare_blocks(net, TrainingConfig(compile=True, compile_backend=backend))
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in plain.named_parameters()]
    calls = [(trained, 4, LENGTH), (evaluated, 8, LENGTH), (trained, 4, LENGTH), (evaluated, 3, LENGTH)]
    calls += [(evaluated, 8, LENGTH), (evaluated, 5, 41), (evaluated, 2, 17), (trained, 4, LENGTH)]
    found = []
    for number, (function, *sizes) in enumerate(calls):
        with torch._dynamo.config.patch(error_on_recompile=number > 1):
            found.append(far(function(net, *sizes, segments), function(plain, *sizes, segments)))
    assert not torch._dynamo.utils.counters["graph_break"]
    kinds = {json.dumps(str(block)) for part in net.modules() if isinstance(part, Stack) for block in part.blocks}
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs == 2 * len(kinds), f"{graphs} graphs for {len(kinds)} kinds of block"
    return max(found)


def main(backend):
    answers = {}
    for case, asked in json.load(sys.stdin).items():
        tree, segments = asked if isinstance(asked, list) else (asked, None)
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        try:
            answers[case] = {"difference": compared(tree, backend, bool(segments)), "error": None}
        except Exception as error:
            answers[case] = {"difference": None, "error": f"{type(error).__name__}: {error}"}
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
