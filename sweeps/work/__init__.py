"""A worker: its training process, how a trial ended, and what is done about it."""
