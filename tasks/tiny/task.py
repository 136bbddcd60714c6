"""Stock tasks whose data is a parquet file of the embedded world instead of a hub data set."""

from __future__ import annotations

from typing import Any

from lmms_eval.api.task import ConfigurableTask

from flmm_plugin.bundled import SCENES_ROOT
from flmm_plugin.data.root import data_root


class WorldTask(ConfigurableTask):
    """A stock task on the world: everything but the data is the template's.

    Config: ``dataset_kwargs`` has ``repo``, the hub name whose layout the file is in.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        settings = dict(config or {})
        # lmms-eval hands over the YAML whole; its own task config knows no `class`.
        settings.pop("class", None)
        super().__init__(config=settings)

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Read the file, which is written when it is first asked for."""
        import datasets
        import pyarrow.parquet as pq

        repo = str((dataset_kwargs or {})["repo"])
        split = str(self.config.test_split)
        file = data_root(SCENES_ROOT) / repo / "data" / f"{split}-00000-of-00001.parquet"
        # Read here: `load_dataset` would copy the file into the hub's cache, under a name that says nothing of it.
        table = datasets.Dataset(pq.read_table(file))
        self.dataset = {split: table}
        pictures = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
        self.dataset_no_image = {split: table.remove_columns(pictures)}
