"""How a run uses the machine: what there is (`hardware`), what to do with it (`plan`). The planner knows no torch."""
