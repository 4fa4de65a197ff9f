"""The command `qframe plan`, which lists settings with which a training run fits a card."""
