"""What a plugin declares, and how qframe finds the plugins that are installed."""
