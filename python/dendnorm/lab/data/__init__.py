"""Data sets for experiments: digits, MNIST, Fashion-MNIST, CIFAR-10 and COIL-100, read from files that the user has.

Nothing is downloaded and nothing is unpickled: a data file can hold wrong numbers, never code that runs.
"""

from .coil import SOURCE as COIL_SOURCE
from .dataset import DataFileError, DataSet, hold_out
from .idx import read_idx
from .sets import NAMES, guess, load, locate

__all__ = ["COIL_SOURCE", "NAMES", "DataFileError", "DataSet", "guess", "hold_out", "load", "locate", "read_idx"]
