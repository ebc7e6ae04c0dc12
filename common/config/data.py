"""[data]: where questions come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config.section import Positive, Section

VerifyType = Literal[
    "LAST_NUMBER",
    "BOXED_NUMERICAL",
    "ANSWER_TAG",
    "EXACT",
    "MULTIPLE_CHOICE",
    "MATH",
    "CODE",
    "SIMILARITY",
    "REASONING_GYM",
    "NUMERIC",
    "REGEX",
    "JSON_SCHEMA",
    "SQL",
    "JUDGE",
    "IFEVAL",
]
TaskName = Literal["multiplication", "counting", "scheduling"]


class GeneratorSource(Section):
    kind: Literal["generator"] = "generator"
    generator: TaskName
    """A built-in task of `common/tasks/`."""
    train: Annotated[int, Field(ge=0)] = 2000
    """Number of distinct training questions; 0 if the questions are for evaluation only."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Number of distinct evaluation questions; no question is in both splits."""
    seed: int = 0
    """Seed that decides which of the task's questions are drawn."""
    difficulty: dict[str, Any] = Field(default_factory=dict)
    """The task's own keys, checked by its difficulty model."""


class ColumnMap(Section):
    """The data set's own name for each of our columns; empty to ignore a column.

    In `a.b`, `b` is a key of the objects in the column `a`; items of a list have numbers from 0.
    """

    question: str = "question"
    """What the model is asked: text, or a conversation as in `messages`. Without this column and
    `messages`, a column `prompt` is taken, as in data sets for TRL."""
    answer: str = "answer"
    """The gold answer, or a text that contains it (see `answer_after`); a list: any of them is
    right."""
    verify_type: str = "verify_type"
    """The rule that judges answers to this row."""
    messages: str = "messages"
    """Ready chat messages (list of role and content) instead of a question."""
    prompt_id: str = "prompt_id"
    """A stable id; without it, a hash of the content is the id."""
    metadata: str = "metadata"
    """A JSON object that is kept with the question."""


class DatasetSource(Section):
    kind: Literal["dataset"] = "dataset"
    path: str
    """A JSONL, JSON, Parquet, CSV or TSV file, a folder of such files, a folder that
    `Dataset.save_to_disk` wrote, or the name of a data set on the hub."""
    eval_path: str = ""
    """The same for the evaluation questions, if they are elsewhere."""
    name: str = ""
    """Configuration of a hub data set (GSM8K: `main`)."""
    train_split: str = "train"
    """Split of the training questions, where the data set has splits."""
    eval_split: str = ""
    """Split of the evaluation questions; if empty, `eval` rows are held out of `train_split`."""
    train: Positive | None = None
    """Number of training questions to take; all if not given."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Number of evaluation questions to take or to hold out."""
    columns: ColumnMap = ColumnMap()
    answer_after: str = ""
    """Text in the answer column whose last occurrence is followed by the gold answer (GSM8K:
    `####`); empty: the column is the answer."""
    answer_pattern: str = ""
    """Regular expression whose first group is the gold answer inside the answer column, where
    `answer_after` does not suffice."""
    verify_type: VerifyType | None = None
    """The rule that judges answers, for a data set without a `verify_type` column."""

    @model_validator(mode="after")
    def _one_way_to_the_answer(self) -> DatasetSource:
        if self.answer_after and self.answer_pattern:
            raise ValueError(
                f"answer_after = {self.answer_after!r} and answer_pattern = "
                f"{self.answer_pattern!r} both say where the answer stands; remove one of them"
            )
        return self


class GymSource(Section):
    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    """A data set of the package reasoning-gym (extra `reasoning-gym`), such as `chain_sum`."""
    train: Positive = 2000
    """Number of training questions."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Number of evaluation questions; no question is in both splits."""
    seed: int = 0
    """Seed that decides which of the data set's questions are drawn."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The data set's own keys, checked by reasoning-gym."""
    verify_type: VerifyType = "REASONING_GYM"
    """The rule that judges answers. By default the data set itself scores the text between answer
    tags, else in the last box, else the whole answer. Any other rule compares with the answer that
    the data set gives, so it fits only where no other answer is right."""


Source = Annotated[GeneratorSource | DatasetSource | GymSource, Field(discriminator="kind")]
