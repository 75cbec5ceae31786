"""UNet2DConditionModel, which draws by prompts: the one place that knows how it is built."""
