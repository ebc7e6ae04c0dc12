"""[data]: where questions come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

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
    """Distinct training questions; 0 for questions that are only evaluated."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Distinct evaluation questions; no question is in both splits."""
    seed: int = 0
    """Which of the task's questions are drawn."""
    difficulty: dict[str, Any] = Field(default_factory=dict)
    """The task's own keys, checked by its difficulty model."""


class ColumnMap(Section):
    """The names that a data set gives to our columns; empty where it has none."""

    question: str = "question"
    """What the model is asked."""
    answer: str = "answer"
    """The gold answer, or a text that has it (`answer_pattern`); a list: any of them is right."""
    verify_type: str = "verify_type"
    """The rule that judges answers to this row."""
    messages: str = "messages"
    """Ready chat messages (list of role and content) instead of a question."""
    prompt_id: str = "prompt_id"
    """A stable id; without it the content's hash."""
    metadata: str = "metadata"
    """A JSON object that is carried along."""


class DatasetSource(Section):
    kind: Literal["dataset"] = "dataset"
    path: str
    """A JSONL, JSON, Parquet or CSV file, a folder of them or of `Dataset.save_to_disk`, or a
    data set's hub name."""
    eval_path: str = ""
    """The same for the evaluation questions, when they lie elsewhere."""
    name: str = ""
    """Configuration of a hub data set (GSM8K: `main`)."""
    train_split: str = "train"
    """Split of the training questions, where the data set has splits."""
    eval_split: str = ""
    """Split that holds the evaluation questions; empty: `eval` rows are held out of training."""
    train: Positive | None = None
    """Training questions to take; all when not given."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Evaluation questions to take or to hold out."""
    columns: ColumnMap = ColumnMap()
    answer_pattern: str = ""
    """Regular expression whose first group is the gold answer inside the answer column
    (GSM8K: `####\\s*(.+)`); empty: the column is the answer."""
    verify_type: VerifyType | None = None
    """For data sets without a `verify_type` column."""


class GymSource(Section):
    kind: Literal["reasoning_gym"] = "reasoning_gym"
    dataset: str
    """A data set of the package reasoning-gym (extra `reasoning-gym`), such as `chain_sum`."""
    train: Positive = 2000
    """Training questions."""
    eval: Annotated[int, Field(ge=0)] = 200
    """Evaluation questions; no question is in both splits."""
    seed: int = 0
    """Which of the data set's questions are drawn."""
    config: dict[str, Any] = Field(default_factory=dict)
    """The data set's own keys, checked by reasoning-gym."""
    verify_type: VerifyType = "REASONING_GYM"
    """The rule that judges. By default the data set itself scores the text between answer tags, or
    else in the last box, or else the whole answer; any other rule compares with the answer that the
    data set gives, and fits only where no other is right."""


Source = Annotated[GeneratorSource | DatasetSource | GymSource, Field(discriminator="kind")]
