"""An example of a plugin by somebody else."""
