"""UNet2DConditionModel, which is conditioned on prompts: the one place that knows how it is built."""
