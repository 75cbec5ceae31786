"""Search, cluster and retrain: a pretrained diffusion UNet becomes a smaller multi-decoder one."""
