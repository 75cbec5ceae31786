"""UNet2DModel: the one place that knows how it is built."""
