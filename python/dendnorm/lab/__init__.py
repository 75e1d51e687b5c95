"""Experiments: the command line, training, the paper's figures, benchmarks. Nothing else in dendnorm imports this."""
