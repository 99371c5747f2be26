"""For those who bring a model: a package begun, checked, timed, zipped and installed. Behind `worldtree models`."""
