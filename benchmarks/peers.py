"""Curvature-vector products of other libraries, each called in its own way; a library that is missing is left out."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from networks import Trained

Product = Callable[[Tensor], Any]


def products(run: Trained, curvature: str, compiled: bool = False) -> dict[str, Callable[[], Product]]:
    """What builds each peer's product with a flat vector, by name.

    Args:
        run: the network, its loss and batches.
        curvature: "hessian" or "gauss-newton".
        compiled: with torch's own linearization of the gradient, compiled.
    """
    makers: dict[str, Callable[[Trained], Product]] = {}
    if importlib.util.find_spec("curvlinops"):
        makers["curvlinops"] = _curvlinops_hessian if curvature == "hessian" else _curvlinops_gauss_newton
    if importlib.util.find_spec("hessian_eigenthings"):
        makers["hessian-eigenthings"] = _eigenthings_hessian if curvature == "hessian" else _eigenthings_gauss_newton
    if importlib.util.find_spec("pyhessian") and curvature == "hessian":
        makers["PyHessian"] = _pyhessian
        if len(run.batches) == 1:  # only then does it keep its graph
            makers["PyHessian kept"] = _pyhessian_kept
    if compiled and curvature == "hessian" and len(run.batches) == 1:
        makers["linearize, compiled"] = _linearize
    return {name: lambda make=make: _with_math_attention(make, run) for name, make in makers.items()}


def _with_math_attention(make: Callable[[Trained], Product], run: Trained) -> Product:
    """Without the caller's setting they raise on attention: its fast kernels can't be differentiated twice."""
    with sdpa_kernel(SDPBackend.MATH):
        product = make(run)

    def multiply(v: Tensor) -> Any:
        with sdpa_kernel(SDPBackend.MATH):
            return product(v)

    return multiply


def flat(product: Any) -> Tensor:
    """A product as one vector: PyHessian gives tensors by parameter."""
    return product if isinstance(product, Tensor) else torch.cat([piece.reshape(-1) for piece in product])


def _curvlinops_hessian(run: Trained) -> Product:
    from curvlinops import HessianLinearOperator

    return HessianLinearOperator(run.model, run.loss_fn, list(run.model.parameters()), run.batches).__matmul__


def _curvlinops_gauss_newton(run: Trained) -> Product:
    from curvlinops import GGNLinearOperator

    return GGNLinearOperator(run.model, run.loss_fn, list(run.model.parameters()), run.batches).__matmul__


def _eigenthings_hessian(run: Trained) -> Product:
    from hessian_eigenthings import HessianOperator, supervised_loss

    return HessianOperator(run.model, run.batches, supervised_loss(run.loss_fn)).matvec


def _eigenthings_gauss_newton(run: Trained) -> Product:
    from hessian_eigenthings import GGNOperator, supervised_forward, supervised_loss_of_output

    return GGNOperator(run.model, run.batches, supervised_forward, supervised_loss_of_output(run.loss_fn)).matvec


def _pyhessian(run: Trained) -> Product:
    from pyhessian import hessian

    # A copy: it leaves the model in eval mode.
    theirs = hessian(copy.deepcopy(run.model), run.loss_fn, dataloader=run.batches, cuda=_on_gpu(run))
    return lambda v: theirs.dataloader_hv_product(_pieces(v, theirs.params))[1]


def _pyhessian_kept(run: Trained) -> Product:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    theirs = hessian(copy.deepcopy(run.model), run.loss_fn, data=run.batches[0], cuda=_on_gpu(run))
    return lambda v: hessian_vector_product(theirs.gradsH, theirs.params, _pieces(v, theirs.params))


def _linearize(run: Trained) -> Product:
    from torch.func import functional_call, grad, linearize
    from torch.fx.experimental.proxy_tensor import make_fx

    x, y = run.batches[0]
    names, parameters = zip(*run.model.named_parameters(), strict=True)

    def loss(*values: Tensor) -> Tensor:
        return run.loss_fn(functional_call(run.model, dict(zip(names, values, strict=True)), (x,)), y)

    at = [p.detach() for p in parameters]
    derivative = linearize(grad(loss, argnums=tuple(range(len(at)))), *at)[1]
    product = torch.compile(make_fx(derivative)(*[torch.zeros_like(p) for p in at]), fullgraph=True)

    def multiply(v: Tensor) -> Tensor:
        with torch.no_grad():
            return flat(product(*_pieces(v, at)))

    return multiply


def _on_gpu(run: Trained) -> bool:
    return run.batches[0][0].is_cuda


def _pieces(v: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    sizes = [p.numel() for p in parameters]
    return [piece.view_as(p) for piece, p in zip(v.split(sizes), parameters, strict=True)]
