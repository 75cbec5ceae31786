"""The names of a UNet2DModel's lists of blocks. Light: no torch."""

DOWN = "down_blocks"
MID = "mid_block"
UP = "up_blocks"
