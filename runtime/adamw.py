"""The optimiser: AdamW (Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101), by torch's kernel for it.

`torch.optim.AdamW` is a frame around the same kernel, and imports torch's compiler: a second, and 40 MB of memory.
"""

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from runtime.console import one_line
from runtime.distributed import shard_like
from runtime.files import check_tensors

NAMES = (
    "step",
    "exp_avg",
    "exp_avg_sq",
)  # t, m and v of the paper: updates so far, means of gradient and its square


class AdamW:
    """For groups of parameters, `{"params": [...], "lr": ..., "weight_decay": ...}`, all of which have a gradient at
    each step. With a `state` it goes on with that of a checkpoint: whole tensors, which are sharded here if their
    parameters are.

    Raises ValueError where it is not a state of these parameters.
    """

    def __init__(
        self, groups: list[dict], betas: tuple[float, float], eps: float, state: dict | None = None
    ):
        self.param_groups, self.betas, self.eps = groups, betas, eps
        self.parameters: list[Tensor] = [
            parameter for group in groups for parameter in group["params"]
        ]
        self.state = (
            initial_state(self.parameters)
            if state is None
            else restored_state(self.parameters, state)
        )

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            parameters = group["params"]
            steps, means, squares = (
                [self.state[parameter][name] for parameter in parameters] for name in NAMES
            )
            adamw(
                parameters,
                [parameter.grad for parameter in parameters],
                means,
                squares,
                max_exp_avg_sqs=[],
                state_steps=steps,
                fused=True,  # one pass over memory
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=self.eps,
                maximize=False,
            )

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_dict(self) -> dict[str, dict[int, dict[str, Tensor]]]:
        """The state of each parameter, by its place among all."""
        return {"state": {i: self.state[parameter] for i, parameter in enumerate(self.parameters)}}


def initial_state(parameters: list[Tensor]) -> dict[Tensor, dict[str, Tensor]]:
    def zeros(parameter: Tensor) -> list[Tensor]:
        return [
            torch.zeros((), device=parameter.device),
            torch.zeros_like(parameter),
            torch.zeros_like(parameter),
        ]

    return {parameter: dict(zip(NAMES, zeros(parameter.detach()))) for parameter in parameters}


def restored_state(parameters: list[Tensor], saved: dict) -> dict[Tensor, dict[str, Tensor]]:
    try:
        if not isinstance(saved, dict) or saved["state"].keys() != set(range(len(parameters))):
            raise TypeError("it is of other parameters")
        state, values_of = {}, saved["state"]
        for i, parameter in enumerate(parameters):
            values, whole = values_of.pop(i), parameter.shape  # not twice in memory
            check_tensors(values)
            if {name: value.shape for name, value in values.items()} != dict(
                zip(NAMES, ((), whole, whole))
            ):
                raise TypeError(
                    f"parameter {i} has another shape"
                )  # the kernel would read beyond its end
            dtypes = dict(zip(NAMES, (torch.float32, parameter.dtype, parameter.dtype)))
            state[parameter] = {
                name: shard_like(value, parameter).to(parameter.device, dtypes[name])
                for name, value in values.items()
            }
        return state
    except (LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"the optimiser's state does not fit this model ({one_line(str(error))})"
        ) from None
