"""What every task class of this package needs of the harness."""

# The harness ships without types:
# pyright: reportUnknownArgumentType=false

from typing import Any

from lm_eval.api.task import ConfigurableTask


class OwnTask(ConfigurableTask):
    """A task of the harness that a YAML names as its `class`."""

    _bypassed = False
    """Whether `--predict_only` asks for answers only."""

    def __init__(self, *, config: dict[str, Any]) -> None:
        """As the harness calls it, with the YAML; its task does not know the key `class`."""
        known = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config=known)

    def override_metric(self, metric_name: str) -> None:
        """Computes no metric, as `--predict_only` asks."""
        super().override_metric(metric_name)
        self._bypassed = True
