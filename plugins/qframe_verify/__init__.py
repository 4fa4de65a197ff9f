"""Plugin: `qframe verify`, which compares a sampling run of qframe with an oracle, stage by stage.

An oracle is another implementation of the same task that is known to be right, such as a pipeline of diffusers.
"""
