"""python -m sluice.launch FLAGS SCRIPT ARGUMENTS"""

import sys

from .run import main

sys.exit(main(sys.argv[1:]))
