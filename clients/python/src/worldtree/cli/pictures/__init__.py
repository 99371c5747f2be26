"""Pictures that the commands draw, with Pillow."""
