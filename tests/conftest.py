"""Settings of every test process, and of those it starts."""

import os

# One thread a process: tiny models gain nothing from more, and on a busy machine waiting threads cost a factor of ten.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
