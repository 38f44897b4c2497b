"""Named layers: a computation on arrays together with the arrays that it has learnt."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rm_abstract.core.errors import BadInput, PluginError
from rm_abstract.plugins.operations import Array, dtype_of, is_array, shape_of

LayerForward = Callable[[Sequence[Array], Mapping[str, Array]], Array]
"""Gets the list of inputs and the parameters by name, returns an array."""


class CustomLayer:
    """A layer: subclass it and say ``forward``, or give it a function. Called like a function."""

    def __init__(
        self, name: str, forward: LayerForward | None = None, parameters: Mapping[str, Array] | None = None
    ) -> None:
        if not name:
            raise BadInput("a layer needs a name")
        self.name = name
        self._forward = forward
        self._parameters: dict[str, Array] = {}
        for key, value in (parameters or {}).items():
            self.add_parameter(key, value)

    def set_forward_fn(self, function: LayerForward) -> None:
        """Set what it computes."""
        self._forward = function

    def add_parameter(self, name: str, value: Array) -> None:
        """Add an array that it has learnt. Raises BadInput for what is no array, and for a name that is taken."""
        if not is_array(value):
            raise BadInput(f"parameter {name} of layer {self.name} is no array, but a {type(value).__name__}")
        if name in self._parameters:
            raise BadInput(f"layer {self.name} has a parameter {name} already")
        self._parameters[name] = value

    @property
    def parameters(self) -> dict[str, Array]:
        """Its parameters by name; changing this dict changes nothing."""
        return dict(self._parameters)

    def load_parameters(self, values: Mapping[str, Array]) -> None:
        """Replace all parameters: the same names, shapes and types, or BadInput and no change."""
        if values.keys() != self._parameters.keys():
            wanted, given = ", ".join(sorted(self._parameters)) or "none", ", ".join(sorted(values)) or "none"
            raise BadInput(f"layer {self.name} has the parameters {wanted}; given are {given}")
        for name, value in values.items():
            old = self._parameters[name]
            if not is_array(value) or (shape_of(value), dtype_of(value)) != (shape_of(old), dtype_of(old)):
                kinds = [f"{dtype_of(array)} {list(shape_of(array))}" for array in (old, value)]
                raise BadInput(f"parameter {name} of layer {self.name} is {kinds[0]}; given is {kinds[1]}")
        self._parameters.update(values)

    def forward(self, inputs: Sequence[Array]) -> Array:
        """Compute. A subclass that overrides this raises whatever it likes; callers get a PluginError."""
        if self._forward is None:
            raise BadInput(f"layer {self.name} has no forward: set_forward_fn, or override it")
        return self._forward(inputs, self.parameters)

    def __call__(self, *inputs: Array) -> Array:
        """Compute. Raises BadInput where an input is no array, PluginError where the layer fails or gives none."""
        wrong = next((number for number, value in enumerate(inputs) if not is_array(value)), None)
        if wrong is not None:
            raise BadInput(f"input {wrong} of layer {self.name} is no array, but a {type(inputs[wrong]).__name__}")
        try:
            result: Any = self.forward(list(inputs))
        except BadInput:
            raise
        except Exception as error:
            raise PluginError(f"layer {self.name} failed: {type(error).__name__}: {error}") from error
        if not is_array(result):
            raise PluginError(f"layer {self.name} returned no array, but a {type(result).__name__}")
        return result
