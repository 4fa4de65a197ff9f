"""The embedded small world: a procedural data set, a tiny trained checkpoint, and strict measures of success.

``world`` draws, ``tasks`` asks, ``metrics`` judges, ``evaluate`` sums up and shows; these need no torch.
``python -m qframe_shapes.build`` makes the checkpoint.
"""
