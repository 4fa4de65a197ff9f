"""Data sets: records from folders and tables, registered as plugins like anybody's."""
