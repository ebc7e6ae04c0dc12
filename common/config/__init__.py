"""The recipe: one typed description of an experiment, unknown keys refused.

A recipe is a file in `workflows/recipes/`; the one in force for a run is its own `recipe.toml`.
Every field is documented under its name.
"""

from common.config.data import (
    ColumnMap,
    DatasetSource,
    GeneratorSource,
    GymSource,
    Source,
    TaskName,
    VerifyType,
)
from common.config.recipe import (
    AdvantageKind,
    AdvantagesConfig,
    Aggregation,
    EvaluateConfig,
    KlKind,
    LogprobsConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    PromptConfig,
    Recipe,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from common.config.rewards import FunctionReward, RewardsConfig
from common.config.section import Section

__all__ = [
    "AdvantageKind",
    "AdvantagesConfig",
    "Aggregation",
    "ColumnMap",
    "DatasetSource",
    "EvaluateConfig",
    "FunctionReward",
    "GeneratorSource",
    "GymSource",
    "KlKind",
    "LogprobsConfig",
    "MeshConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "PromptConfig",
    "Recipe",
    "RewardsConfig",
    "RolloutConfig",
    "RunConfig",
    "Section",
    "Source",
    "TaskName",
    "TrainConfig",
    "VerifyType",
]
