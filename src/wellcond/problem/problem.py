"""The training loss as a deterministic function of the parameters."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from wellcond.parameters import flatten, unflatten
from wellcond.problem.batches import count_examples, move, read_batches, signature, tensors_of, with_tensors
from wellcond.problem.isolation import Isolation, random_state, seed_all
from wellcond.problem.kept import Kept, graph_nodes
from wellcond.problem.parameters import one_device, positions_of, trainable, unwrapped, working_dtype
from wellcond.problem.reachable import modules_of
from wellcond.problem.sizes import GRAPH_OVER_FORWARD, Sizes

T = TypeVar("T")

MEMORY_LIMIT = 2 * 2**30
"""Bytes of autograd graphs that a `with problem:` block may keep, unless given."""

TOGETHER = 64, 2**24
"""Products that share a backward pass: at most so many, and bytes of what it holds for them. On one idle core 64
columns took 45 ms instead of 233 for a residual network of 1,582 parameters, 250 instead of 486 for a transformer of
826 and 234 instead of 332 for a convolution of 562; with more bytes at once the last two became slower again."""

TINY = 2_000_000
"""Parameters times examples of a batch, and bytes of its activations, under which one thread is used. On two idle cores
a product took 0.35 ms on one or two threads for 1,810 parameters and 128 examples, and 1.24 against 0.98 ms for 100,000
and 64; with other work on the machine an examination of the former took 334 s on two threads and 32 s on one."""

_TWICE = {
    "_embedding_bag": "nn.EmbeddingBag has no second derivative in torch; use nn.Embedding followed by a sum or mean",
    "_ctc_loss": "CTC loss has no second derivative in torch; measure the same network with another loss, or write the "
    "alignment sum with torch.logsumexp",
    "cudnn": "a cuDNN kernel has no second derivative; measure with torch.backends.cudnn.enabled = False",
}


class LossNotFiniteError(ValueError):
    """The loss is infinite or not a number."""


class ClosedError(RuntimeError):
    """Nothing more is to be evaluated."""


class Problem:
    """L(p), the loss over the given data, as a deterministic function of the model's trainable parameters.

    What is measured is what is trained: batch norm uses the batch's statistics, dropout is frozen, one mask a batch,
    from the seed. Measuring leaves no trace: parameters, gradients, buffers, optimizer state, flags and random state
    are bit for bit what they were. The parameters are read anew at every measurement.

    Inside `with problem:` the graphs of first products are kept, which makes the later ones cost about 1.5 gradients
    instead of 2.5; the parameters must not change there, and the memory is freed on leaving.

    Args:
        model: any module; wrappers (torch.compile, data parallel) are taken off.
        loss_fn: (output, target) → scalar, the mean over a batch's examples.
        data: one (input, target) batch, a list of them, or a DataLoader (never iterated itself: its data set is read
            once, with its sampler's and collate function's rules, and kept).
        loss: instead of `loss_fn`, a callable (model, batch) → scalar, for any other kind of batch.
        mode: "train" or "eval".
        batches: read at most so many; None reads all, of a loader over a large data set some 8,192 examples.
        weight: batch → weight of its loss in the mean; the number of examples unless given.
        parameters: the parameters (or their names) to look at; all trainable ones unless given.
        seed: of dropout and of a loader's shuffling.
        dtype: evaluate in this floating-point type; the parameters' own unless given, and float32 for parameters in
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
        programs: what the rooms above have compiled for this problem.
        one_by_one: keys of what the rooms above have seen fail for several products in one backward pass.
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
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        if any(isinstance(m, torch.jit.ScriptModule) for m in model.modules()):
            raise TypeError("TorchScript modules can't be measured without changing them; give the original module")
        if isinstance(loss_fn, type):
            raise TypeError(f"loss_fn is the class {loss_fn.__name__}; give an instance, {loss_fn.__name__}()")
        if not isinstance(memory_limit, int | float) or not memory_limit >= 0:
            raise ValueError(f"got memory_limit={memory_limit!r}; it is a number of bytes, 0 or more")
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise ValueError(f"got seed={seed}; it is a whole number, at least 0 and below 2**32")
        if (loss_fn is None) == (loss is None):
            raise ValueError("give either loss_fn(output, target) or loss=callable(model, batch)")
        if not callable(loss_fn or loss):
            raise TypeError(f"the loss is a {type(loss_fn or loss).__name__}; give a callable")
        if mode not in ("train", "eval"):
            raise ValueError(f'got mode={mode!r}; it is "train" or "eval"')
        self.model, self.loss_fn, self.whole_loss, self.mode = unwrapped(model), loss_fn, loss, mode
        self.seed, self.memory_limit, self.compile = seed, memory_limit, compile
        self.names, self.parameters = trainable(self.model, parameters)
        self.device = one_device(self.names, self.parameters)
        self.dtype = working_dtype(self.names, self.parameters, dtype)
        self.size = sum(p.numel() for p in self.parameters)
        self._conversion = self.dtype if any(p.dtype != self.dtype for p in self.parameters) else None
        roots = [self.model] + ([loss_fn] if isinstance(loss_fn, nn.Module) else [])
        self._isolation = Isolation(roots, self.parameters, mode, self._conversion, modules_of(loss_fn, loss))
        with random_state(seed, self.device):
            found = read_batches(data, pairs=loss is None, batches=batches, seed=seed)
        self.examples = sum(count_examples(b) for b in found)
        weights = [float(weight(b)) if weight else float(count_examples(b)) for b in found]
        if not all(0 <= w < math.inf for w in weights) or not sum(weights) > 0:
            raise ValueError(f"the batches' weights are {weights[:5]} …; they are finite, ≥ 0 and not all 0")
        self.weights = [w / sum(weights) for w in weights]
        self.batches = found
        self.unreached: list[str] = []
        self.loss_dtype = self.dtype
        self.one_by_one: set[Any] = set()
        self.closed = False
        self._tiny: bool | None = None
        self._sizes = Sizes([max(1, count_examples(b)) for b in found])
        self._signatures: dict[int, Any] = {}
        self._example_scale: dict[int, int | None] = {}
        self._kept = Kept(self.parameters)
        self._inside = False
        self._moved: dict[int, Tensor] = {}
        self._given: tuple[dict[int, Tensor], Any] | None = None
        self.programs: dict[Any, Any] = {}
        self.leaves: list[Tensor] = []
        self._batch: Any = None
        self._input_storages: set[int] = set()

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
        reached: set[int] = set()
        total: list[Tensor] | None = None
        with self.evaluating():
            for i, w in enumerate(self.weights):
                grads, leaves = self._gradients(i), self.leaves
                reached.update(j for j, g in enumerate(grads) if g is not None)
                weighted = [torch.zeros_like(x) if g is None else w * g for g, x in zip(grads, leaves, strict=True)]
                _refuse_sparse(weighted, self.names)
                total = weighted if total is None else [a + b for a, b in zip(total, weighted, strict=True)]
        self.unreached = [name for j, name in enumerate(self.names) if j not in reached]
        assert total is not None
        gradient = flatten(total)
        if not torch.isfinite(gradient).all():
            bad = next(n for n, g in zip(self.names, total, strict=True) if not torch.isfinite(g).all())
            raise ValueError(f"the gradient of {bad} is not finite; lower the learning rate or look for the overflow")
        return gradient

    def batch_gradient(self, index: int) -> Tensor:
        """The gradient of one batch's loss, (n,), in `dtype`."""
        with self.evaluating():
            grads, leaves = self._gradients(index), self.leaves
            pieces = [torch.zeros_like(x) if g is None else g for g, x in zip(grads, leaves, strict=True)]
            _refuse_sparse(pieces, self.names)
            return flatten(pieces)

    @contextlib.contextmanager
    def moved(self, displacement: Tensor) -> Iterator[None]:
        """Inside, everything is evaluated at p + displacement; the model's parameters stay as they are.

        Args:
            displacement: (n,), in `dtype`, by which the sum is taken too.
        """
        if displacement.shape != (self.size,):
            raise ValueError(f"got a displacement of shape {tuple(displacement.shape)}; expected ({self.size},)")
        before, kept = self._moved, self._kept
        pieces = unflatten(displacement.to(self.dtype), self.parameters)
        starts = [before.get(id(p), p).detach().to(self.dtype) for p in self.parameters]
        self._moved = {id(p): x + d for p, x, d in zip(self.parameters, starts, pieces, strict=True)}
        # What `with problem:` keeps belongs to the parameters themselves.
        self._kept = Kept(self.parameters, kept.bytes)
        try:
            yield
        finally:
            self._moved, self._kept = before, kept

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
                _one_thread() if self._is_tiny() else contextlib.nullcontext(),
            ):
                yield
        except (RuntimeError, ValueError) as error:
            remedy = _remedy(str(error))
            if remedy is None:
                raise
            raise ValueError(remedy) from error
        finally:
            self._inside, self.leaves, self._batch = False, [], None

    @contextlib.contextmanager
    def differentiating(self) -> Iterator[None]:
        """As `evaluating`, for a backward pass in which nothing of the user's runs: the model is not touched."""
        if self.closed:
            raise ClosedError("this problem is closed")
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            if torch.is_autocast_enabled(self.device.type):
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self._tiny:
                stack.enter_context(_one_thread())
            yield

    def batch_output(self, index: int) -> Any:
        """The model's output on a batch (pairs only), inside `evaluating`."""
        return self.model(self._begin(index)[0])

    def batch_loss(self, index: int, output: Any = None) -> Tensor:
        """The loss of a batch, (), inside `evaluating`; of an output of `batch_output`, just computed, if given."""
        batch = self._begin(index) if output is None else self._batch
        if self.whole_loss is not None:
            value = self.whole_loss(self.model, batch)
        else:
            assert self.loss_fn is not None
            value = self.loss_fn(self.model(batch[0]) if output is None else output, batch[1])
        if not isinstance(value, Tensor) or value.numel() != 1:
            if not isinstance(value, Tensor):
                raise TypeError(f"the loss of batch {index} is a {type(value).__name__}; return a scalar tensor")
            raise ValueError(
                f"the loss of batch {index} is not a scalar but has shape {tuple(value.shape)}; take its mean over the "
                "examples"
            )
        if self._given is None and not self._sizes.measuring and not math.isfinite(float(value.detach())):
            raise LossNotFiniteError(
                f"the loss of batch {index} is {float(value.detach())}; the curvature exists only where the loss is "
                "finite: check the inputs, or measure at an earlier checkpoint"
            )
        self.loss_dtype = value.dtype
        return value.reshape(())

    def example_losses(self, index: int, output: Tensor) -> Tensor:
        """The loss of each example of a batch at an output of `batch_output`, just computed, (N,); their mean is the
        batch's loss.

        Raises:
            ValueError: if examples are mixed, or the loss is not a mean or a sum over them.
        """
        if any(_mixes_examples(node) for node in graph_nodes(output)):
            raise ValueError(
                "batch norm in train mode mixes the examples of a batch: there is no gradient of one example; measure "
                "with mode='eval'"
            )
        target, N, loss_fn = self._batch[1], len(output), self.loss_fn
        assert loss_fn is not None

        def single(o: Tensor, t: Any) -> Tensor:
            return loss_fn(o[None], with_tensors(t, lambda x: x[None])).reshape(())

        try:
            losses = torch.func.vmap(single)(output, target)
        except (RuntimeError, ValueError, TypeError):  # not every loss can be mapped over examples
            losses = torch.stack([single(output[i], with_tensors(target, itemgetter(i))) for i in range(N)])
        if self._given is None:  # a tracer has no values to compare
            whole, values = loss_fn(output, target).detach(), losses.detach()
            rounding = math.sqrt(torch.finfo(losses.dtype).eps) * values.abs().mean()
            mean, total = (values.mean() - whole).abs() <= rounding, (values.sum() - whole).abs() <= N * rounding
            self._example_scale[index] = 1 if bool(mean) else N if bool(total) else None
        scale = self._example_scale[index]
        if scale is not None:
            return losses if scale == 1 else scale * losses
        raise ValueError(
            f"the loss of batch {index} is neither the mean nor the sum of its examples' losses (class weights? an "
            "ignored index? a loss between examples?): there is no gradient of one example"
        )

    def kept(self, key: Any, index: int, build: Callable[[], T], size: Callable[[], float] | None = None) -> T | None:
        """What `build` makes for a batch where it is kept: inside `with problem:`, while memory allows; else None.

        Args:
            key: what is kept.
            index: of the batch.
            build: makes it.
            size: its bytes; those of the autograd graph that `build` makes unless given.
        """
        kept = self._kept
        if not kept.open():
            return None
        if (key, index) not in kept.graphs:
            room = self.memory_limit - kept.bytes
            bytes_ = size() if size else self._sizes.graph(key, index, build, self.batch_loss, room)
            if bytes_ > room:
                return None
            kept.graphs[key, index] = build()
            kept.bytes += bytes_
        elif not self.leaves:
            # For layers that run again in a backward pass; inside `with problem:` the parameters stay as they are.
            self.leaves = self._isolation.renew(self._moved, kept.copies)
        return kept.graphs[key, index]

    def columns_at_once(self) -> int:
        """How many products may share a backward pass, inside `evaluating`."""
        most, bytes_ = TOGETHER
        held = self._sizes.forward(self._sizes.largest, self.batch_loss) + self.size * self.dtype.itemsize
        return min(most, int(bytes_ / (GRAPH_OVER_FORWARD * held)))

    @property
    def keeping(self) -> bool:
        """Whether a `with problem:` block is open."""
        return self._kept.open()

    def already_kept(self, key: Any, index: int) -> Any:
        """What `kept` holds for a batch; None where it holds nothing."""
        return self._kept.graphs.get((key, index)) if self._kept.open() else None

    def positions_of(self, which: Iterable[str | nn.Module | nn.Parameter], among: tuple[int, ...]) -> tuple[int, ...]:
        """Places, among some of `parameters`, of those that names, patterns, modules or parameters point to."""
        named = list(self.model.named_parameters(remove_duplicate=False))
        return tuple(among[i] for i in positions_of(which, named, [self.parameters[i] for i in among]))

    def inputs(self, index: int) -> tuple[list[Tensor], list[Tensor]]:
        """All that an evaluation of a batch depends on, inside `evaluating`: what the modules hold, and the batch."""
        batch = move(self.batches[index], self.device, self._conversion)
        held = [self._moved.get(id(x), x) for x in self._isolation.held()]
        return [self._isolation.convert(x) for x in held], list(tensors_of(batch))

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

    def signature(self, index: int) -> Any:
        """The same for batches that take the same way through the network."""
        if index not in self._signatures:
            self._signatures[index] = signature(self.batches[index])
        return self._signatures[index]

    def kept_matrix(self, key: Any, build: Callable[[], Tensor]) -> Tensor:
        """What `build` makes, kept for the rest of a `with problem:` block; a copy of it."""
        if not self._kept.open():
            return build()
        if key not in self._kept.matrices:
            self._kept.matrices[key] = build()
        return self._kept.matrices[key].clone()

    def record_inputs(self, kind: type | tuple[type, ...], record: Callable[[str, nn.Module, Tensor], None]) -> None:
        """One pass over the data; `record(name, module, input)` before every call of a module of this kind."""

        def first(name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            record(name, module, (args[0] if args else kwargs["input"]).detach())

        self.record_calls(kind, first)

    def record_calls(
        self,
        kind: type | tuple[type, ...],
        record: Callable[[str, nn.Module, tuple[Any, ...], dict[str, Any]], None],
    ) -> None:
        """One pass over the data; `record(name, module, args, kwargs)` before every call of a module of this kind."""
        handles = []
        for name, module in self.model.named_modules():
            if isinstance(module, kind):
                assert isinstance(module, nn.Module)

                def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                    if not self._sizes.measuring:
                        record(name, module, args, kwargs)

                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        # Without gradients torch may fuse a transformer's layers and call none of its modules.
        fused = torch.backends.mha.get_fastpath_enabled()
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            with self.evaluating(), torch.no_grad():
                for i in range(len(self.batches)):
                    self.batch_loss(i)
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for handle in handles:
                handle.remove()

    def is_input(self, x: Tensor) -> bool:
        """Whether a tensor seen while evaluating is (a view of) the batch's own input."""
        return x.untyped_storage().data_ptr() in self._input_storages

    def __enter__(self) -> Problem:
        self._kept.enter()
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.leave()

    def __repr__(self) -> str:
        return (
            f"Problem({type(self.model).__name__}, {self.size:,} parameters, {self.examples:,} examples in "
            f"{len(self.batches)} batches, {self.dtype}, {self.mode} mode)"
        )

    # -- inner workings ------------------------------------------------------------------------------------------

    def _gradients(self, index: int) -> tuple[Tensor | None, ...]:
        """Of a batch's loss by each of the leaves, inside `evaluating`; None where it does not reach one."""
        loss = self.batch_loss(index)
        self.check_depends(loss)
        return torch.autograd.grad(loss, self.leaves, allow_unused=True)

    def _is_tiny(self) -> bool:
        """Whether operations are so small that a second thread brings nothing, and costs much on a busy machine.
        Decided by size, so that the same run gives the same bits."""
        if self._tiny is None:
            largest = self._sizes.largest
            most = count_examples(self.batches[largest])
            self._tiny = self.device.type == "cpu" and self.size * most < TINY
            # few parameters may still mean long sequences or large images
            self._tiny = self._tiny and self._sizes.forward(largest, self.batch_loss) < TINY
        return self._tiny

    def _begin(self, index: int) -> Any:
        """A batch where the model is, with buffers and random state as every evaluation of it finds them."""
        self.seed_batch(index)
        if self._given is not None:
            held, self._batch = self._given
            self.leaves = self._isolation.renew(held)
            return self._batch
        self.leaves = self._isolation.renew(self._moved)
        self._batch = move(self.batches[index], self.device, self._conversion)
        inputs = self._batch[0] if self.whole_loss is None else self._batch
        self._input_storages = {t.untyped_storage().data_ptr() for t in tensors_of(inputs)}
        return self._batch

    def check_depends(self, loss: Tensor) -> None:
        """Refuse a loss (or an output) that can't be traced back to the parameters."""
        if any(node.name() == "CheckpointFunctionBackward" for node in graph_nodes(loss)):
            raise ValueError(
                "a layer is checkpointed with use_reentrant=True, which can't be differentiated this way; pass "
                "use_reentrant=False to torch.utils.checkpoint.checkpoint"
            )
        if not loss.requires_grad:
            raise ValueError(
                "the loss does not depend on the parameters: something in the model or the loss detaches them "
                "(.detach(), .item(), torch.no_grad, or a checkpoint with use_reentrant=True)"
            )


def check_problem(problem: Problem) -> None:
    """Refuse what is no `Problem`.

    Raises:
        TypeError: saying what it is.
    """
    if not isinstance(problem, Problem):
        raise TypeError(f"got a {type(problem).__name__}; give a wc.Problem(model, loss_fn, data)")


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)


def _refuse_sparse(gradients: list[Tensor], names: list[str]) -> None:
    for name, g in zip(names, gradients, strict=True):
        if g.layout != torch.strided:
            raise ValueError(f"the gradient of {name} is sparse; build the embedding with sparse=False")


def _mixes_examples(node: Any) -> bool:
    """Whether a node is a batch norm by the batch's own statistics. (Instance norm is made of batch norm over one
    example with all channels of the batch.)"""
    return "BatchNorm" in node.name() and node._saved_training and len(node._saved_input) > 1


def _remedy(message: str) -> str | None:
    """For what can't be differentiated twice, one line with what to do about it."""
    if re.search(r"derivative for .* (is )?not implemented|double backward", message, re.IGNORECASE):
        for mark, remedy in _TWICE.items():
            if mark in message.lower():
                return remedy
        return f"a part of the network can't be differentiated twice: {message.splitlines()[0]}"
    if "Expected more than 1 value per channel" in message:
        return "batch norm in train mode has no statistics of a batch of one; give larger batches, or mode='eval'"
    return None
