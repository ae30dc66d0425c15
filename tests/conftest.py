"""Settings of all tests: one thread for each library, so that two cores are not oversubscribed."""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ[name] = "1"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
