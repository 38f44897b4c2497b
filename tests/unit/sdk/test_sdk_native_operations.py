"""Operations and layers: what they take, what they refuse, and that their gradients are right."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.plugins import CustomLayer, CustomOp, CustomOpBuilder, check_gradients


def built(name: str, n_inputs: int, forward: Any, backward: Any = None, **more: Any) -> CustomOp:
    builder = CustomOpBuilder(name, n_inputs).forward(forward)
    return (builder.backward(backward) if backward else builder).dtypes(*more.get("dtypes", ())).build()


def matmul() -> CustomOp:
    def backward(
        grad: Any, ids: Sequence[int], shapes: Any, dtypes: Any, devices: Any, inputs: Sequence[Any]
    ) -> Mapping[int, Any]:
        a, b = inputs
        return {ids[0]: grad @ b.T, ids[1]: a.T @ grad}

    return built("matmul", 2, lambda inputs: inputs[0] @ inputs[1], backward)


def mean() -> CustomOp:
    """Its gradient needs shapes alone, so that the five arguments of the document will do."""

    def backward(grad: Any, ids: Sequence[int], shapes: Any, dtypes: Any, devices: Any) -> Mapping[int, Any]:
        return {ids[0]: np.full(shapes[0], grad / np.prod(shapes[0]), dtype=dtypes[0])}

    return built("mean", 1, lambda inputs: inputs[0].mean(), backward)


def test_an_operation_is_called_like_a_function() -> None:
    square = built("square", 1, lambda inputs: inputs[0] * inputs[0])
    assert square(np.array([1.0, -3.0])).tolist() == [1.0, 9.0]
    assert square(4) == 16
    assert (square.name, square.n_inputs, square.differentiable) == ("square", 1, False)


@pytest.mark.parametrize(
    ("operation", "shapes"),
    [(matmul(), [(3, 4), (4, 2)]), (mean(), [(3, 5)])],
    ids=["matmul", "mean"],
)
def test_gradients_agree_with_differences(operation: CustomOp, shapes: list[tuple[int, ...]]) -> None:
    chance = np.random.default_rng(7)
    assert check_gradients(operation, *(chance.standard_normal(shape) for shape in shapes)) < 1e-7


@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (lambda grad, x: grad * 2, r"backward of cube gives \S+ at \[0\] of input 0, where the difference is"),
        (lambda grad, x: grad * 3.001 * x**2, "where the difference is"),
        (lambda grad, x: grad * np.nan, "gives nan at"),
    ],
)
def test_a_wrong_gradient_is_found(gradient: Any, said: str) -> None:
    def backward(grad: Any, ids: Any, shapes: Any, dtypes: Any, devices: Any, inputs: Any) -> dict[int, Any]:
        return {ids[0]: gradient(grad, inputs[0])}

    wrong = built("cube", 1, lambda inputs: inputs[0] ** 3, backward)
    with pytest.raises(PluginError, match=said):
        check_gradients(wrong, np.array([1.5, -2.0, 3.0]))


def test_a_missing_gradient_is_found() -> None:
    forgetful = built("add", 2, sum, lambda grad, ids, *_: {ids[1]: grad})
    assert [gradient is None for gradient in forgetful.gradients(np.ones(2), np.ones(2), np.ones(2))] == [True, False]
    with pytest.raises(PluginError, match="gives input 0 no gradient"):
        check_gradients(forgetful, np.ones(2), np.ones(2))


def test_backward_is_told_what_the_inputs_were() -> None:
    seen: list[Any] = []

    def backward(*arguments: Any) -> dict[int, Any]:
        seen.extend(arguments)
        return {}

    operation = built("where", 2, lambda inputs: inputs[0], backward)
    grad = np.ones((2, 3), np.float32)
    assert operation.gradients(grad, np.ones((2, 3), np.float32), np.zeros(4, np.int64)) == [None, None]
    assert seen[0] is grad
    assert seen[1:4] == [[0, 1], [(2, 3), (4,)], ["float32", "int64"]]
    assert seen[4] == ["cpu", "cpu"]


class Elsewhere:
    """An array of another library, on a device, by its protocol alone."""

    shape, dtype, device = (2,), "torch.float16", "npu:0"

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.array([1.0, 2.0])


def test_arrays_of_others_are_passed_on_as_they_are() -> None:
    same = built("same", 1, lambda inputs: inputs[0], lambda grad, ids, shapes, dtypes, devices: {})
    array = Elsewhere()
    assert same(array) is array
    typed = built("typed", 1, lambda inputs: inputs[0], dtypes=("float16", "bfloat16"))
    assert typed(array) is array
    with pytest.raises(BadInput, match="input 0 of typed is of float64; it takes bfloat16, float16"):
        typed(np.ones(2))


def refuse(inputs: Sequence[Any]) -> None:
    raise ValueError("only on Sundays")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ((), "operation add takes 2 inputs, not 0"),
        ((1, 2, 3), "takes 2 inputs, not 3"),
        ((1, "two"), "input 1 of add is no array, but a str"),
        (([1], 2), "input 0 of add is no array, but a list"),
        ((1, 2), "operation add: only on Sundays"),
    ],
)
def test_inputs_that_are_refused(inputs: tuple[Any, ...], said: str) -> None:
    operation = CustomOpBuilder("add", 2).forward(sum).validate(refuse).build()
    with pytest.raises(BadInput, match=said):
        operation(*inputs)
    with pytest.raises(BadInput, match=said):
        operation.gradients(1.0, *inputs)


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda inputs: 1 / 0, "operation bad failed: ZeroDivisionError: division by zero"),
        (lambda inputs: None, "operation bad returned no array, but a NoneType"),
    ],
)
def test_an_operation_that_fails(forward: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        built("bad", 1, forward)(1.0)


@pytest.mark.parametrize(
    ("backward", "said"),
    [
        (lambda *_: 1 / 0, "backward of bad failed: ZeroDivisionError"),
        (lambda *_: None, "backward of bad failed: TypeError"),
        (lambda *_: {7: 1.0}, r"names the input 7; there are \[0\]"),
        (lambda *_: {0: np.ones(3)}, r"the gradient of 0 is \(3,\), not \(2,\)"),
        (lambda *_: {0: "steep"}, "the gradient of 0 is str"),
    ],
)
def test_a_backward_that_fails(backward: Any, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        built("bad", 1, lambda inputs: inputs[0], backward).gradients(np.ones(2), np.ones(2))


def test_what_cannot_be_built() -> None:
    with pytest.raises(BadInput, match="needs a forward function"):
        CustomOpBuilder("empty", 1).build()
    with pytest.raises(BadInput, match="needs a name and a number of inputs, not '' and 1"):
        CustomOpBuilder("", 1)
    with pytest.raises(BadInput, match="forward takes a function, not a int"):
        CustomOpBuilder("x", 1).forward(3)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="operation square has no backward function"):
        built("square", 1, lambda inputs: inputs[0]).gradients(1.0, 1.0)


def test_operations_need_no_numpy() -> None:
    code = (
        "import sys; from rm_abstract.plugins import CustomOpBuilder, CustomLayer, PluginBuilder\n"
        "op = CustomOpBuilder('double', 1).forward(lambda i: i[0] * 2).build()\n"
        "print(op(21), sorted({'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "42 []\n"


class Scale(CustomLayer):
    def forward(self, inputs: Sequence[Any]) -> Any:
        return inputs[0] * self.parameters["factor"]


def test_layers_by_class_and_by_function() -> None:
    by_class = Scale("scale", parameters={"factor": np.array([2.0, 3.0])})
    by_function = CustomLayer("scale")
    by_function.add_parameter("factor", np.array([2.0, 3.0]))
    by_function.set_forward_fn(lambda inputs, parameters: inputs[0] * parameters["factor"])
    for layer in (by_class, by_function):
        assert layer(np.array([1.0, 1.0])).tolist() == [2.0, 3.0]
        layer.load_parameters({"factor": np.array([0.5, 4.0])})
        assert layer(np.array([2.0, 2.0])).tolist() == [1.0, 8.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "has the parameters factor; given are none"),
        ({"factor": np.ones(2), "bias": np.ones(1)}, "given are bias, factor"),
        ({"factor": np.ones(3)}, r"is float64 \[2\]; given is float64 \[3\]"),
        ({"factor": np.ones(2, np.float32)}, r"given is float32 \[2\]"),
        ({"factor": "two"}, r"given is str \[\]"),
    ],
)
def test_parameters_that_do_not_fit_change_nothing(values: dict[str, Any], said: str) -> None:
    layer = Scale("scale", parameters={"factor": np.array([2.0, 3.0])})
    with pytest.raises(BadInput, match=said):
        layer.load_parameters(values)
    assert layer.parameters["factor"].tolist() == [2.0, 3.0]


def test_layers_that_fail() -> None:
    layer = CustomLayer("empty")
    with pytest.raises(BadInput, match="layer empty has no forward"):
        layer(1.0)
    with pytest.raises(BadInput, match="input 0 of layer empty is no array"):
        layer("one")
    layer.set_forward_fn(lambda inputs, parameters: parameters["missing"])
    with pytest.raises(PluginError, match="layer empty failed: KeyError: 'missing'"):
        layer(1.0)
    layer.set_forward_fn(lambda inputs, parameters: None)
    with pytest.raises(PluginError, match="returned no array"):
        layer(1.0)
    layer.add_parameter("a", 1.0)
    with pytest.raises(BadInput, match="has a parameter a already"):
        layer.add_parameter("a", 2.0)
    with pytest.raises(BadInput, match="parameter b of layer empty is no array"):
        layer.add_parameter("b", [1])
    with pytest.raises(BadInput, match="a layer needs a name"):
        CustomLayer("")
