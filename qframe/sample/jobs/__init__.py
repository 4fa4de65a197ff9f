"""Jobs, which are pictures to make one by one: plain values, checks before loading, and what a picture stores."""
