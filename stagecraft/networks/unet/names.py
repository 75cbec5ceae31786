"""The names of the lists of blocks of diffusers' UNets, and of what passes between them. Light: no torch."""

DOWN = "down_blocks"
MID = "mid_block"
UP = "up_blocks"
PROMPT = "prompt"
