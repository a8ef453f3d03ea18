"""`Problem`: the right function, deterministic, and no trace left behind."""

from __future__ import annotations

import copy
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, TensorDataset

from tests.problems import PROBLEMS, batches_of, make
from wellcond.curvature import GaussNewton, Hessian
from wellcond.problem import Problem


def by_hand(case) -> float:
    """The mean over examples of a model in train mode."""
    total = sum(len(y) * float(case.loss_fn(copy.deepcopy(case.model)(x), y).detach()) for x, y in batches_of(case))
    return total / sum(len(y) for _, y in batches_of(case))


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "dropout"])
def test_the_loss_and_gradient_are_those_that_are_trained(name):
    case = make(name)
    problem = Problem(case.model, case.loss_fn, case.data)
    assert problem.loss() == pytest.approx(by_hand(case), rel=1e-12)
    N = sum(len(y) for _, y in batches_of(case))
    twin = copy.deepcopy(case.model)
    sum(len(y) / N * case.loss_fn(twin(x), y) for x, y in batches_of(case)).backward()
    expected = torch.cat([p.grad.reshape(-1) for p in twin.parameters()])
    assert torch.allclose(problem.gradient(), expected, rtol=1e-10, atol=1e-14)


def test_dropout_is_frozen_one_mask_a_batch_by_the_seed():
    case = make("dropout")
    x, y = case.data
    first = Problem(case.model, case.loss_fn, [(x, y), (x, y)], seed=1)
    assert first.loss() == first.loss()
    other_seed = Problem(case.model, case.loss_fn, [(x, y), (x, y)], seed=2)
    assert first.loss() != other_seed.loss()
    halves = [Problem(case.model, case.loss_fn, [(x, y)], seed=1).loss(), 0.0]
    halves[1] = 2 * first.loss() - halves[0]
    assert halves[0] != pytest.approx(halves[1], rel=1e-6)  # the second batch has a mask of its own


def test_eval_mode_on_request():
    case = make("dropout")
    case.model.eval()
    expected = float(case.loss_fn(case.model(case.data[0]), case.data[1]).detach())
    case.model.train()
    assert Problem(case.model, case.loss_fn, case.data, mode="eval").loss() == pytest.approx(expected, rel=1e-12)


def test_a_problem_like_another_differs_in_what_is_changed_alone():
    case = make("dropout")
    names = ["0.weight"]
    given = Problem(case.model, case.loss_fn, case.data, mode="eval", parameters=names, seed=3, memory_limit=5)
    same = given.like()
    assert torch.equal(same.gradient(), given.gradient())
    assert (same.names, same.seed, same.memory_limit, same.mode) == (names, 3, 5, "eval")
    x, y = case.data
    other = given.like(data=(x[:5], y[:5]), mode="train")
    assert (other.examples, other.mode, other.names, other.seed) == (5, "train", names, 3)
    loss = Problem(case.model, None, case.data, loss=lambda model, batch: case.loss_fn(model(batch[0]), batch[1]))
    assert loss.like().loss() == loss.loss()


def test_a_frozen_batch_norm_stays_frozen_and_a_model_in_eval_mode_is_trained():
    case = make("batch norm")
    norm = case.model[1]
    case.model(case.data[0])  # running statistics unlike the batch's
    norm.eval()
    frozen = float(case.loss_fn(case.model(case.data[0]), case.data[1]).detach())
    assert Problem(case.model, case.loss_fn, case.data).loss() == pytest.approx(frozen, rel=1e-12)
    case.model.eval()
    trained = by_hand_in_train_mode(case)
    assert Problem(case.model, case.loss_fn, case.data).loss() == pytest.approx(trained, rel=1e-12)
    assert abs(frozen - trained) > 1e-6


def by_hand_in_train_mode(case) -> float:
    twin = copy.deepcopy(case.model).train()
    return float(case.loss_fn(twin(case.data[0]), case.data[1]).detach())


# -- no trace --------------------------------------------------------------------------------------------------------


