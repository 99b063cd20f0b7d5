"""`python -m flaxformer.demo.g2p`."""

import sys

from flaxformer.demo.g2p.main import main

if __name__ == "__main__":
    sys.exit(main())
