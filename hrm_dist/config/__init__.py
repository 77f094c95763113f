"""Settings of a run; read schema.py first."""

from hrm_dist.config.schema import ArchConfig as ArchConfig
from hrm_dist.config.schema import ConfigError as ConfigError
from hrm_dist.config.schema import TrainConfig as TrainConfig
from hrm_dist.config.schema import as_found as as_found
from hrm_dist.config.schema import check_notation as check_notation
from hrm_dist.config.schema import flat_settings as flat_settings
from hrm_dist.config.schema import load_config as load_config
from hrm_dist.config.schema import sequences_per_process as sequences_per_process
from hrm_dist.config.schema import to_yaml as to_yaml
from hrm_dist.config.schema import total_steps as total_steps
