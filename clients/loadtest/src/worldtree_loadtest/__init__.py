"""Load tests for Worldtree."""
