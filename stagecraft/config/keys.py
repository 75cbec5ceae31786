"""Names that the params use for noise processes; light: no torch, no NumPy."""

from stagecraft.config.sections import CHOICES

FIELDS = {name: model.model_fields.items() for name, model in CHOICES["diffusion"].members.items()}
# The keys of `diffusion` beside `process`, and those that may be left out, of each process.
PROCESS_KEYS = {
    name: tuple(key for key, field in fields if field.is_required() and key != "process")
    for name, fields in FIELDS.items()
}
OPTIONAL_KEYS = {
    name: tuple(key for key, field in fields if not field.is_required()) for name, fields in FIELDS.items()
}
# The samplers of `sampling.scheduler` of each process; the first is that of its pipeline folders.
SAMPLERS = {"vp": ("ddpm", "ddim", "dpm_solver"), "edm": ("edm_euler", "edm_dpm_solver"), "flow": ("flow_euler",)}
