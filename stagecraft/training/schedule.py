"""How much of the dynamic joint loss (stagecraft/training/joint.py) is end to end, and the passes that it takes."""

from stagecraft.config.sections import Retrain

SCHEDULES = {
    "linear": lambda share: share,
    "constant": lambda share: 0.5,
    "none": lambda share: 1.0,
}


def end_to_end_share(step: int, steps: int, settings: Retrain) -> float:
    """The weight a of the end-to-end loss at a step.

    `linear` rises from 0 to 1 over the first `ramp` of the steps and stays at 1, `constant` is one half throughout, `none` is
    1: no imitation of blocks.
    """
    share = min(1.0, step / max(1.0, settings.ramp * steps))
    return SCHEDULES[settings.joint_loss](share)


def passes_per_step(settings: Retrain) -> tuple[float, float]:
    """Forward passes of student and teacher in a step of retraining, on average; each of the student's has a backward pass.

    The Jacobian term takes one more of both wherever there is an end-to-end loss.

    Args:
        settings: the `retrain` section of the params.
    """
    shares = [end_to_end_share(step, settings.steps, settings) for step in range(settings.steps)]
    moved = settings.jacobian_weight > 0
    student = sum((share < 1) + (share > 0) * (1 + moved) for share in shares)
    teacher = sum((share < 1 or settings.output_weight > 0 or moved) + (share > 0) * moved for share in shares)
    return student / len(shares), teacher / len(shares)
