"""`python -m attnctrl`."""

from attnctrl.app.cli import main

if __name__ == "__main__":
    main()