def test_a_network_that_the_loss_uses_is_left_as_it_was_and_not_copied():
    torch.manual_seed(0)
    critic = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 1))
    critic[3].eval()
    model, x, before = nn.Linear(3, 1), torch.randn(8, 3), copy.deepcopy(critic.state_dict())
    flags, weight = [m.training for m in critic.modules()], critic[0].weight.data_ptr()
    problem = Problem(model, loss=lambda m, x: critic(m(x)).square().mean(), data=[x])
    with problem.evaluating():
        problem.batch_loss(0)
        assert critic[0].weight.data_ptr() == weight
        assert not torch.equal(critic[1].running_mean, before["1.running_mean"])
    Hessian(problem).dense()
    assert all(torch.equal(y, before[name]) for name, y in critic.state_dict().items())
    assert [m.training for m in critic.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in critic.parameters())
    double = Problem(model, loss=problem.whole_loss, data=[x], dtype=torch.float64)
    assert double.loss() == pytest.approx(problem.loss(), rel=1e-5)
    assert double.loss_dtype == torch.float64
    assert critic[0].weight.dtype == torch.float32


class Everything(nn.Module):
    """What a network can keep: running statistics, power iterations old and new, a counter, a tensor attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)
        self.lstm = nn.LSTM(6, 5, batch_first=True)
        self.last = nn.utils.spectral_norm(nn.Linear(5, 3))
        self.calls = 0
        self.history = torch.zeros(6)

    def forward(self, x):
        self.calls += 1
        h = self.dropout(torch.relu(self.norm(self.first(x))))
        self.history = self.history * 0.9 + h.detach().mean(0) * 0.1
        self.history += random.random() + float(np.random.rand())
        return self.last(self.lstm(h[:, None])[0][:, 0])


def everything() -> tuple[nn.Module, nn.Module, DataLoader, torch.optim.Optimizer]:
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model, loss_fn = Everything(), nn.CrossEntropyLoss()
    dataset = TensorDataset(torch.randn(30, 4), torch.randint(3, (30,)))
    loader = DataLoader(dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(7))
    optimizer = torch.optim.Adam(model.parameters())
    for x, y in loader:
        optimizer.zero_grad()
        loss_fn(model(x), y).backward()
        optimizer.step()
    model.norm.eval()
    return model, loss_fn, loader, optimizer


def fingerprint(model, loader, optimizer) -> bytes:
    """Every bit that measuring might touch."""
    modules = [
        (name, m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()
    ]
    tensors = [
        (name, t.detach().numpy().tobytes(), t.requires_grad, t.data_ptr())
        for name, t in [*model.named_parameters(), *model.named_buffers(), ("history", model.history)]
    ]
    gradients = [None if p.grad is None else p.grad.numpy().tobytes() for p in model.parameters()]
    flat = [w.data_ptr() for w in model.lstm._flat_weights]
    old_norm = model.last.weight.detach().numpy().tobytes()
    state = pickle.dumps(
        OrderedDict((i, {k: v.tolist() for k, v in s.items()}) for i, s in enumerate(optimizer.state.values()))
    )
    rng = (
        torch.get_rng_state().numpy().tobytes(),
        loader.generator.get_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tobytes(),
        torch.is_grad_enabled(),
    )
    return pickle.dumps((modules, tensors, gradients, flat, old_norm, model.calls, state, rng))


def measure_all(model, loss_fn, loader) -> None:
    problem = Problem(model, loss_fn, loader)
    with problem:
        for operator in (Hessian(problem), GaussNewton(problem)):
            operator.matvec(torch.ones(problem.size))
    problem.loss()
    problem.gradient()


def test_measuring_leaves_no_trace():
    model, loss_fn, loader, optimizer = everything()
    before = fingerprint(model, loader, optimizer)
    measure_all(model, loss_fn, loader)
    assert fingerprint(model, loader, optimizer) == before


def test_training_goes_on_bit_for_bit():
    def go_on(measured: bool) -> list[torch.Tensor]:
        model, loss_fn, loader, optimizer = everything()
        torch.manual_seed(5)
        for x, y in loader:
            optimizer.zero_grad()
            loss = loss_fn(model(x), y)
            if measured:
                measure_all(model, loss_fn, loader)
            loss.backward()
            optimizer.step()
        return [*model.parameters(), *model.buffers(), model.history]

    assert all(torch.equal(a, b) for a, b in zip(go_on(True), go_on(False), strict=True))


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("their own"), ValueError("theirs")])
@pytest.mark.parametrize("moment", [1, 3])
def test_no_trace_when_the_loss_raises_or_the_user_interrupts(error, moment):
    model, loss_fn, loader, optimizer = everything()
    calls = 0

    def raising(output, target):
        nonlocal calls
        calls += 1
        if calls == moment:
            raise error
        return loss_fn(output, target)

    before = fingerprint(model, loader, optimizer)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        measure_all(model, raising, loader)
    assert fingerprint(model, loader, optimizer) == before


def test_measuring_inside_no_grad_and_autocast_is_the_same():
    case = make("ReLU MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    v = torch.ones(problem.size, dtype=problem.dtype)
    expected = Hessian(problem).matvec(v)
    with torch.no_grad(), torch.autocast("cpu"):
        assert torch.equal(Hessian(problem).matvec(v), expected)
    with torch.inference_mode():
        assert torch.equal(Hessian(problem).matvec(v), expected)


def test_the_users_gradient_hooks_are_not_called():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    expected = problem.gradient()
    called = []
    for p in case.model.parameters():
        p.register_hook(lambda g: called.append(1) or g * 0)
    assert torch.equal(problem.gradient(), expected)
    assert not called


# -- data ------------------------------------------------------------------------------------------------------------


def loader_of(N: int = 30, **options) -> DataLoader:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(N, 3), torch.randn(N, 1)), **options)


def test_a_loader_is_read_by_its_own_rules():
    model, loss_fn = nn.Linear(3, 1), nn.MSELoss()
    assert [len(x) for x, _ in Problem(model, loss_fn, loader_of(batch_size=8)).batches] == [8, 8, 8, 6]
    dropped = Problem(model, loss_fn, loader_of(batch_size=8, drop_last=True, shuffle=True))
    assert dropped.examples == 24
    assert Problem(model, loss_fn, loader_of(batch_size=8), batches=2).examples == 16
    plain = loader_of(batch_size=8)
    for (x, _), (same, _) in zip(plain, Problem(model, loss_fn, plain).batches, strict=True):
        assert torch.equal(x, same)


def test_a_subset_sampler_keeps_the_other_examples_out():
    loader = loader_of(batch_size=4, sampler=SubsetRandomSampler(range(10)))
    problem = Problem(nn.Linear(3, 1), nn.MSELoss(), loader)
    assert problem.examples == 10
    inside = loader.dataset.tensors[0][:10]
    assert all((inside == row).all(1).any() for x, _ in problem.batches for row in x)


def test_shuffling_depends_on_the_seed_alone():
    loader = loader_of(batch_size=8, shuffle=True)
    first = Problem(nn.Linear(3, 1), nn.MSELoss(), loader, seed=1).batches[0][0]
    torch.rand(100)
    assert torch.equal(Problem(nn.Linear(3, 1), nn.MSELoss(), loader, seed=1).batches[0][0], first)
    assert not torch.equal(Problem(nn.Linear(3, 1), nn.MSELoss(), loader, seed=2).batches[0][0], first)


def test_a_loader_in_the_middle_of_its_epoch_goes_on():
    loader = loader_of(batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3))

    def epoch(measured: bool) -> list[torch.Tensor]:
        loader.generator.manual_seed(3)
        seen = []
        for x, _ in loader:
            seen.append(x)
            if measured:
                Problem(nn.Linear(3, 1), nn.MSELoss(), loader).loss()
        return seen

    assert all(torch.equal(a, b) for a, b in zip(epoch(True), epoch(False), strict=True))


def test_iterable_data_sets_collate_functions_and_single_examples():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter((torch.full((3,), float(i)), torch.ones(1)) for i in range(7))

    problem = Problem(nn.Linear(3, 1), nn.MSELoss(), DataLoader(Stream(), batch_size=3))
    assert [len(x) for x, _ in problem.batches] == [3, 3, 1]

    class Once(Stream):
        rows = iter([(torch.ones(3), torch.ones(1))] * 7)

        def __iter__(self):
            return self.rows

    once = Once()
    with pytest.raises(ValueError, match="Once is a stream that can be read once"):
        Problem(nn.Linear(3, 1), nn.MSELoss(), DataLoader(once, batch_size=3))
    assert len(list(once)) == 7

    def doubled(rows):
        x, y = torch.utils.data.default_collate(rows)
        return 2 * x, y

    loader = loader_of(batch_size=30, collate_fn=doubled)
    assert torch.equal(Problem(nn.Linear(3, 1), nn.MSELoss(), loader).batches[0][0], 2 * loader.dataset.tensors[0])
    unbatched = DataLoader(loader.dataset, batch_size=None)
    assert len(Problem(nn.Linear(3, 1), lambda o, t: (o - t).square().mean(), unbatched).batches) == 30


def test_large_loaders_are_read_in_part_unless_asked():
    loader = loader_of(N=9000, batch_size=512)
    assert Problem(nn.Linear(3, 1), nn.MSELoss(), loader).examples == 8192
    assert Problem(nn.Linear(3, 1), nn.MSELoss(), loader, batches=18).examples == 9000


def test_any_batch_goes_with_a_loss_of_model_and_batch():
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    batch = {"x": torch.randn(9, 3), "label": torch.randn(9, 1), "id": ["a"] * 9}
    problem = Problem(model, loss=lambda m, b: (m(b["x"]) - b["label"]).square().mean(), data=batch)
    assert problem.examples == 9
    expected = Problem(model, nn.MSELoss(), (batch["x"], batch["label"]))
    assert problem.loss() == pytest.approx(expected.loss())
    assert torch.allclose(Hessian(problem).dense(), Hessian(expected).dense())


def test_weights_replace_the_number_of_examples():
    model = nn.Linear(3, 1)
    a, b = (torch.ones(2, 3), torch.ones(2, 1)), (torch.zeros(4, 3), torch.ones(4, 1))
    each = [Problem(model, nn.MSELoss(), x).loss() for x in (a, b)]
    assert Problem(model, nn.MSELoss(), [a, b]).loss() == pytest.approx((2 * each[0] + 4 * each[1]) / 6)
    assert Problem(model, nn.MSELoss(), [a, b], weight=lambda _: 1.0).loss() == pytest.approx(sum(each) / 2)


# -- parameters ------------------------------------------------------------------------------------------------------


def test_a_problem_like_another_weighs_batches_as_that_one():
    model, batches = nn.Linear(2, 1), [(torch.randn(n, 2), torch.randn(n, 1)) for n in (3, 9, 5)]
    given = Problem(model, nn.MSELoss(), batches, weight=lambda batch: 1.0)
    assert given.like(dtype=torch.float64).weights == given.weights == [1 / 3] * 3
    assert given.like(data=batches[1:]).weights == [1 / 2] * 2
    assert given.like(weight=None).weights == [3 / 17, 9 / 17, 5 / 17]


def test_tied_weights_count_once_and_frozen_ones_are_left_out():
    case = make("tied weights")
    assert Problem(case.model, case.loss_fn, case.data).names == ["embedding.weight"]
    case = make("tanh MLP")
    case.model[0].requires_grad_(False)
    assert Problem(case.model, case.loss_fn, case.data).names == ["2.weight", "2.bias"]
    chosen = Problem(case.model, case.loss_fn, case.data, parameters=["2.bias"])
    assert chosen.size == 2
    whole = Hessian(Problem(case.model, case.loss_fn, case.data)).dense()
    assert torch.allclose(Hessian(chosen).dense(), whole[-2:, -2:])


def test_wrappers_are_taken_off():
    case = make("tanh MLP")
    plain = Problem(case.model, case.loss_fn, case.data)
    for wrapped in (torch.compile(case.model), nn.DataParallel(case.model)):
        problem = Problem(wrapped, case.loss_fn, case.data)
        assert problem.names == plain.names
        assert problem.loss() == plain.loss()


def test_a_compiled_part_is_measured_uncompiled():
    case = make("tanh MLP")
    expected = Hessian(Problem(case.model, case.loss_fn, case.data)).dense()
    case.model[0].compile()
    assert torch.allclose(Hessian(Problem(case.model, case.loss_fn, case.data)).dense(), expected)


def test_another_dtype_is_the_same_function_with_another_rounding():
    case = make("batch norm")
    case.model.float()
    data = tuple(t.float() if t.is_floating_point() else t for t in case.data)
    single = Problem(case.model, case.loss_fn, data)
    double = Problem(case.model, case.loss_fn, data, dtype=torch.float64)
    assert double.gradient().dtype == torch.float64
    assert single.loss() == pytest.approx(double.loss(), rel=1e-5)
    exact = Problem(copy.deepcopy(case.model).double(), case.loss_fn, (data[0].double(), data[1]))
    assert torch.equal(double.gradient(), exact.gradient())
    assert next(case.model.parameters()).dtype == torch.float32
    half = Problem(copy.deepcopy(case.model).half(), case.loss_fn, data, dtype=torch.float32)
    assert half.loss() == pytest.approx(double.loss(), rel=1e-2)


def test_parameters_are_read_anew_and_may_not_change_inside_a_block():
    case = make("tanh MLP")
    problem = Problem(case.model, case.loss_fn, case.data)
    v = torch.ones(problem.size, dtype=torch.float64)
    before = Hessian(problem).matvec(v)
    with torch.no_grad():
        case.model[0].weight.mul_(2)
    assert not torch.allclose(Hessian(problem).matvec(v), before)
    with problem:
        operator = Hessian(problem)
        operator.matvec(v)
        with torch.no_grad():
            case.model[0].weight.mul_(2)
        with pytest.raises(RuntimeError, match="parameters changed"):
            operator.matvec(v)


def test_unreached_parameters_are_named():
    class Leftover(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 2)

        def forward(self, x):
            return self.used(x)

    problem = Problem(Leftover(), nn.MSELoss(), (torch.randn(5, 3), torch.randn(5, 1)))
    assert float(problem.gradient()[4:].abs().max()) == 0.0
    assert problem.unreached == ["unused.weight", "unused.bias"]
    dense = Hessian(problem).dense()
    assert float(dense[4:].abs().max()) == 0.0


# -- refusals --------------------------------------------------------------------------------------------------------

X, Y = torch.randn(6, 3), torch.randn(6, 1)
LINEAR = nn.Linear(3, 1)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool):
        super().__init__()
        self.first, self.second, self.reentrant = nn.Linear(3, 4), nn.Linear(4, 1), reentrant

    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return self.second(checkpoint(lambda h: torch.tanh(self.first(h)), x, use_reentrant=self.reentrant))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(5, 4), nn.Linear(4, 1)

    def forward(self, tokens):
        return self.out(torch.tanh(self.bag(tokens)))


def ctc(output, target):
    return nn.functional.ctc_loss(
        output.log_softmax(-1).unsqueeze(1), torch.ones(1, 2, dtype=torch.long), torch.tensor([6]), torch.tensor([2])
    )


def mixed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[1] = nn.Linear(2, 1, device="meta")
    return model


class OwnLoader(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield 1000 * x, y


REFUSALS = {
    "no data": (lambda: Problem(LINEAR, nn.MSELoss(), None), "data is missing"),
    "empty list": (lambda: Problem(LINEAR, nn.MSELoss(), []), "data is empty"),
    "empty loader": (lambda: Problem(LINEAR, nn.MSELoss(), DataLoader(TensorDataset(X[:0], Y[:0]))), "data is empty"),
    "empty batch": (lambda: Problem(LINEAR, nn.MSELoss(), (X[:0], Y[:0])), "no examples"),
    "one-shot generator": (lambda: Problem(LINEAR, nn.MSELoss(), ((x, y) for x, y in [(X, Y)])), "one-shot generator"),
    "not a pair": (lambda: Problem(LINEAR, nn.MSELoss(), [(X, Y, Y)]), "not an \\(input, target\\) pair"),
    "a string": (lambda: Problem(LINEAR, nn.MSELoss(), "data.csv"), "data is a str"),
    "no tensor": (lambda: Problem(LINEAR, loss=lambda m, b: 0, data=[{"a": 1}]), "no tensor"),
    "no model": (lambda: Problem("model", nn.MSELoss(), (X, Y)), "torch.nn.Module"),
    "no loss": (lambda: Problem(LINEAR, None, (X, Y)), "either loss_fn"),
    "two losses": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), loss=lambda m, b: 0), "either loss_fn"),
    "loss is no callable": (lambda: Problem(LINEAR, 3, (X, Y)), "give a callable"),
    "bad mode": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), mode="test"), "mode"),
    "bad batches": (lambda: Problem(LINEAR, nn.MSELoss(), [(X, Y)], batches=0), "at least one batch"),
    "bad weights": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), weight=lambda b: -1), "weights"),
    "bad dtype": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), dtype=torch.float16), "float32 or torch.float64"),
    "frozen": (lambda: Problem(nn.Linear(3, 1).requires_grad_(False), nn.MSELoss(), (X, Y)), "no trainable"),
    "unknown name": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), parameters=["w"]), "no trainable parameter 'w'"),
    "foreign parameter": (
        lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), parameters=[nn.Parameter(X)]),
        "not a trainable one",
    ),
    "half and double": (
        lambda: Problem(nn.Sequential(nn.Linear(3, 2).half(), nn.Linear(2, 1).double()), nn.MSELoss(), (X, Y)),
        "give dtype=torch.float32",
    ),
    "complex": (lambda: Problem(nn.Linear(3, 1, dtype=torch.complex64), nn.MSELoss(), (X, Y)), "complex"),
    "lazy": (lambda: Problem(nn.LazyLinear(1), nn.MSELoss(), (X, Y)), "not initialized"),
    "mixed devices": (lambda: Problem(mixed(), nn.MSELoss(), (X, Y)), "one device"),
    "mixed dtypes": (
        lambda: Problem(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1).double()), nn.MSELoss(), (X, Y)),
        "give dtype",
    ),
    "loss not a scalar": (lambda: Problem(LINEAR, nn.MSELoss(reduction="none"), (X, Y)).loss(), "not a scalar"),
    "loss not a tensor": (
        lambda: Problem(LINEAR, lambda o, t: 1.0, (X, Y)).loss(),
        "is a float; return a scalar tensor",
    ),
    "NaN loss": (lambda: Problem(LINEAR, nn.MSELoss(), (X * torch.nan, Y)).loss(), "batch 0 is nan"),
    "infinite loss": (lambda: Problem(LINEAR, lambda o, t: (o.abs() * 1e30).exp().mean(), (X, Y)).loss(), "is inf"),
    "detached": (lambda: Problem(LINEAR, lambda o, t: o.detach().mean(), (X, Y)).gradient(), "does not depend"),
    "sparse gradient": (
        lambda: Problem(nn.Embedding(5, 1, sparse=True), nn.MSELoss(), (torch.arange(5), torch.ones(5, 1))).gradient(),
        "sparse=False",
    ),
    "batch norm of one": (
        lambda: Problem(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), nn.MSELoss(), (X[:1], Y[:1])).loss(),
        "batch of one",
    ),
    "EmbeddingBag": (
        lambda: product_of(Problem(Bag(), nn.MSELoss(), (torch.randint(5, (6, 3)), Y))),
        "nn.Embedding followed by",
    ),
    "CTC": (lambda: product_of(Problem(nn.Linear(3, 5), ctc, (X, Y))), "another loss"),
    "reentrant checkpoint": (
        lambda: product_of(Problem(Checkpointed(True), nn.MSELoss(), (X.clone().requires_grad_(), Y))),
        "use_reentrant=False",
    ),
    "TorchScript": (lambda: Problem(torch.jit.script(nn.Linear(3, 1)), nn.MSELoss(), (X, Y)), "TorchScript"),
    "loader of their own": (
        lambda: Problem(LINEAR, nn.MSELoss(), OwnLoader(TensorDataset(X, Y))),
        "__iter__ of its own",
    ),
    "a class for a loss": (lambda: Problem(LINEAR, nn.MSELoss, (X, Y)), "give an instance"),
    "seed too large": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), seed=2**32), "seed"),
    "infinite weight": (lambda: Problem(LINEAR, nn.MSELoss(), (X, Y), weight=lambda b: float("inf")), "finite"),
    "empty parameters": (lambda: Problem(nn.Linear(0, 0), nn.MSELoss(), (X, Y)), "no trainable"),
    "meta": (lambda: Problem(nn.Linear(3, 1, device="meta"), nn.MSELoss(), (X, Y)), "meta device"),
    "numpy": (lambda: Problem(LINEAR, nn.MSELoss(), [(X.numpy(), Y.numpy())]), "give tensors"),
}


def product_of(problem: Problem) -> torch.Tensor:
    return Hessian(problem).matvec(torch.ones(problem.size))


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.filterwarnings("ignore")
def test_bad_input_is_refused_in_one_line(name):
    attempt, message = REFUSALS[name]
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        attempt()
    assert "\n" not in str(caught.value)


def test_checkpointed_layers_can_be_measured():
    torch.manual_seed(0)
    model = Checkpointed(False)
    expected = copy.deepcopy(model)
    expected.forward = lambda x: expected.second(torch.tanh(expected.first(x)))
    for dtype in (None, torch.float64):
        problem = Problem(model, nn.MSELoss(), (X, Y), dtype=dtype)
        with problem:
            dense = Hessian(problem).dense()
        assert torch.allclose(dense, Hessian(Problem(expected, nn.MSELoss(), (X, Y), dtype=dtype)).dense(), atol=1e-5)


# -- what a forward pass may do to what it is given --------------------------------------------------------------------


class Careless(nn.Module):
    """Writes into its input, its weights and its targets, and has random states of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 3, max_norm=0.5)
        self.linear = nn.Linear(3, 1)
        self.generator = torch.Generator().manual_seed(3)
        self.python, self.numpy = random.Random(4), np.random.default_rng(5)

    def forward(self, tokens):
        h = self.embedding(tokens.add_(1).remainder_(6)).mean(1)
        self.linear.weight.data.clamp_(-0.3, 0.3)
        h = h * (1 + 0.1 * torch.randn(1, generator=self.generator, dtype=h.dtype))
        h = h * (1 + 0.1 * (self.python.random() + float(self.numpy.random()) + random.random() + np.random.rand()))
        return torch.tanh(self.linear(h))


