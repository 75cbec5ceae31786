"""The commands, one for each rule: python -m stages.<stage> --params JSON --threads N ..."""

import sys

from stagecraft.runtime.imports import import_little
from stagecraft.runtime.threads import prepare_process

# Python imports this package before the command, and calls itself -m while it does.
if sys.argv[0] == "-m":
    prepare_process(sys.argv)
    import_little(next((word.partition(".")[2] for word in sys.orig_argv if word.startswith("stages.")), ""))
