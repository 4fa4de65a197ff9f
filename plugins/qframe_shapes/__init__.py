"""A tiny trained model, the made-up data set that it was trained on, and a strict test of its pictures.

The data set shows coloured shapes. `world` draws the pictures, `tasks` makes captions and edit instructions, `metrics`
decides whether a picture shows what was asked for, and `evaluate` computes success rates and draws contact sheets.
These four modules need no torch. `python -m qframe_shapes.build` trains the model.
"""
