"""Named operations on arrays, with gradients: what extensions bring.

An array is whatever follows one of the array protocols: NumPy's arrays and those of PyTorch, JAX and others, and plain
numbers. This module has no arrays of its own, and passes those that it is given on as they are.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Self

from rm_abstract.core.errors import BadInput, PluginError

Array = Any
Forward = Callable[[Sequence[Array]], Array]
Backward = Callable[..., Mapping[int, Array]]
"""``(grad_output, input_ids, input_shapes, input_dtypes, input_devices)`` → the gradient of each input by its id.

One that has a parameter ``inputs`` is given the inputs under that name, too.
"""
Validate = Callable[[Sequence[Array]], object]
_PROTOCOLS: Final = ("__array__", "__array_interface__", "__array_namespace__", "__dlpack__")


def is_array(value: object) -> bool:
    """True for numbers, and for what follows an array protocol."""
    return isinstance(value, int | float | complex) or any(hasattr(value, name) for name in _PROTOCOLS)


def shape_of(array: Array) -> tuple[int, ...]:
    """An array's shape; that of a number is ()."""
    return tuple(getattr(array, "shape", ()))


def dtype_of(array: Array) -> str:
    """An array's type of number, such as ``float32``; of a number, its Python type."""
    return str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")


@dataclass(frozen=True)
class CustomOp:
    """An operation with a name. Made by CustomOpBuilder; called like a function."""

    name: str
    n_inputs: int
    forward_fn: Forward
    backward_fn: Backward | None = None
    validate_fn: Validate | None = None
    dtypes: frozenset[str] = field(default_factory=frozenset)
    """Types of numbers that its inputs may have; empty means any."""

    def __call__(self, *inputs: Array) -> Array:
        """Validate the inputs and compute. Raises as ``validate`` and ``forward``."""
        self.validate(inputs)
        return self.forward(inputs)

    def validate(self, inputs: Sequence[Array]) -> None:
        """Raise BadInput where these are no inputs for this operation; the author's own check comes last."""
        if len(inputs) != self.n_inputs:
            raise BadInput(f"operation {self.name} takes {self.n_inputs} inputs, not {len(inputs)}")
        for number, value in enumerate(inputs):
            if not is_array(value):
                raise BadInput(f"input {number} of {self.name} is no array, but a {type(value).__name__}")
            if self.dtypes and dtype_of(value) not in self.dtypes:
                known = ", ".join(sorted(self.dtypes))
                raise BadInput(f"input {number} of {self.name} is of {dtype_of(value)}; it takes {known}")
        if self.validate_fn is not None:
            try:
                self.validate_fn(inputs)
            except BadInput:
                raise
            except Exception as error:
                raise BadInput(f"operation {self.name}: {error}") from error

    def forward(self, inputs: Sequence[Array]) -> Array:
        """Compute, without validation. Raises PluginError where the operation fails or returns no array."""
        try:
            result = self.forward_fn(list(inputs))
        except Exception as error:
            raise PluginError(f"operation {self.name} failed: {type(error).__name__}: {error}") from error
        if not is_array(result):
            raise PluginError(f"operation {self.name} returned no array, but a {type(result).__name__}")
        return result

    @property
    def differentiable(self) -> bool:
        """True if it has a backward function."""
        return self.backward_fn is not None

    def backward(
        self,
        grad_output: Array,
        input_ids: Sequence[int],
        input_shapes: Sequence[tuple[int, ...]],
        input_dtypes: Sequence[str],
        input_devices: Sequence[str],
        inputs: Sequence[Array] = (),
    ) -> dict[int, Array]:
        """The gradient of each input, by its id; an input that has none is left out.

        Raises BadInput where there is no backward function, PluginError where it fails, names an input that is none,
        or gives a gradient of another shape than its input.
        """
        if self.backward_fn is None:
            raise BadInput(f"operation {self.name} has no backward function")
        more = {"inputs": list(inputs)} if _takes_inputs(self.backward_fn) else {}
        try:
            found = dict(
                self.backward_fn(
                    grad_output, list(input_ids), list(input_shapes), list(input_dtypes), list(input_devices), **more
                )
            )
        except Exception as error:
            raise PluginError(f"backward of {self.name} failed: {type(error).__name__}: {error}") from error
        shapes = dict(zip(input_ids, input_shapes, strict=True))
        for key, gradient in found.items():
            if key not in shapes:
                raise PluginError(f"backward of {self.name} names the input {key!r}; there are {list(input_ids)}")
            if not is_array(gradient) or shape_of(gradient) != tuple(shapes[key]):
                has = shape_of(gradient) if is_array(gradient) else type(gradient).__name__
                raise PluginError(f"backward of {self.name}: the gradient of {key} is {has}, not {shapes[key]}")
        return found

    def gradients(self, grad_output: Array, *inputs: Array) -> list[Array | None]:
        """The gradient of each of these inputs; None where it has none. Raises as ``validate`` and ``backward``."""
        self.validate(inputs)
        found = self.backward(
            grad_output,
            range(len(inputs)),
            [shape_of(value) for value in inputs],
            [dtype_of(value) for value in inputs],
            [str(getattr(value, "device", "cpu")) for value in inputs],
            inputs,
        )
        return [found.get(number) for number in range(len(inputs))]


