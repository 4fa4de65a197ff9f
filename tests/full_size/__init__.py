"""A rehearsal with a model folder of the published size: every stage of a run, measured on a CPU."""
