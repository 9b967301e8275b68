"""Work that is never lost: the library of jobs and clips, the runner that makes them, batches from tables."""
