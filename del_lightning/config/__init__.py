"""Settings of every part as dataclasses: the schema behind each config group in ``conf/``.

Hydra composes YAML files and command-line overrides into these classes, so an unknown key or a wrong type
fails at once. Checks that need more than a type live in ``__post_init__`` and name the key. The string under
an attribute is its help text.
"""

from del_lightning.config.baselines import (
    BaselineConfig,
    CustextConfig,
    DPForwardConfig,
    GaussianConfig,
    InferDPTConfig,
    MetricConfig,
    RantextConfig,
    SantextConfig,
)
from del_lightning.config.judging import AccountConfig, AttackConfig, EvaluateConfig, ReportConfig, TransferConfig
from del_lightning.config.names import (
    ATTACKS,
    CALIBRATING,
    CORPORA,
    DEFAULT_METHODS,
    END_TO_END,
    GLUE_TASKS,
    LOOPBACK,
    MATCHINGS,
    METHODS,
    NLU_VARIANTS,
    PRECISIONS,
    SND,
    STRATEGIES,
)
from del_lightning.config.nlu import DenoiserConfig, LoraConfig, NluConfig
from del_lightning.config.release import CodebookConfig, CodecConfig, MechanismConfig
from del_lightning.config.root import (
    SCHEMAS,
    Config,
    DataConfig,
    ModelConfig,
    StageConfig,
    config_folder,
    config_of,
    register_schemas,
    with_defaults,
)
from del_lightning.config.sharing import PublishConfig, ServeConfig
from del_lightning.config.training import AdapterConfig, InverterConfig, LoggerConfig, PromptConfig, TrainerConfig

__all__ = [
    "ATTACKS",
    "CALIBRATING",
    "CORPORA",
    "DEFAULT_METHODS",
    "END_TO_END",
    "GLUE_TASKS",
    "LOOPBACK",
    "MATCHINGS",
    "METHODS",
    "NLU_VARIANTS",
    "PRECISIONS",
    "SCHEMAS",
    "SND",
    "STRATEGIES",
    "AccountConfig",
    "AdapterConfig",
    "AttackConfig",
    "BaselineConfig",
    "CodebookConfig",
    "CodecConfig",
    "Config",
    "CustextConfig",
    "DPForwardConfig",
    "DataConfig",
    "DenoiserConfig",
    "EvaluateConfig",
    "GaussianConfig",
    "InferDPTConfig",
    "InverterConfig",
    "LoggerConfig",
    "LoraConfig",
    "MechanismConfig",
    "MetricConfig",
    "ModelConfig",
    "NluConfig",
    "PromptConfig",
    "PublishConfig",
    "RantextConfig",
    "ReportConfig",
    "SantextConfig",
    "ServeConfig",
    "StageConfig",
    "TrainerConfig",
    "TransferConfig",
    "config_folder",
    "config_of",
    "register_schemas",
    "with_defaults",
]
