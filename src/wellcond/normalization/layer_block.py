"""The curvature of one layer, as it is and as a normalization of its inputs would make it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wellcond.curvature import GaussNewton
from wellcond.linalg import SymmetricOperator
from wellcond.normalization.layers import LayerConditioning, layer_conditioning
from wellcond.preconditioners import Block, Standardization
from wellcond.problem import Problem, check_problem

NORMALIZATIONS = ("centered", "scaled", "standardized")


def layer_block(
    problem: Problem, layer: str | LayerConditioning, normalization: str | None = None
) -> SymmetricOperator:
    """The Gauss-Newton block G of a layer's weight and bias, or PᵀGP with P what a normalization of its inputs does.

    Its κ is what the κ(Ĥ) of `layer_conditioning` stands for: with S_i the curvature of the loss by the layer's i-th
    output, the block of row i is ĤᵀS_iĤ/N, and κ(block) ≤ κ(S_i)·κ(Ĥ)² where S_i is positive definite. Take both of
    `wc.conditioning(layer_block(…))`; `kappa_star` up to 2,000 parameters.

    Args:
        problem: with a `loss_fn(output, target)`.
        layer: its name in `layer_conditioning`, "….in_proj" for an attention's packed query, key and value projections
            whatever they see; or the entry itself, which saves the pass over the data.
        normalization: None, "centered", "scaled" (by the root mean square) or "standardized", each column of Ĥ by its
            own figures; of a convolution a column is a channel at a place in the kernel.

    Raises:
        ValueError: for a name that is no layer's, a normalization that is none of these or takes the mean off a layer
            without bias, and weights that are not parameters of their own.

    Source: theory, sections 5.1 and 5.2.

    >>> import torch
    >>> from wellcond.condition_numbers import conditioning
    >>> x = torch.tensor([[1.0, 10.0], [1.0, 12.0], [3.0, 10.0], [3.0, 12.0]])
    >>> problem = Problem(nn.Linear(2, 1), nn.MSELoss(), (x, torch.zeros(4, 1)), dtype=torch.float64)
    >>> print(conditioning(layer_block(problem, "")).kappa_star)
    16,100
    >>> print(conditioning(layer_block(problem, "", "standardized")).kappa_star)
    1
    """
    check_problem(problem)
    if normalization is not None and normalization not in NORMALIZATIONS:
        raise ValueError(f"got normalization={normalization!r}; it is None, {', '.join(map(repr, NORMALIZATIONS))}")
    name = layer.name if isinstance(layer, LayerConditioning) else layer
    weight, bias = _parameters(problem.model, name)
    block = GaussNewton(problem).block(*[p for p in (weight, bias) if p is not None])
    if normalization is None:
        return block
    entries = _entries(layer_conditioning(problem) if isinstance(layer, str) else [layer], name)
    parts = [group for entry in entries for group in (entry.groups or (entry,))]
    mean, deviation = torch.stack([g.mean for g in parts]), torch.stack([g.deviation for g in parts])
    size = torch.hypot(mean, deviation) if normalization == "scaled" else deviation
    scale = torch.where((size > 0) & (normalization != "centered"), 1 / size, 1.0)
    mean = torch.zeros_like(mean) if normalization == "scaled" else mean
    return block.preconditioned(normalizing(weight, bias, mean, scale))


def normalizing(weight: Tensor, bias: Tensor | None, mean: Tensor, scale: Tensor) -> Standardization:
    """P = VD on each row [b; W] of a layer, V = [[1, −μᵀ], [0, I]], D = diag(1, s): then ĤP = [1, (H − 1μᵀ)·diag(s)].

    In the parameters: W = W_z·diag(s), b = b_z − Wμ; for a gradient g: g_W ← (g_W − g_b μᵀ)·diag(s), g_b as it is.

    Args:
        weight: (outputs, *fan-in): of a linear layer, a convolution, a projection; its rows in equal groups.
        bias: (outputs,); None for a layer without, which only μ = 0 fits.
        mean: μ, (groups, fan-in entries), of the inputs that each group of rows sees.
        scale: s, of the same shape, positive.

    Raises:
        ValueError: if a mean is to be taken off without a bias.

    Source: theory, section 5.2.
    """
    if bias is None and bool(mean.any()):
        raise ValueError(
            "the layer has no bias: taking the mean off its inputs is no change of its parameters; scale only"
        )
    biases = [] if bias is None else [bias]
    moments = _Fixed(mean.flatten(), scale.flatten().square().reciprocal())
    return Standardization([weight, *biases], [Block(0, list(range(1, 1 + len(biases))), len(mean), moments)])


@dataclass
class _Fixed:
    """The moments of a `Block` that stay: μ and the squared scale of each column, whatever is centered."""

    mean: Tensor
    variance: Tensor
    version: int = 0

    def known(self, centered: bool) -> tuple[Tensor, Tensor, float]:
        return self.mean, self.variance, 1.0


def _parameters(model: nn.Module, name: str) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias of a layer as `layer_conditioning` names it."""
    owner, _, last = name.rpartition(".")
    modules = dict(model.named_modules())
    attention = modules.get(owner)
    if isinstance(attention, nn.MultiheadAttention) and last in ("in_proj", "q_proj", "k_proj", "v_proj"):
        if attention.in_proj_weight is None:
            raise ValueError(f"{name} shares one bias with two others; use wc.GaussNewton(problem).block(weight)")
        if last != "in_proj":
            raise ValueError(
                f"{name} is a part of one weight; give {owner}.in_proj, the block of all three projections"
            )
        return attention.in_proj_weight, attention.in_proj_bias
    weight = dict(modules[name].named_parameters(recurse=False)).get("weight") if name in modules else None
    if weight is None or weight.ndim < 2:
        raise ValueError(f"{name!r} is no layer with a weight of its own; name one of wc.layer_conditioning(problem)")
    return weight, modules[name].bias


def _entries(layers: list[LayerConditioning], name: str) -> list[LayerConditioning]:
    """The entry of this name, or those of the three projections that are packed into one weight."""
    packed = [f"{name.removesuffix('in_proj')}{slot}_proj" for slot in "qkv"] if name.endswith("in_proj") else []
    by_name = {entry.name: entry for entry in layers if entry.rows}
    if name in by_name:
        return [by_name[name]]
    if packed and all(p in by_name for p in packed):
        return [by_name[p] for p in packed]
    raise ValueError(
        f"no data pass through {name!r} under this name; there are {', '.join(map(repr, list(by_name)[:8]))}"
    )
