"""The part of the families that all of diffusers' UNets share; unet2d and unet2d_condition hold the rest."""
