"""`python -m worldtree.cli`: the same as `worldtree`."""

from worldtree.cli import main

if __name__ == "__main__":
    main()
