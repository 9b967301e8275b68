"""The model: the twin DiT, its schedules, the pipeline, and the stock parts they stand on."""
