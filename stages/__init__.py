"""The commands, one for each rule: python -m stages.<stage> --params JSON --threads N ..."""

import sys

from stagecraft.runtime.threads import leave_out, prepare_process

# Python imports this package before the command, and calls itself -m while it does.
if sys.argv[0] == "-m":
    prepare_process(sys.argv)
    if "stages.encode_prompts" not in sys.orig_argv:
        # What diffusers imports wherever it is installed, for a second; peft in turn needs transformers.
        leave_out("transformers")
        leave_out("peft")
