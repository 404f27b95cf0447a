"""`python -m gatework` is the command `gatework`, for what starts processes by the name of a module, as torchrun."""

from .cli import main

if __name__ == "__main__":
    main()