def _takes_inputs(function: Backward) -> bool:
    try:
        return "inputs" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


class CustomOpBuilder:
    """Builds a CustomOp: ``CustomOpBuilder("square", 1).forward(f).backward(g).validate(h).build()``."""

    def __init__(self, name: str, n_inputs: int) -> None:
        if not name or n_inputs < 0:
            raise BadInput(f"an operation needs a name and a number of inputs, not {name!r} and {n_inputs}")
        self._name = name
        self._n_inputs = n_inputs
        self._forward: Forward | None = None
        self._backward: Backward | None = None
        self._validate: Validate | None = None
        self._dtypes: frozenset[str] = frozenset()

    def forward(self, function: Forward) -> Self:
        """What it computes: gets the list of inputs, returns an array."""
        self._forward = _callable(function, "forward")
        return self

    def backward(self, function: Backward) -> Self:
        """Its gradients, see ``Backward``."""
        self._backward = _callable(function, "backward")
        return self

    def validate(self, function: Validate) -> Self:
        """A check of the list of inputs, which raises where it does not like them."""
        self._validate = _callable(function, "validate")
        return self

    def dtypes(self, *names: str) -> Self:
        """Types of numbers that the inputs may have, such as ``float32``."""
        self._dtypes = frozenset(names)
        return self

    def build(self) -> CustomOp:
        """The operation. Raises BadInput where it has no forward function."""
        if self._forward is None:
            raise BadInput(f"operation {self._name} needs a forward function")
        return CustomOp(self._name, self._n_inputs, self._forward, self._backward, self._validate, self._dtypes)


def _callable(function: Any, what: str) -> Any:
    if not callable(function):
        raise BadInput(f"{what} takes a function, not a {type(function).__name__}")
    return function


def check_gradients(
    operation: CustomOp, *inputs: Array, step: float = 1e-6, tolerance: float = 1e-5, seed: int = 0
) -> float:
    """Compare the gradients with central differences, element by element; the largest error that was found.

    ``inputs`` are real arrays, which are taken as float64; they must be differentiable where they are. Errors count
    relative to the larger of 1 and the difference itself. Raises PluginError where one is above ``tolerance`` or a
    gradient is missing. Needs NumPy.
    """
    import numpy as np  # noqa: PLC0415 (heavy, and only this needs it)

    arrays = [np.array(value, dtype=np.float64) for value in inputs]
    weights = np.random.default_rng(seed).standard_normal(np.shape(operation(*arrays)))
    worst = 0.0
    for number, gradient in enumerate(operation.gradients(weights, *arrays)):
        if gradient is None:
            raise PluginError(f"backward of {operation.name} gives input {number} no gradient")
        given = np.asarray(gradient, dtype=np.float64)
        for index in np.ndindex(arrays[number].shape):

            def loss(change: float, number: int = number, index: tuple[int, ...] = index) -> float:
                moved = [array.copy() for array in arrays]
                moved[number][index] += change
                return float(np.sum(weights * np.asarray(operation(*moved))))

            expected = (loss(step) - loss(-step)) / (2 * step)
            error = abs(given[index] - expected) / max(1.0, abs(expected))
            # An error that is no number is one, too.
            if not error <= tolerance:
                raise PluginError(
                    f"backward of {operation.name} gives {given[index]:g} at {list(index)} of input {number}, "
                    f"where the difference is {expected:g}"
                )
            worst = max(worst, float(error))
    return worst
