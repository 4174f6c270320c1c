"""Band statistics of a benchmark that publishes none, measured over its training samples one by one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from olmoearth_cli.errors import InputError
from olmoearth_pipelines.tasks.task import BandTable, TaskSample


def present_periods(sample: TaskSample, modality: str) -> npt.NDArray[np.bool_]:
    """[T], True where a modality has data."""
    missing = sample.missing.get(modality)
    return np.ones(len(sample.timestamps), np.bool_) if missing is None else ~missing


class BandMeter:
    """Running mean, deviation and limits of one modality's bands, over all pixels of the periods with data."""

    def __init__(self, modality: str) -> None:
        self._modality = modality
        self._spread, self._limits = StandardScaler(), MinMaxScaler()

    def add(self, sample: TaskSample) -> None:
        """Count a sample's pixels."""
        values = sample.inputs[self._modality][:, :, present_periods(sample, self._modality)]
        if values.size:
            flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
            self._spread.partial_fit(flat)
            self._limits.partial_fit(flat)

    def table(self) -> BandTable:
        """What was measured; population standard deviation.

        Raises:
            InputError: no sample had data.
        """
        if not hasattr(self._spread, "mean_"):
            raise InputError(f"no training sample has {self._modality} data to measure band statistics on.")
        return BandTable(
            mean=self._spread.mean_,
            std=np.sqrt(self._spread.var_),
            minimum=self._limits.data_min_,
            maximum=self._limits.data_max_,
        )