def careless_loss(output, target):
    target.add_(1)
    return (output - target).square().mean()


def test_a_careless_network_is_the_same_function_every_time_and_stays_as_it_is():
    torch.manual_seed(0)
    model = Careless().double()
    data = [(torch.randint(6, (8, 4)), torch.randn(8, 1, dtype=torch.float64)) for _ in range(2)]
    before = copy.deepcopy((model.state_dict(), data))
    states = model.generator.get_state(), model.python.getstate(), model.numpy.bit_generator.state
    problem = Problem(model, careless_loss, data)
    assert problem.loss() == problem.loss()
    streamed = Hessian(problem).dense()
    with problem:
        kept = Hessian(problem).dense()
    assert torch.allclose(streamed, kept, rtol=1e-12)
    assert torch.allclose(streamed, streamed.T, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(before[0].values(), model.state_dict().values(), strict=True))
    assert all(
        torch.equal(a, b) for old, new in zip(before[1], data, strict=True) for a, b in zip(old, new, strict=True)
    )
    assert torch.equal(model.generator.get_state(), states[0])
    assert model.python.getstate() == states[1]
    assert model.numpy.bit_generator.state == states[2]


def test_no_generator_of_a_device_that_is_not_used_is_seeded(monkeypatch):
    case, seeded = make("dropout"), []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    Problem(case.model, case.loss_fn, case.data).gradient()
    assert seeded == []


