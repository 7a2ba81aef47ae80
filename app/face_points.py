"""Where eyes, nose and mouth of an aligned face lie: the five points of the field (insightface's ``arcface_src``)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# float64 [5, 2]: left eye, right eye, nose, left and right corner of the mouth, left as the viewer sees it; x, y in
# pixels of 112 x 112, whole numbers in the middle of a pixel.
TEMPLATE: NDArray[np.float64] = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
