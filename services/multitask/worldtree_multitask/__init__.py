"""The multi-task service: one network, many experts merged into it, any preference, at request time."""
