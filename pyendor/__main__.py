"""``python -m pyendor`` is the ``endor`` command."""

from pyendor.cli import main

if __name__ == "__main__":
    main()
