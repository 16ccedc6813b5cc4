"""Tools: plain functions as devices, each with places for its calls, run in worker threads."""
