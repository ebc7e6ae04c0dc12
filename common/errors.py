"""Errors that a command may end with, each with its exit code."""


class UserError(ValueError):
    """An error the user can fix; it names the file, field, value and fix. Exit code 2."""

    exit_code = 2


class MissingToolError(UserError):
    """A program or package that the work needs is missing or does not work here. Exit code 3."""

    exit_code = 3


class NoLearningSignalError(UserError):
    """Rewards are equal in every group, or hardly a completion has an answer. Exit code 4."""

    exit_code = 4


class SamplerGapError(UserError):
    """Sampler and trainer disagree about the logprobs of the same tokens. Exit code 5."""

    exit_code = 5


class NonFiniteError(UserError):
    """The model's numbers are not finite: in three steps in a row or in sampling. Exit code 6."""

    exit_code = 6
