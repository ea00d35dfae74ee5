"""`python -m lorakit`: the same command."""

from lorakit.cli.main import main

if __name__ == "__main__":
    main()
