"""Experiments: the command line, training, the paper's figures, benchmarks. Nothing else in dendnorm imports this.

From the bottom: ``data`` reads files, ``settings`` is what an experiment is told, ``networks`` and ``train`` obey it,
``results`` puts what came into words and ``curves`` draws it. On these stand ``comparison`` (one experiment), ``demo``,
``trials`` (many, in processes), ``search`` (a learning rate for each network), ``paper`` and ``bench``, and above all
``cli``.
"""
