"""Plugins: the declarations that they return, and the registry that finds and loads the installed ones."""
