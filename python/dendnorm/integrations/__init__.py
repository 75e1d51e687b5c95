"""Rewiring inside other people's trainers. Each module needs its package, which the extra of the same name installs.

- ``transformers``: ``RewiringCallback`` for the Trainer of Hugging Face.
- ``lightning`` and ``pytorch_lightning``: ``RewiringCallback`` for Lightning under either name.
- ``averages``: ``follow``, averages of the weights (EMA, SWA) that go on through rewiring. Needs no other package.
- ``fsdp``: ``keep_scalars`` and ``keep_whole``, for models that ``torch.distributed.fsdp.fully_shard`` shards.
"""
