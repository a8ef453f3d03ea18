"""The training loss as a deterministic function of the parameters."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from wellcond.parameters import flatten, unflatten
from wellcond.problem.arguments import check_arguments
from wellcond.problem.batches import count_examples, move, read_batches, tensors_of, with_tensors
from wellcond.problem.block import Block
from wellcond.problem.graphs import check_depends, graph_bytes
from wellcond.problem.isolation import Isolation, one_thread, plain_settings, random_state, seed_all
from wellcond.problem.parameter_selection import one_device, trainable, unwrapped, working_dtype
from wellcond.problem.reachable import modules_of
from wellcond.problem.second_derivatives import remedy_of

MEMORY_LIMIT = 2 * 2**30
"""Bytes of autograd graphs that a `with problem:` block may keep by default."""

TINY = 2_000_000
"""Parameters times examples of a batch, and bytes of its activations, under which one thread is used. On two idle cores
a product took 0.35 ms on one or two threads for 1,810 parameters and 128 examples, and 1.24 against 0.98 ms for 100,000
and 64; with other work on the machine an examination of the former took 334 s on two threads and 32 s on one."""


Kinds = type[nn.Module] | tuple[type[nn.Module], ...]


class LossNotFiniteError(ValueError):
    """The loss is infinite or not a number."""


class ClosedError(RuntimeError):
    """Nothing more is to be evaluated."""


class Problem:
    """L(p), the loss over the given data, as a deterministic function of the model's trainable parameters.

    What is measured is what is trained: batch norm uses the batch's statistics, dropout is frozen, one mask per batch,
    from the seed. Measuring leaves no trace: parameters, gradients, buffers, optimizer state, flags and random state
    are bit for bit what they were. The parameters are read again at every measurement.

    Inside `with problem:` the graphs of first products are kept, which makes the later ones cost about 1.5 gradients
    instead of 2.5; the parameters must not change there, and the memory is freed on leaving.

    Args:
        model: any module; wrappers (torch.compile, data parallel) are taken off.
        loss_fn: (output, target) → scalar, the mean over a batch's examples.
        data: one (input, target) batch, a list of them, or a DataLoader (never iterated itself: its data set is read
            once, with its sampler's and collate function's rules, and kept).
        loss: instead of `loss_fn`, a callable (model, batch) → scalar, for any other kind of batch.
        mode: "train" or "eval".
        batches: read at most `batches` of them; None reads all, of a loader over a large data set some 8,192 examples.
        weight: batch → weight of its loss in the mean; default: its number of examples.
        parameters: the parameters (or their names) to look at; default: all trainable ones.
        seed: of dropout and of a loader's shuffling.
        dtype: evaluate in this floating-point type; default: the parameters' own, and float32 for parameters in
            bfloat16 or float16.
        memory_limit: bytes of graphs to keep at most inside `with problem:`; with 0 none are.
        compile: inside `with problem:` trace each product once for every shape of batch and compile it (torch.compile):
            faster products, after seconds of compiling. What can't be traced is multiplied as without, with a warning.

    Attributes:
        parameters: the model's parameters in order, a tied one once.
        names: theirs.
        size: n, their number of elements.
        batches: the data, in memory.
        examples: how many in all.
        leaves: while evaluating, the tensors that stand for the parameters.
        closed: whether evaluating is over: what is known may be read, and an evaluation raises `ClosedError`.
        loss_dtype: of the loss as the user's code returned it last; float32 from a float64 problem says that
            somewhere on the way digits were lost.

    Raises:
        TypeError, ValueError: for data, models and losses that can't be measured, with the remedy.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[[Any, Any], Tensor] | None = None,
        data: Any = None,
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        mode: str = "train",
        batches: int | None = None,
        weight: Callable[[Any], float] | None = None,
        parameters: Iterable[nn.Parameter | str] | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        memory_limit: int = MEMORY_LIMIT,
        compile: bool = False,
    ):
        check_arguments(model, loss_fn, loss, mode=mode, seed=seed, memory_limit=memory_limit)
        self.model, self.loss_fn, self.whole_loss, self.mode = unwrapped(model), loss_fn, loss, mode
        self.seed, self.memory_limit, self.compile, self.weight = seed, memory_limit, compile, weight
        self.names, self.parameters = trainable(self.model, parameters)
        self.device = one_device(self.names, self.parameters)
        self.dtype = working_dtype(self.names, self.parameters, dtype)
        self.size = sum(p.numel() for p in self.parameters)
        self._conversion = self.dtype if any(p.dtype != self.dtype for p in self.parameters) else None
        roots = [self.model] + ([loss_fn] if isinstance(loss_fn, nn.Module) else [])
        self._isolation = Isolation(roots, self.parameters, mode, self._conversion, modules_of(loss_fn, loss))
        with random_state(seed, self.device):
            self.batches = read_batches(data, pairs=loss is None, batches=batches, seed=seed)
        self.examples = sum(map(count_examples, self.batches))
        weights = [float((weight or count_examples)(batch)) for batch in self.batches]
        if not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0:
            raise ValueError(f"the batches' weights are {weights[:5]} …; they are finite, ≥ 0 and not all 0")
        self.weights = [w / sum(weights) for w in weights]
        self.unreached: list[str] = []
        self.loss_dtype = self.dtype
        self.closed = False
        self._activations: float | None = None
        self._block: Block | None = None
        self._inside = False
        self._moved: dict[int, Tensor] = {}
        self._given: tuple[dict[int, Tensor], Any] | None = None
        self.leaves: list[Tensor] = []
        self._inputs: list[Tensor] = []
        self.batch: Any = None

    def like(self, **changes: Any) -> Problem:
        """The same problem with other arguments, by their names.

        Args:
            changes: arguments as when a problem is made.
        """
        kept = ("model", "loss_fn", "mode", "weight", "parameters", "seed", "dtype", "memory_limit", "compile")
        given = {name: getattr(self, name) for name in kept} | {"data": self.batches, "loss": self.whole_loss}
        return Problem(**given | changes)

    # -- the function and its first derivative ------------------------------------------------------------------

    def loss(self) -> float:
        """L(p).

        Raises:
            ValueError: if the loss is not a scalar, not finite, or does not depend on the parameters.
        """
        with self.evaluating(), torch.no_grad():
            values = [self.batch_loss(i) for i in range(len(self.batches))]
            return sum(float(v) * w for v, w in zip(values, self.weights, strict=True))

    def gradient(self) -> Tensor:
        """∇L(p), (n,), in `dtype`; also finds out which parameters the loss does not reach (`unreached`)."""
        reached: set[str] = set()
        gradient = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        with self.evaluating():
            for i, w in enumerate(self.weights):
                gradient += w * flatten(self._gradients(i, reached))
        self.unreached = [name for name in self.names if name not in reached]
        if not torch.isfinite(gradient).all():
            pieces = unflatten(gradient, self.parameters)
            bad = next(n for n, g in zip(self.names, pieces, strict=True) if not torch.isfinite(g).all())
            raise ValueError(f"the gradient of {bad} is not finite; lower the learning rate or look for the overflow")
        return gradient

    def batch_gradient(self, index: int) -> Tensor:
        """The gradient of one batch's loss, (n,), in `dtype`."""
        with self.evaluating():
            return flatten(self._gradients(index, set()))

    @contextlib.contextmanager
    def moved(self, displacement: Tensor) -> Iterator[None]:
        """Inside, everything is evaluated at p + displacement; the model's parameters stay as they are.

        Args:
            displacement: (n,), in `dtype`, by which the sum is taken too.
        """
        if displacement.shape != (self.size,):
            raise ValueError(f"got a displacement of shape {tuple(displacement.shape)}; expected ({self.size},)")
        before, block = self._moved, self._block
        pieces = unflatten(displacement.to(self.dtype), self.parameters)
        starts = [before.get(id(p), p).detach().to(self.dtype) for p in self.parameters]
        self._moved = {id(p): x + d for p, x, d in zip(self.parameters, starts, pieces, strict=True)}
        self._block = None  # what is kept in it belongs to the parameters themselves
        try:
            yield
        finally:
            self._moved, self._block = before, block

    # -- evaluation, for the rooms above -------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """The model isolated. `leaves` are then the tensors that stand for its parameters in the latest evaluation.

        Everything that evaluates the model or differentiates through it happens inside, also a backward pass:
        checkpointed layers run their forward again in it.
        """
        if self._inside:
            yield
            return
        if self.closed:
            raise ClosedError("this problem is closed")
        self._inside = True
        try:
            with (
                random_state(self.seed, self.device),
                self._isolation.entered(self.device),
                one_thread() if self._is_tiny else contextlib.nullcontext(),
            ):
                yield
        except (RuntimeError, ValueError) as error:
            if (remedy := remedy_of(str(error))) is None:
                raise
            raise ValueError(remedy) from error
        finally:
            self._inside, self.leaves, self.batch, self._inputs = False, [], None, []

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[None]:
        """As `evaluating`, for a backward pass in which nothing of the user's runs: the model is not touched."""
        if self.closed:
            raise ClosedError("this problem is closed")
        with plain_settings(self.device), one_thread() if self._is_tiny else contextlib.nullcontext():
            yield

    def begin(self, index: int) -> Any:
        """A batch where the model is, with buffers and random state as every evaluation of it finds them."""
        self.seed_batch(index)
        held, self.batch = self._given or (self._moved, move(self.batches[index], self.device, self._conversion))
        self.leaves = self._isolation.renew(held)
        self._inputs = list(tensors_of(self.batch[0] if self.whole_loss is None else self.batch))
        return self.batch

    def largest_activations(self) -> float:
        """Bytes that a forward pass of the batch with the most examples holds for a backward pass, in `evaluating`."""
        if self._activations is None:
            index = max(range(len(self.batches)), key=lambda i: count_examples(self.batches[i]))
            self._activations = graph_bytes(lambda: self._loss_as_given(index))
        return self._activations

    def batch_output(self, index: int) -> Any:
        """The model's output on a batch (pairs only), inside `evaluating`."""
        return self.model(self.begin(index)[0])

    def batch_loss(self, index: int, output: Any = None) -> Tensor:
        """The loss of a batch, (), inside `evaluating`; of an output of `batch_output`, just computed, if given."""
        value = self._loss_as_given(index, output)
        if not isinstance(value, Tensor):
            raise TypeError(f"the loss of batch {index} is a {type(value).__name__}; return a scalar tensor")
        if value.numel() != 1:
            raise ValueError(
                f"the loss of batch {index} is not a scalar but has shape {tuple(value.shape)}; take its mean over the "
                "examples"
            )
        if not self.traced and not math.isfinite(float(value.detach())):
            raise LossNotFiniteError(
                f"the loss of batch {index} is {float(value.detach())}; the curvature exists only where the loss is "
                "finite: check the inputs, or measure at an earlier checkpoint"
            )
        self.loss_dtype = value.dtype
        return value.reshape(())

    def inputs(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """All that an evaluation of a batch depends on, inside `evaluating`: what the modules hold, and the batch."""
        batch = move(self.batches[index], self.device, self._conversion)
        held = [self._moved.get(id(x), x) for x in self._isolation.held()]
        return [self._isolation.convert(x) for x in held], list(tensors_of(batch))

    @property
    def traced(self) -> bool:
        """Whether evaluations are a tracer's, inside `substituting`: tensors then have no values."""
        return self._given is not None

    @contextlib.contextmanager
    def substituting(self, index: int, held: Sequence[Tensor], tensors: Sequence[Tensor]) -> Iterator[None]:
        """Inside, evaluations of a batch are made from other `inputs`, such as those of a tracer."""
        originals, stream = self._isolation.held(), iter(tensors)
        batch = with_tensors(self.batches[index], lambda _: next(stream))
        self._given = {id(x): y for x, y in zip(originals, held, strict=True)}, batch
        try:
            yield
        finally:
            self._given = None

    def seed_batch(self, index: int) -> None:
        """Set the random state to that with which an evaluation of a batch begins, inside `evaluating`."""
        seed_all(self.seed * 1_000_003 + index, self.device)

    def record_inputs(self, kind: Kinds, record: Callable[[str, nn.Module, Tensor], None]) -> None:
        """One pass over the data; `record(name, module, input)` before every call of a module of this kind."""

        def first(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record(name, module, (args[0] if args else kwargs["input"]).detach())

        self.record_calls(kind, first)

    def record_calls(
        self, kind: Kinds, record: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None]
    ) -> None:
        """One pass over the data; `record(name, module, args, kwargs)` before every call of a module of this kind."""

        # Without gradients torch may fuse a transformer's layers and call none of its modules.
        fused = torch.backends.mha.get_fastpath_enabled()
        with self.evaluating(), torch.no_grad(), contextlib.ExitStack() as stack:
            for name, module in self.model.named_modules():
                if isinstance(module, kind):
                    stack.callback(module.register_forward_pre_hook(partial(record, name), with_kwargs=True).remove)
            stack.callback(torch.backends.mha.set_fastpath_enabled, fused)
            torch.backends.mha.set_fastpath_enabled(False)
            for i in range(len(self.batches)):
                self.batch_loss(i)

    def is_input(self, x: Tensor) -> bool:
        """Whether a tensor seen while evaluating is (a view of) the batch's own input."""
        storage = x.untyped_storage().data_ptr()
        return any(storage == t.untyped_storage().data_ptr() for t in self._inputs)

    @property
    def block(self) -> Block | None:
        """The open `with problem:` block, which rooms above may keep things for; None outside, and inside `moved`.

        Raises:
            RuntimeError: if the parameters changed since the block began.
        """
        if self._block is not None:
            self._block.check_unchanged()
        return self._block

    def __enter__(self) -> Problem:
        self._block = self._block or Block(self.parameters)
        self._block.depth += 1
        return self

    def __exit__(self, *_: object) -> None:
        assert self._block is not None
        self._block.depth -= 1
        if not self._block.depth:
            block, self._block = self._block, None
            block.close()

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, {self.size:,} parameters, {self.examples:,} examples in "
            f"{len(self.batches)} batches, {self.dtype}, {self.mode} mode)"
        )

    # -- inner workings ------------------------------------------------------------------------------------------

    def _gradients(self, index: int, reached: set[str]) -> list[Tensor]:
        """Of a batch's loss by each of the leaves, inside `evaluating`; the names of those it reaches are added."""
        loss = self.batch_loss(index)
        check_depends(loss)
        found = torch.autograd.grad(loss, self.leaves, allow_unused=True)
        for name, g in zip(self.names, found, strict=True):
            if g is not None:
                reached.add(name)
                if g.layout != torch.strided:
                    raise ValueError(f"the gradient of {name} is sparse; build the embedding with sparse=False")
        return [torch.zeros_like(x) if g is None else g for g, x in zip(found, self.leaves, strict=True)]

    def _loss_as_given(self, index: int, output: Any = None) -> Any:
        """What the user's code returns as a batch's loss, of whatever kind."""
        batch = self.begin(index) if output is None else self.batch
        if self.whole_loss is not None:
            return self.whole_loss(self.model, batch)
        assert self.loss_fn is not None
        return self.loss_fn(self.model(batch[0]) if output is None else output, batch[1])

    @cached_property
    def _is_tiny(self) -> bool:
        """Whether operations are so small that a second thread brings nothing, and costs much on a busy machine.
        Decided by size, so that the same run gives the same bits."""
        if self.device.type != "cpu" or self.size * max(map(count_examples, self.batches)) >= TINY:
            return False
        # few parameters may still mean long sequences or large images
        return self.largest_activations() < TINY


def check_problem(problem: Problem) -> None:
    """Refuse what is no `Problem`.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"got a {type(problem).__name__}; give a wc.Problem(model, loss_fn, data)")
