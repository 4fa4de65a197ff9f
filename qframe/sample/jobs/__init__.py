"""Pictures to make, one by one: requests in plain values, what a picture stores of its own, checks ahead of loading."""
