"""One trainer for every family: cached or live examples, any mixture of shapes, exact resume.

`qframe.Trainer` is `qframe.train.trainer.Trainer`.
"""
