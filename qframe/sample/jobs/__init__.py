"""Jobs: the pictures that a command makes one by one. Reads and checks requests, and stores them in the pictures."""