def test_a_sampler_with_a_random_state_of_any_name_is_left_alone():
    class Own(torch.utils.data.Sampler):
        def __init__(self) -> None:
            self.rng, self.seen = random.Random(1), []

        def __iter__(self):
            for _ in range(12):
                self.seen.append(self.rng.randrange(30))
                yield self.seen[-1]

        def __len__(self):
            return 12

    sampler = Own()
    loader = loader_of(batch_size=4, sampler=sampler)
    state = sampler.rng.getstate()
    assert Problem(nn.Linear(3, 1), nn.MSELoss(), loader).examples == 12
    assert sampler.rng.getstate() == state
    assert sampler.seen == []


def test_a_single_parameter_or_name_may_be_chosen():
    case = make("tanh MLP")
    for chosen in ("2.bias", case.model[2].bias):
        assert Problem(case.model, case.loss_fn, case.data, parameters=chosen).names == ["2.bias"]


def test_a_wrong_double_backward_is_not_believed():
    """torch's own for weight_norm is wrong; measured, the Hessian would be off by a third and look fine."""
    from wellcond.condition_numbers import conditioning

    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 1)).double()
    problem = Problem(model, nn.MSELoss(), (torch.randn(9, 3).double(), torch.randn(9, 1).double()))
    for limit in (0, 100):
        with pytest.raises(FloatingPointError, match="weight_norm"):
            conditioning(Hessian(problem), dense_limit=limit)


