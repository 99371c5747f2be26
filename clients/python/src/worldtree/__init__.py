"""The Python SDK of Worldtree."""
