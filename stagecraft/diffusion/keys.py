"""Names that the params use for noise processes; without torch, for what only reads params."""

# The keys of `diffusion` beside `process`, those that may be left out, and the samplers of `sampling.scheduler`, of each process.
PROCESS_KEYS = {
    "vp": ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type"),
    "edm": ("sigma_min", "sigma_max", "sigma_data", "rho", "p_mean", "p_std"),
    "flow": ("num_train_timesteps", "shift"),
}
OPTIONAL_KEYS: dict[str, tuple[str, ...]] = {"vp": ("rescale_betas_zero_snr",), "edm": (), "flow": ()}
SAMPLERS = {
    "vp": ("ddpm", "ddim", "dpm_solver"),
    "edm": ("edm_euler", "edm_dpm_solver"),
    "flow": ("flow_euler",),
}
