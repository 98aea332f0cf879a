"""Planning inside a learned model of the channel."""
