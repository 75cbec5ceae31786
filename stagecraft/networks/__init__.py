"""The multi-decoder UNet, its elastic blocks, their architecture specs and costs."""
