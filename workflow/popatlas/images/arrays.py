"""Names for arrays by what they hold, whatever the precision."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.integer]
FloatArray = npt.NDArray[np.floating]
RealArray = npt.NDArray[np.bool_ | np.integer | np.floating]  # what the voxels of a file may be

Kind = TypeVar("Kind", bound=np.generic)  # of an array that is turned, cut or stacked and keeps its type
