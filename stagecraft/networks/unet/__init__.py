"""What the families of diffusers' UNets have in common; unet2d and unet2d_condition have what is their own."""