def test_what_a_module_collects_is_left_as_it_was():
    class Collecting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen, self.by_name, self.kinds = nn.Linear(2, 1), ["a"], {"a": 1}, {"a"}

        def forward(self, x):
            self.seen.append("b")
            self.by_name["b"] = 2
            self.kinds.add("b")
            return self.linear(x)

    model = Collecting()
    held = model.seen, model.by_name, model.kinds
    problem = Problem(model, nn.MSELoss(), (torch.ones(3, 2), torch.ones(3, 1)))
    problem.loss(), problem.gradient()
    assert held == (["a"], {"a": 1}, {"a"})
    assert all(x is y for x, y in zip(held, (model.seen, model.by_name, model.kinds), strict=True))


def test_a_network_that_uses_torch_func_is_measured():
    class Energy(nn.Module):
        """The gradient of a network by its input, as a force field is made of an energy."""

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 5), nn.Linear(5, 1)

        def forward(self, x):
            return torch.func.vmap(torch.func.grad(lambda row: self.b(torch.tanh(self.a(row))).sum()))(x)

    torch.manual_seed(0)
    model = Energy().double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 3, dtype=torch.float64)
    problem = Problem(model, nn.MSELoss(), (x, y))
    names = [name for name, _ in model.named_parameters()]

    def loss(*values):
        return nn.functional.mse_loss(torch.func.functional_call(model, dict(zip(names, values, strict=True)), (x,)), y)

    blocks = torch.autograd.functional.hessian(loss, tuple(p.detach() for p in model.parameters()))
    sizes = [p.numel() for p in model.parameters()]
    rows = [
        torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], 1)
        for row, m in zip(blocks, sizes, strict=True)
    ]
    with problem:
        assert torch.allclose(Hessian(problem).dense(), torch.cat(rows), rtol=1e-9, atol=1e-12)
