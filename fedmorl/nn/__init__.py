"""Building blocks that several world models and learners share."""
