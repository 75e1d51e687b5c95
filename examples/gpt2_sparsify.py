"""Makes GPT-2 (124 million parameters, random weights) sparse in two lines, trains a step, saves it and loads it again.

    python examples/gpt2_sparsify.py --density 0.1

Prints what each step took and the memory of the process. Smaller ones: --layers 2 --width 64.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import dendnorm

VOCABULARY = 50257


class Clock:
    """Prints what was done, how long it took, and the most memory that the process has had."""

    def __init__(self) -> None:
        self.start = time.perf_counter()

    def tell(self, what: str) -> None:
        now = time.perf_counter()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{now - self.start:8.2f} s  {peak:6.2f} GiB at most  {what}", flush=True)
        self.start = time.perf_counter()


def build(layers: int, width: int, density: float) -> GPT2LMHeadModel:
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=max(width // 64, 1))
    model = GPT2LMHeadModel(config)
    # The head shares its weight with the embedding, which stays dense.
    dendnorm.sparsify(model, density, skip=["lm_head"])
    return model


def size(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--density", type=float, default=0.1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--tokens", type=int, default=256, help="length of the one sequence that is trained on")
    parser.add_argument("--out", type=Path, default=None, help="folder for the checkpoint; default: a temporary one")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    clock = Clock()
    dense = size(GPT2LMHeadModel(GPT2Config(n_layer=arguments.layers, n_embd=arguments.width,
                                            n_head=max(arguments.width // 64, 1))))  # fmt: skip
    clock.tell(f"dense model built: {dense:,} parameters")
    model = build(arguments.layers, arguments.width, arguments.density)
    clock.tell(f"model built and made sparse: {size(model):,} parameters")

    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, weight_decay=0.01), lr=3e-4)
    rewire = dendnorm.SET(model, optimizer, zeta=0.1, seed=0)
    tokens = torch.randint(VOCABULARY, (1, arguments.tokens))
    loss = model(tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    clock.tell(f"one training step on {arguments.tokens} tokens, loss {float(loss.detach()):.3f}")
    rewire.step()
    clock.tell("every layer rewired")

    with tempfile.TemporaryDirectory() as temporary:
        path = (arguments.out or Path(temporary)) / "gpt2.safetensors"
        dendnorm.save(path, model, optimizer, rewire)
        clock.tell(f"saved with its optimizer: {path.stat().st_size / 2**20:.0f} MiB")
        other = build(arguments.layers, arguments.width, arguments.density)
        dendnorm.load(path, other, adopt_pattern=True)
        clock.tell("another one built and loaded")
    with torch.no_grad():
        same = torch.equal(model.eval()(tokens).logits, other.eval()(tokens).logits)
    if not same:
        raise RuntimeError("the loaded model gives other outputs")
    clock.tell("both give the same outputs")


if __name__ == "__main__":
    main()
