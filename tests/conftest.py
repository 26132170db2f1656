"""One thread everywhere, also in the processes that tests start: small networks gain nothing from more."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
