"""`python -m ivon_lora_lite`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
