"""The errors of relupath, one tree.

::

    RelupathError
    ├── InputError (ValueError)            the input tensor or picture cannot be explained
    ├── ModelError (ValueError)            the model, its weights or its name cannot be used
    ├── TrainingModeError (ValueError)     part of the model is in training mode
    ├── UnsupportedOperation (NotImplementedError)
    │                                      an operation is not affine at the input
    ├── IncompleteError (ArithmeticError)  W x + b differs from the output
    ├── TargetError (ValueError)           a target is out of range or not linear
    ├── UnknownLayerError (LookupError)    no such hidden layer
    ├── PathError (ValueError)             a path does not fit the network
    ├── UsageError (ValueError)            what was asked for is not there or does not go together
    └── MissingExtraError (ImportError)    an optional dependency is not installed
"""


class RelupathError(Exception):
    """Base of every error that relupath raises on purpose."""


class InputError(RelupathError, ValueError):
    """The input cannot be explained: wrong type or shape, not finite, or an unreadable picture."""


class ModelError(RelupathError, ValueError):
    """The model cannot be used: unknown name, missing or mismatched weights, unusable output."""


class TrainingModeError(RelupathError, ValueError):
    """Part of the model is in training mode, where batch norm and dropout are no function of one input."""


class UnsupportedOperation(RelupathError, NotImplementedError):
    """An operation is not affine at the input and relupath knows no exact treatment of it."""


class IncompleteError(RelupathError, ArithmeticError):
    """The weight part and the bias sources do not sum to the output: the model was not understood."""


class TargetError(RelupathError, ValueError):
    """A target names a class out of range, has the wrong shape, or is not linear in the output."""


class UnknownLayerError(RelupathError, LookupError):
    """No hidden layer of that name, position or module was recorded."""


class PathError(RelupathError, ValueError):
    """A path does not fit the network: unit out of range or named twice, layers out of order."""


class UsageError(RelupathError, ValueError):
    """What was asked for is not there or does not go together: a model's name, a file's ending, an option."""


class MissingExtraError(RelupathError, ImportError):
    """An optional dependency is not installed."""
