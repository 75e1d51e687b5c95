"""Trains a small character transformer twice: dense, and wider but sparse with exactly as many parameters.

    python examples/char_transformer.py --steps 500

The text is the source code of Python's own standard library, read at run time; the last tenth is held out. The sparse
network has ``--widening`` times as many hidden units in the feed-forward layers, and as many connections in the linear
layers of its blocks as make both networks have equally many parameters. It is rewired on the way. Both see the same
batches. Prints a table.
"""

from __future__ import annotations

import argparse
import sysconfig
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

import dendnorm

MODULES = ("argparse", "ast", "asyncio/base_events", "datetime", "decimal", "difflib", "inspect", "pathlib", "typing")


def text() -> str:
    folder = Path(sysconfig.get_paths()["stdlib"])
    found = [path.read_text(encoding="utf-8") for name in MODULES if (path := folder / f"{name}.py").exists()]
    return "".join(character for character in "\n".join(found) if character.isascii())


class Block(nn.Module):
    """Causal attention and a feed-forward layer, each on a residual path."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_hidden = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.queries_keys_values(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(functional.gelu(self.expand(self.before_hidden(x))))


class Transformer(nn.Module):
    def __init__(self, characters: int, context: int, width: int, heads: int, blocks: int, hidden: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, hidden) for _ in range(blocks)))
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.characters(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.last(self.blocks(x)))


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def make_sparse(model: Transformer, parameters: int) -> None:
    """Make the blocks sparse such that the whole model has exactly so many parameters."""
    layers = [(block, name) for block in model.blocks for name, _ in block.named_children()
              if isinstance(getattr(block, name), nn.Linear)]  # fmt: skip
    weights = sum(getattr(block, name).weight.numel() for block, name in layers)
    # Each sparse layer has an excitability for every neuron besides: what is left is shared out among the weights.
    extra = sum(getattr(block, name).out_features for block, name in layers)
    left = parameters - (size(model) - weights) - extra
    if left < len(layers):
        raise ValueError(f"widening leaves {left} connections for {len(layers)} layers: take a smaller one")
    density, given = left / weights, 0
    for index, (block, name) in enumerate(layers):
        linear = getattr(block, name)
        count = left - given if index == len(layers) - 1 else round(density * linear.weight.numel())
        given += count
        setattr(block, name, dendnorm.SparseLinear(linear.in_features, linear.out_features, nnz=count,
                                                   norm="l0-variable", seed=index))  # fmt: skip


def batches(data: torch.Tensor, count: int, batch: int, context: int, seed: int) -> torch.Tensor:
    """(count, batch, context + 1) pieces of the text, drawn with their own seed."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(data) - context, (count, batch, 1), generator=generator)
    return data[starts + torch.arange(context + 1)]


def loss_of(model: nn.Module, pieces: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(pieces[:, :-1]).flatten(0, 1), pieces[:, 1:].flatten())


def train(model: nn.Module, training: torch.Tensor, held_out: torch.Tensor, rate: float, every: int) -> list[str]:
    optimizer = torch.optim.AdamW(dendnorm.param_groups(model, weight_decay=0.01), lr=rate)
    sparse = any(isinstance(module, dendnorm.SparseLinear) for module in model.modules())
    # The last quarter of the training leaves the connections alone, so that the new ones can settle.
    schedule = dendnorm.schedules.Cosine(0.2, max(3 * len(training) // (4 * every), 1))
    rewire = dendnorm.SET(model, optimizer, zeta=schedule) if sparse else None
    start = time.perf_counter()
    for step, pieces in enumerate(training, 1):
        loss = loss_of(model, pieces)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if rewire is not None and step % every == 0 and step <= 3 * len(training) // 4:
            rewire.step()
    seconds = time.perf_counter() - start
    with torch.no_grad():
        final = sum(float(loss_of(model, pieces)) for pieces in held_out) / len(held_out)
    return [f"{size(model):,}", f"{float(loss.detach()):.3f}", f"{final:.3f}", f"{seconds:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--widening", type=int, default=4, help="hidden units of the sparse network over the dense")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--every", type=int, default=25, help="steps between rewirings")
    arguments = parser.parse_args()
    whole = text()
    letters = sorted(set(whole))
    data = torch.tensor([letters.index(character) for character in whole])
    cut = len(data) * 9 // 10
    training = batches(data[:cut], arguments.steps, arguments.batch, arguments.context, seed=1)
    held_out = batches(data[cut:], 20, arguments.batch, arguments.context, seed=2)

    def network(hidden: int) -> Transformer:
        torch.manual_seed(0)
        return Transformer(len(letters), arguments.context, arguments.width, 4, arguments.blocks, hidden)

    hidden = 4 * arguments.width
    dense, sparse = network(hidden), network(arguments.widening * hidden)
    make_sparse(sparse, size(dense))
    print(f"{len(whole):,} characters of {len(letters)} kinds; {arguments.steps} steps of {arguments.batch} pieces\n")
    print("| network | parameters | training loss | held-out loss (nats per character) | seconds |")
    print("|---|---|---|---|---|")
    for name, model in (("dense", dense), (f"sparse, {arguments.widening} times the hidden units", sparse)):
        cells = train(model, training, held_out, arguments.rate, arguments.every)
        print("| " + " | ".join([name, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
